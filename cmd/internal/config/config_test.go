package config

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
)

func mustParse(t *testing.T, args []string, environ ...string) (*Config, []Warning) {
	t.Helper()
	c, warnings, err := Parse(args, environ)
	if err != nil {
		t.Fatalf("%q, %q: %v", args, environ, err)
	}
	return c, warnings
}

func TestDefaults(t *testing.T) {
	c, warnings := mustParse(t, nil)
	if want := []Warning{{"'data-dir' was empty; using default", "data-dir", "default.etcd"}}; !slices.Equal(warnings, want) {
		t.Errorf("warnings %+v", warnings)
	}
	n := c.Node
	if n.Name != "default" || n.DataDir != "default.etcd" || c.InitialCluster != "default=http://localhost:2380" ||
		c.InitialClusterState != StateNew || c.InitialClusterToken != "etcd-cluster" ||
		n.Gateway.MaxRequestBytes != 1572864 || n.Gateway.MaxTxnOps != 128 || n.Gateway.MaxConcurrentStreams != math.MaxUint32 ||
		n.Heartbeat != 100*time.Millisecond || n.Election != time.Second || !n.PreVote || n.Pprof || n.ExtensiveMetrics ||
		n.Gateway.KeepaliveMinTime != 5*time.Second || n.Gateway.KeepaliveInterval != 2*time.Hour || n.Gateway.KeepaliveTimeout != 20*time.Second ||
		n.SlowApply != 100*time.Millisecond || n.Gateway.SlowRequest != 300*time.Millisecond || n.Gateway.WatchProgress != 10*time.Minute ||
		n.AutoCompact != nil || n.SlowKeepAlive || n.CacheBytes != 0 || n.ScrubPeriod != 12*time.Hour ||
		!slices.Equal(n.CORS, []string{"*"}) || !slices.Equal(n.HostWhitelist, []string{"*"}) ||
		!reflect.DeepEqual(c.Log, Log{"info", LogJSON, []string{LogDefault}}) || n.Mailboxes != node.DefaultMailboxes() {
		t.Errorf("%+v", c)
	}
	for name, urls := range map[string]string{
		"http://localhost:2379": strings.Join(membership.URLStrings(c.ListenClientURLs), ",") + strings.Join(membership.URLStrings(c.ListenMetricsURLs), ","),
		"http://localhost:2380": strings.Join(membership.URLStrings(c.ListenPeerURLs), ","),
	} {
		if urls != name {
			t.Errorf("listens on %q, want %q", urls, name)
		}
	}
	if err := c.Bootstrap(t.Context(), false, offline(t)); err != nil || c.Node.MemberID != 0x8e9e05c52164694d || c.Node.ClusterID != 0xcdf818194e3a8c32 || len(c.Node.Members) != 1 {
		t.Errorf("bootstrap %+v, %v", c.Node.Members, err)
	}
	if c.Effective["data-dir"] != "default.etcd" || c.Effective["listen-client-urls"] != "http://localhost:2379" {
		t.Errorf("effective %v", c.Effective)
	}
	if _, ok := c.Effective["discovery-password"]; ok || len(c.Effective) < 50 {
		t.Errorf("effective has %d entries: %v", len(c.Effective), c.Effective)
	}
}

// TestForms: all ways to write a flag, and their precedence.
func TestForms(t *testing.T) {
	for _, tc := range []struct {
		name  string
		args  []string
		env   []string
		check func(*Config) bool
	}{
		{"separate value", []string{"--name", "a"}, nil, func(c *Config) bool { return c.Node.Name == "a" }},
		{"joined value", []string{"-name=a"}, nil, func(c *Config) bool { return c.Node.Name == "a" }},
		{"last wins", []string{"--name", "a", "--name=b"}, nil, func(c *Config) bool { return c.Node.Name == "b" }},
		{"last urls win", []string{"--listen-metrics-urls", "http://127.0.0.1:1", "--listen-metrics-urls", "http://127.0.0.1:2"}, nil,
			func(c *Config) bool {
				return slices.Equal(membership.URLStrings(c.ListenMetricsURLs), []string{"http://127.0.0.1:2"})
			}},
		{"boolean without value", []string{"--enable-pprof"}, nil, func(c *Config) bool { return c.Node.Pprof }},
		{"boolean with value", []string{"--pre-vote=false"}, nil, func(c *Config) bool { return !c.Node.PreVote }},
		{"environment", nil, []string{"ETCD_NAME=a", "ETCD_PRE_VOTE=false"}, func(c *Config) bool { return c.Node.Name == "a" && !c.Node.PreVote }},
		{"command line beside environment", []string{"--name", "a"}, []string{"ETCD_DATA_DIR=b"}, func(c *Config) bool { return c.Node.Name == "a" && c.Node.DataDir == "b" }},
		{"empty environment", nil, []string{"ETCD_NAME="}, func(c *Config) bool { return c.Node.Name == "default" }},
		{"name only", []string{"--name", "a"}, nil, func(c *Config) bool {
			return c.InitialCluster == "a=http://localhost:2380" && c.Node.DataDir == "a.etcd"
		}},
		{"urls", []string{"--listen-client-urls", "http://localhost:2, unix://s:1,http://localhost:2", "--advertise-client-urls", "http://h:1"}, nil,
			func(c *Config) bool {
				return slices.Equal(membership.URLStrings(c.ListenClientURLs), []string{"http://localhost:2", "unix://s:1"})
			}},
		{"hours", []string{"--auto-compaction-retention=5"}, nil, func(c *Config) bool { return reflect.DeepEqual(c.Node.AutoCompact, mvccactor.KeepPeriod(5*time.Hour)) }},
		{"duration", []string{"--auto-compaction-retention=5m"}, nil, func(c *Config) bool {
			return reflect.DeepEqual(c.Node.AutoCompact, mvccactor.KeepPeriod(5*time.Minute))
		}},
		{"revisions", []string{"--auto-compaction-mode=revision", "--auto-compaction-retention=5"}, nil,
			func(c *Config) bool { return reflect.DeepEqual(c.Node.AutoCompact, mvccactor.KeepRevisions(5)) }},
		{"mailbox", []string{"--mailbox-proposer-requests=256", "--mailbox-persister-bytes=1024", "--cache-bytes=7"}, nil,
			func(c *Config) bool {
				return c.Node.Mailboxes.Proposer.Requests == 256 && c.Node.Mailboxes.Persister.Bytes == 1024 && c.Node.CacheBytes == 7
			}},
		{"mailbox default", []string{"--mailbox-proposer-requests=0", "--mailbox-proposer-bytes=0"}, nil,
			func(c *Config) bool { return c.Node.Mailboxes == node.DefaultMailboxes() }},
		{"mailbox of raft follows the proposer's", []string{"--mailbox-proposer-requests=70000"}, nil,
			func(c *Config) bool { return c.Node.Mailboxes.Raft.Requests == 140000 }},
		{"reads", []string{"--mailbox-reads-requests=3", "--mailbox-reads-bytes=4"}, nil,
			func(c *Config) bool { return c.Node.Mailboxes.Reads == actors.Limit{Requests: 3, Bytes: 4} }},
		{"origins", []string{"--cors=http://b:1,https://a:2,http://b:1"}, nil,
			func(c *Config) bool { return slices.Equal(c.Node.CORS, []string{"http://b:1", "https://a:2"}) }},
		{"hosts", []string{"--host-whitelist=b.c,a,b.c"}, nil,
			func(c *Config) bool { return slices.Equal(c.Node.HostWhitelist, []string{"a", "b.c"}) }},
		{"no snapshots", []string{"--snapshot-count=0"}, nil, func(*Config) bool { return true }},
		{"TLS", []string{"--cert-file=a", "--key-file=b", "--peer-trusted-ca-file=c", "--peer-cert-allowed-cn=x,y,x", "--tls-min-version=TLS1.2",
			"--tls-max-version=TLS1.3", "--cipher-suites=TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"}, nil, func(c *Config) bool {
			return reflect.DeepEqual(c.ClientTLS, certs.Options{CertFile: "a", KeyFile: "b", MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13,
				CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}}) &&
				c.PeerTLS.TrustedCAFile == "c" && slices.Equal(c.PeerTLS.AllowedCNs, []string{"x", "y", "x"}) && c.PeerTLS.MinVersion == tls.VersionTLS12
		}},
		{"shared port", []string{"--socket-reuse-port"}, nil, func(c *Config) bool { return c.ReusePort }},
		{"no scrub", []string{"--scrub-period=0"}, nil, func(c *Config) bool { return c.Node.ScrubPeriod == 0 }},
		{"quota", []string{"--quota-backend-bytes=-1"}, nil, func(c *Config) bool { return c.Node.Gateway.QuotaBytes == -1 }},
		{"streams", []string{"--max-concurrent-streams=0x10"}, nil, func(c *Config) bool { return c.Node.Gateway.MaxConcurrentStreams == 16 }},
		{"progress", []string{"--watch-progress-notify-interval=2s"}, nil, func(c *Config) bool { return c.Node.Gateway.WatchProgress == 2*time.Second }},
		{"level", []string{"--log-level=WARN"}, nil, func(c *Config) bool { return c.Log.Level == "warn" }},
		{"outputs", []string{"--log-outputs=stdout,f,stdout"}, nil, func(c *Config) bool { return slices.Equal(c.Log.Outputs, []string{"f", "stdout"}) }},
		{"checks", []string{"--feature-gates=CompactHashCheck=true,InitialCorruptCheck=true", "--corrupt-check-time=1h"}, nil, func(c *Config) bool {
			n := &c.Node
			return n.CompactHashCheck && n.InitialCorruptCheck && n.CompactHashCheckTime == time.Minute && n.CorruptCheckTime == time.Hour
		}},
		{"no checks", nil, nil, func(c *Config) bool {
			return !c.Node.CompactHashCheck && !c.Node.InitialCorruptCheck && c.Node.CorruptCheckTime == 0
		}},
		{"extensive", []string{"--metrics=extensive"}, nil, func(c *Config) bool { return c.Node.ExtensiveMetrics }},
		{"zero warning", []string{"--warning-unary-request-duration=0"}, nil, func(c *Config) bool { return c.Node.Gateway.SlowRequest == 300*time.Millisecond }},
		{"features", []string{"--feature-gates=AllAlpha=true,SetMemberLocalAddr=false"}, nil, func(c *Config) bool {
			return slices.Contains(c.Node.Features, grpcgw.Feature{Name: "PriorityRequest", Stage: "ALPHA", Enabled: true}) &&
				slices.Contains(c.Node.Features, grpcgw.Feature{Name: "SetMemberLocalAddr", Stage: "ALPHA", Enabled: false})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if c, _ := mustParse(t, tc.args, tc.env...); !tc.check(c) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestComplaints: errors have etcd's texts, and a command line that cannot be parsed
// (exit code 2) is distinguished from a configuration that cannot work (1).
func TestComplaints(t *testing.T) {
	for _, tc := range []struct {
		args  []string
		env   []string
		usage bool
		text  string
	}{
		{args: []string{"--bogus"}, usage: true, text: "flag provided but not defined: -bogus"},
		{args: []string{"--election-timeout", "x"}, usage: true, text: `invalid value "x" for flag -election-timeout: parse error`},
		{args: []string{"--pre-vote=x"}, usage: true, text: `invalid boolean value "x" for -pre-vote: parse error`},
		{args: []string{"--initial-cluster-state", "foo"}, usage: true, text: `invalid value "foo" for flag -initial-cluster-state: invalid value`},
		{args: []string{"--listen-client-urls", "tcp://1.2.3.4:5"}, usage: true,
			text: `invalid value "tcp://1.2.3.4:5" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: tcp://1.2.3.4:5`},
		{args: []string{"--listen-client-urls", "http://localhost:1/x"}, usage: true,
			text: `invalid value "http://localhost:1/x" for flag -listen-client-urls: URL must not contain a path: http://localhost:1/x`},
		{args: []string{"--listen-client-urls", "http://localhost"}, usage: true,
			text: `invalid value "http://localhost" for flag -listen-client-urls: URL address does not have the form "host:port": http://localhost`},
		{args: []string{"--max-request-bytes=-1"}, usage: true, text: `invalid value "-1" for flag -max-request-bytes: parse error`},
		{args: []string{"--max-concurrent-streams", "foo"}, usage: true,
			text: `invalid value "foo" for flag -max-concurrent-streams: strconv.ParseUint: parsing "foo": invalid syntax`},
		{args: []string{"--log-level", "foo"}, usage: true, text: `invalid value "foo" for flag -log-level: unrecognized level: "foo"`},
		{args: []string{"--feature-gates", "foo=true"}, usage: true, text: `invalid value "foo=true" for flag -feature-gates: unrecognized feature gate: foo`},
		{args: []string{"--v2-deprecation", "x"}, usage: true, text: `invalid value "x" for flag -v2-deprecation: invalid value "x"`},
		{args: []string{"--corrupt-check-time", "x"}, usage: true, text: `invalid value "x" for flag -corrupt-check-time: parse error`},
		{args: []string{"--name"}, usage: true, text: "flag needs an argument: -name"},

		{args: []string{"positional"}, text: `"positional" is not a valid flag`},
		{env: []string{"ETCD_PRE_VOTE=x"}, text: `invalid value "x" for ETCD_PRE_VOTE: parse error`},
		{args: []string{"--election-timeout", "100"}, text: "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]"},
		{args: []string{"--election-timeout", "60000"}, text: "--election-timeout[60000ms] is too long, and should be set less than 50000ms"},
		{args: []string{"--heartbeat-interval", "0"}, text: "--heartbeat-interval must be >0 (set to 0ms)"},
		{args: []string{"--heartbeat-interval", "18446744073709551615", "--election-timeout", "18446744073709551615"},
			text: "--election-timeout[9223372036854ms] should be at least as 5 times as --heartbeat-interval[9223372036854ms]"},
		{args: []string{"--election-timeout", "0"}, text: "--election-timeout must be >0 (set to 0ms)"},
		{args: []string{"--listen-client-urls", "http://127.0.0.1:1"}, text: ErrAdvertiseClientURLs.Error()},
		{args: []string{"--auto-compaction-mode", "foo"}, text: `unknown auto-compaction-mode "foo"`},
		{args: []string{"--auto-compaction-mode", ""}, text: "undefined auto-compaction-mode"},
		{args: []string{"--auto-compaction-retention", "foo"}, text: `error parsing CompactionRetention: time: invalid duration "foo"`},
		{args: []string{"--auto-compaction-retention", "5ns"}, text: "error parsing CompactionRetention: 5ns is below 10ms"},
		{args: []string{"--auto-compaction-retention", "-1h"}, text: "error parsing CompactionRetention: -1h0m0s is negative"},
		{args: []string{"--auto-compaction-retention", "5h", "--auto-compaction-mode=revision"},
			text: `error parsing CompactionRetention: "5h" is not a number of revisions`},
		{args: []string{"--logger", "foo"}, text: `unknown logger option "foo"`},
		{args: []string{"--log-format", "foo"}, text: "unknown log format: foo, supported values json, console"},
		{args: []string{"--log-outputs", "default,f"}, text: `multi logoutput for "default" is not supported yet`},
		{args: []string{"--listen-peer-urls", "http://example.com:2380"}, text: "expected IP in URL for binding (http://example.com:2380)"},
		{args: []string{"--listen-peer-urls", "https://example.com:2380"}, text: "expected IP in URL for binding (https://example.com:2380)"},
		{args: []string{"--initial-advertise-peer-urls", "http://:2380"},
			text: `--initial-advertise-peer-urls "http://:2380" must be "host:port" (unexpected empty host (http://:2380))`},
		{args: []string{"--discovery-fallback", "proxy"}, text: `v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy"`},
		{args: []string{"--config-file", "f"}, text: "--config-file=f is not implemented: ignoring it would start another member than it describes"},
		{env: []string{"ETCD_DISCOVERY_SRV=x"}, text: "--discovery-srv=x is not implemented: discovery is not implemented, and another cluster would be created"},
		{args: []string{"--listen-client-http-urls=http://example.com:1"}, text: "expected IP in URL for binding (http://example.com:1)"},
		{args: []string{"--tls-max-version=TLS1.1"}, text: `unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)`},
		{args: []string{"--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"}, text: "min version (TLS1.3) is greater than max version (TLS1.2)"},
		{args: []string{"--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"}, text: "cipher suites cannot be configured when only TLS1.3 is enabled"},
		{args: []string{"--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,x"}, text: `unexpected TLS cipher suite "x"`},
		{args: []string{"--mailbox-wal-bytes=-1"}, usage: true, text: `invalid value "-1" for flag -mailbox-wal-bytes: must be >=0`},
		{args: []string{"--cache-bytes=-1"}, usage: true, text: `invalid value "-1" for flag -cache-bytes: must be >=0`},
		{args: []string{"--cors=foo"}, usage: true, text: `invalid value "foo" for flag -cors: URL scheme must be http, https, unix, or unixs: foo`},
		{args: []string{"--snapshot-count=99999999999999999999"}, usage: true, text: `invalid value "99999999999999999999" for flag -snapshot-count: value out of range`},
		{args: []string{"--name=a"}, env: []string{"ETCD_NAME=b"}, text: textShadowed + ": ETCD_NAME"},
		{args: []string{"--name=a"}, env: []string{"ETCD_NAME=a"}, text: textShadowed + ": ETCD_NAME"},
		{args: []string{"--name=a"}, env: []string{"ETCD_NAME="}, text: textShadowed + ": ETCD_NAME"},
		{args: []string{"--v", "--cert-file=a"}, env: []string{"ETCD_PRE_VOTE=x", "ETCD_CERT_FILE=b"}, text: textShadowed + ": ETCD_CERT_FILE"},
		{args: []string{"--compact-hash-check-time=0s"}, text: "--compact-hash-check-time must be >0 (set to 0s)"},
		{args: []string{"--tls-min-version=foo"}, text: `unexpected TLS version "foo" (must be one of: TLS1.2, TLS1.3)`},
		{args: []string{"--feature-gates=LeaseCheckpointPersist=true"},
			text: "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"},
		{args: []string{"--grpc-keepalive-timeout=-1s"}, text: "--grpc-keepalive-timeout must be >=0"},
		{args: []string{"--name="}, text: "--name must not be empty"},
	} {
		_, _, err := Parse(tc.args, tc.env)
		var usage *UsageError
		if err == nil || err.Error() != tc.text || errors.As(err, &usage) != tc.usage {
			t.Errorf("%q %q: got %v (usage %v), want %q (usage %v)", tc.args, tc.env, err, errors.As(err, &usage), tc.text, tc.usage)
		}
	}
}

const textShadowed = "conflicting environment variable is shadowed by corresponding command-line flag " +
	"(either unset environment variable or disable flag))"

func TestWarnings(t *testing.T) {
	const given = "--data-dir=d"
	for _, tc := range []struct {
		args []string
		env  []string
		want []Warning
	}{
		{args: nil, want: nil},
		{env: []string{"ETCD_BOGUS=1", "ETCDCTL_API=3", "PATH=x"}, want: []Warning{{"unrecognized environment variable", "ETCD_BOGUS", "1"}}},
		{args: []string{"--cors=http://a:1"}, want: nil},
		{args: []string{"--cors=*", "--max-learners=1", "--tls-min-version=TLS1.2"}, want: nil},
		{env: []string{"ETCD_UNSAFE_NO_FSYNC=true"}, want: []Warning{{textNoEffect + "every write is synced", "unsafe-no-fsync", "true"}}},
		{args: []string{"--v", "--snapshot=3"}, want: []Warning{{textNoEffect + etcdRemoved, "snapshot", ""}, {textNoEffect + etcdRemoved, "v", ""}}},
		{args: []string{"--max-snapshots=5"}, want: []Warning{{textNoEffect + "deprecated by etcd; there are no snapshot files", "max-snapshots", "5"}}},
		{args: []string{"--snapshot-count=0"}, want: []Warning{
			{textNoEffect + "the log is trimmed as soon as the store holds its entries, whatever their number", "snapshot-count", "0"}}},
		{args: []string{"--enable-grpc-gateway=false"}, want: nil},
		{args: []string{"--enable-grpc-gateway"}, want: []Warning{{textNoEffect + "there is no JSON gateway: only gRPC is served", "enable-grpc-gateway", "true"}}},
		{env: []string{"ETCD_NAME="}, want: []Warning{{"unrecognized environment variable", "ETCD_NAME", ""}}}, // as etcd
		{args: []string{"--feature-gates=FastLeaseKeepAlive=true"}, want: nil},
		{args: []string{"--feature-gates=FastLeaseKeepAlive=false"}, want: nil}, // it has an effect
		{args: []string{"--feature-gates=CompactHashCheck=true,InitialCorruptCheck=true"}, want: nil},
		{args: []string{"--feature-gates=PriorityRequest=true"}, want: []Warning{
			{textNoEffect + "the feature gates are not implemented", "feature-gates", "PriorityRequest"}}},
		{args: []string{"--max-request-bytes=20971520"}, want: []Warning{{"exceeded recommended request limit", "max-request-bytes", "20971520"}}},
		{env: []string{"ETCD_VERSION=3"}, want: []Warning{{"cannot set special environment variable", "ETCD_VERSION", "3"}}},
	} {
		if _, got := mustParse(t, append([]string{given}, tc.args...), tc.env...); !slices.Equal(got, tc.want) {
			t.Errorf("%q %q: got %+v, want %+v", tc.args, tc.env, got, tc.want)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want error
	}{
		{[]string{"-h"}, ErrHelp}, {[]string{"--help"}, ErrHelp}, {[]string{"--version"}, ErrVersion},
		{[]string{"--version", "--election-timeout=1"}, ErrVersion},
	} {
		if _, _, err := Parse(tc.args, nil); !errors.Is(err, tc.want) {
			t.Errorf("%q: %v", tc.args, err)
		}
	}
	var b bytes.Buffer
	if err := WriteHelp(&b); err != nil || !strings.Contains(b.String(), "--listen-client-urls 'http://localhost:2379'") {
		t.Errorf("help: %v\n%s", err, b.String())
	}
}

// offline is a network without peers, on which each name has an address.
func offline(t testing.TB) Network {
	return Network{
		Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return nil, errors.New("connection refused")
		})},
		Resolve: func(_ context.Context, hostport string) (string, error) {
			host, port, err := net.SplitHostPort(hostport)
			if net.ParseIP(host) != nil {
				return hostport, err
			}
			return "10.0.0.9:" + port, err
		},
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestBootstrap(t *testing.T) {
	three := "--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380"
	for _, exists := range []bool{false, true} {
		c, _ := mustParse(t, []string{"--name=b", "--initial-advertise-peer-urls=http://10.0.0.2:2380", "--initial-cluster-token=tok", three})
		err := c.Bootstrap(t.Context(), exists, offline(t))
		var ids []string
		for _, m := range c.Node.Members {
			ids = append(ids, fmt.Sprintf("%s=%x", m.Name, m.Id))
		}
		want := []string{"b=61b046c1789d11d8", "c=7aa181191753809e", "a=98521e8c6c48c6da"}
		if err != nil || c.Node.MemberID != 0x61b046c1789d11d8 || c.Node.ClusterID != 0x8e67f3b977698ab3 || !slices.Equal(ids, want) || c.Node.Join {
			t.Errorf("three members, data %v: got member %x of %v in cluster %x, error %v, want %v in order of ids", exists,
				c.Node.MemberID, ids, c.Node.ClusterID, err, want)
		}
	}
	c, _ := mustParse(t, []string{"--name=b", "--initial-advertise-peer-urls=http://10.0.0.2:2380", "--initial-cluster-token=tok"})
	if err := c.Bootstrap(t.Context(), false, offline(t)); err != nil || c.Node.MemberID != 0x61b046c1789d11d8 || len(c.Node.Members) != 1 || c.Node.Members[0].Name != "b" {
		t.Errorf("got %+v, %v, want member 61b046c1789d11d8", c.Node.Members, err)
	}
	c, _ = mustParse(t, []string{"--initial-cluster-state=existing"})
	want := "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
	if err := c.Bootstrap(t.Context(), false, offline(t)); err == nil || err.Error() != want || c.Node.Join {
		t.Errorf("existing without data: got %v, want %s", err, want)
	}
	if err := c.Bootstrap(t.Context(), true, noNetwork); err != nil || !c.Node.Join {
		t.Errorf("existing with data: got error %v and join %v, want it to join", err, c.Node.Join)
	}
	c, _ = mustParse(t, []string{"--initial-cluster=default=http://host:2380", "--initial-advertise-peer-urls=http://10.0.0.9:2380"})
	if err := c.Bootstrap(t.Context(), false, offline(t)); err != nil {
		t.Errorf("a name and its address: got %v, want no error", err)
	}
	for _, tc := range []struct {
		args []string
		text string
	}{
		{[]string{"--name=m1", "--initial-cluster=m2=http://localhost:2380"}, `couldn't find local name "m1" in the initial cluster configuration`},
		{[]string{"--initial-advertise-peer-urls=http://10.1.1.1:2380"},
			"--initial-cluster has default=http://localhost:2380 but missing from --initial-advertise-peer-urls=http://10.1.1.1:2380 " +
				`(resolved urls: "http://10.1.1.1:2380" != "http://localhost:2380")`},
		{[]string{"--initial-advertise-peer-urls=http://10.1.1.1:1,http://localhost:2380"},
			"--initial-advertise-peer-urls has http://10.1.1.1:1 but missing from --initial-cluster=default=http://localhost:2380"},
		{[]string{"--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"},
			"initial cluster b=http://localhost:2380,default=http://localhost:2380 has duplicate url"},
		{[]string{"--initial-cluster=default=localhost:2380"},
			"--initial-cluster: URL scheme must be http, https, unix, or unixs: localhost:2380"},
		{[]string{"--initial-cluster="}, `couldn't find local name "default" in the initial cluster configuration`},
	} {
		c, _ := mustParse(t, tc.args)
		if err := c.Bootstrap(t.Context(), false, offline(t)); err == nil || err.Error() != tc.text {
			t.Errorf("%q: got %v, want %s", tc.args, err, tc.text)
		}
		if err := c.Bootstrap(t.Context(), true, noNetwork); err != nil || c.Node.ClusterID != 0 {
			t.Errorf("%q with data: got %v, want the flags ignored", tc.args, err)
		}
	}
}

// FuzzParse: no command line and no environment panics.
func FuzzParse(f *testing.F) {
	f.Add("--name=a\x00--listen-client-urls\x00http://a:1", "ETCD_PRE_VOTE=x")
	f.Add("--initial-cluster=a=b,=,a\x00--feature-gates=a", "ETCD_=")
	f.Add("--cors=,\x00--log-outputs=,", "=")
	f.Fuzz(func(t *testing.T, args, environ string) {
		if c, _, err := Parse(strings.Split(args, "\x00"), strings.Split(environ, "\x00")); err == nil {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = c.Bootstrap(ctx, false, offline(f))
		}
	})
}
