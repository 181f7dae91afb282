package config

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
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
	if c.Name != "default" || c.DataDir != "default.etcd" || c.InitialCluster != "default=http://localhost:2380" ||
		c.InitialClusterState != StateNew || c.InitialClusterToken != "etcd-cluster" ||
		c.MaxRequestBytes != 1572864 || c.MaxTxnOps != 128 || c.MaxConcurrentStreams != math.MaxUint32 ||
		c.SnapshotCount != 10000 || c.HeartbeatInterval != 100*time.Millisecond || c.ElectionTimeout != time.Second ||
		!c.PreVote || !c.StrictReconfigCheck || !c.InitialElectionTickAdvance || c.Pprof || c.ExtensiveMetrics ||
		c.KeepaliveMinTime != 5*time.Second || c.KeepaliveInterval != 2*time.Hour || c.KeepaliveTimeout != 20*time.Second ||
		c.WarningApply != 100*time.Millisecond || c.WarningRequest != 300*time.Millisecond ||
		c.AutoCompactionMode != CompactPeriodic || c.AutoCompactionPeriod != 0 ||
		!reflect.DeepEqual(c.Log, Log{"info", LogJSON, []string{LogDefault}}) || c.Mailboxes != (Mailboxes{}) {
		t.Errorf("%+v", c)
	}
	for name, urls := range map[string]string{
		"http://localhost:2379": strings.Join(urlStrings(c.ListenClientURLs), ",") + strings.Join(urlStrings(c.ListenMetricsURLs), ","),
		"http://localhost:2380": strings.Join(urlStrings(c.ListenPeerURLs), ","),
	} {
		if urls != name {
			t.Errorf("listens on %q, want %q", urls, name)
		}
	}
	b, err := c.Bootstrap()
	if err != nil || b.MemberID != 0x8e9e05c52164694d || b.ClusterID != 0xcdf818194e3a8c32 || len(b.Members) != 1 {
		t.Errorf("bootstrap %+v, %v", b, err)
	}
	if c.Effective["data-dir"] != "default.etcd" || c.Effective["listen-client-urls"] != "http://localhost:2379" {
		t.Errorf("effective %v", c.Effective)
	}
	if _, ok := c.Effective["discovery-password"]; ok || len(c.Effective) < 40 {
		t.Errorf("effective has %d entries: %v", len(c.Effective), c.Effective)
	}
}

// TestForms: all ways in which a flag may be written, and what wins.
func TestForms(t *testing.T) {
	for _, tc := range []struct {
		name  string
		args  []string
		env   []string
		check func(*Config) bool
	}{
		{"separate value", []string{"--name", "a"}, nil, func(c *Config) bool { return c.Name == "a" }},
		{"joined value", []string{"-name=a"}, nil, func(c *Config) bool { return c.Name == "a" }},
		{"last wins", []string{"--name", "a", "--name=b"}, nil, func(c *Config) bool { return c.Name == "b" }},
		{"last urls win", []string{"--listen-metrics-urls", "http://127.0.0.1:1", "--listen-metrics-urls", "http://127.0.0.1:2"}, nil,
			func(c *Config) bool {
				return slices.Equal(urlStrings(c.ListenMetricsURLs), []string{"http://127.0.0.1:2"})
			}},
		{"boolean without value", []string{"--enable-pprof"}, nil, func(c *Config) bool { return c.Pprof }},
		{"boolean with value", []string{"--pre-vote=false"}, nil, func(c *Config) bool { return !c.PreVote }},
		{"environment", nil, []string{"ETCD_NAME=a", "ETCD_PRE_VOTE=false"}, func(c *Config) bool { return c.Name == "a" && !c.PreVote }},
		{"command line over environment", []string{"--name", "a"}, []string{"ETCD_NAME=b"}, func(c *Config) bool { return c.Name == "a" }},
		{"empty environment", nil, []string{"ETCD_NAME="}, func(c *Config) bool { return c.Name == "default" }},
		{"name only", []string{"--name", "a"}, nil, func(c *Config) bool { return c.InitialCluster == "a=http://localhost:2380" && c.DataDir == "a.etcd" }},
		{"urls", []string{"--listen-client-urls", "http://localhost:2, unix://s:1,http://localhost:2", "--advertise-client-urls", "http://h:1"}, nil,
			func(c *Config) bool {
				return slices.Equal(urlStrings(c.ListenClientURLs), []string{"http://localhost:2", "unix://s:1"})
			}},
		{"hours", []string{"--auto-compaction-retention=5"}, nil, func(c *Config) bool { return c.AutoCompactionPeriod == 5*time.Hour }},
		{"duration", []string{"--auto-compaction-retention=5m"}, nil, func(c *Config) bool { return c.AutoCompactionPeriod == 5*time.Minute }},
		{"revisions", []string{"--auto-compaction-mode=revision", "--auto-compaction-retention=5"}, nil,
			func(c *Config) bool { return c.AutoCompactionRevisions == 5 && c.AutoCompactionPeriod == 0 }},
		{"mailbox", []string{"--mailbox-proposer-requests=256", "--mailbox-persister-bytes=1024", "--cache-bytes=7"}, nil,
			func(c *Config) bool {
				return c.Mailboxes.Proposer.Requests == 256 && c.Mailboxes.Persister.Bytes == 1024 && c.CacheBytes == 7
			}},
		{"no scrub", []string{"--scrub-period=0"}, nil, func(c *Config) bool { return c.ScrubPeriod == 0 }},
		{"quota", []string{"--quota-backend-bytes=-1"}, nil, func(c *Config) bool { return c.QuotaBytes == -1 }},
		{"streams", []string{"--max-concurrent-streams=0x10"}, nil, func(c *Config) bool { return c.MaxConcurrentStreams == 16 }},
		{"progress", []string{"--watch-progress-notify-interval=2s"}, nil, func(c *Config) bool { return c.WatchProgress == 2*time.Second }},
		{"level", []string{"--log-level=WARN"}, nil, func(c *Config) bool { return c.Log.Level == "warn" }},
		{"outputs", []string{"--log-outputs=stdout,f,stdout"}, nil, func(c *Config) bool { return slices.Equal(c.Log.Outputs, []string{"f", "stdout"}) }},
		{"extensive", []string{"--metrics=extensive"}, nil, func(c *Config) bool { return c.ExtensiveMetrics }},
		{"zero warning", []string{"--warning-unary-request-duration=0"}, nil, func(c *Config) bool { return c.WarningRequest == 300*time.Millisecond }},
		{"features", []string{"--feature-gates=AllAlpha=true,LeaseCheckpoint=false"}, nil, func(c *Config) bool {
			return slices.Contains(c.Features, Feature{"PriorityRequest", "ALPHA", true}) && slices.Contains(c.Features, Feature{"LeaseCheckpoint", "ALPHA", false})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if c, _ := mustParse(t, tc.args, tc.env...); !tc.check(c) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestComplaints: what is wrong is named in etcd's words, and a command line that
// makes no sense (exit code 2) is told from a configuration that cannot work (1).
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
			text: "--election-timeout[18446744073709551615ms] should be at least as 5 times as --heartbeat-interval[18446744073709551615ms]"},
		{args: []string{"--election-timeout", "0"}, text: "--election-timeout must be >0 (set to 0ms)"},
		{args: []string{"--listen-client-urls", "http://127.0.0.1:1"}, text: ErrAdvertiseClientURLs.Error()},
		{args: []string{"--auto-compaction-mode", "foo"}, text: `unknown auto-compaction-mode "foo"`},
		{args: []string{"--auto-compaction-mode", ""}, text: "undefined auto-compaction-mode"},
		{args: []string{"--auto-compaction-retention", "foo"}, text: `error parsing CompactionRetention: time: invalid duration "foo"`},
		{args: []string{"--auto-compaction-retention", "-1h"}, text: "error parsing CompactionRetention: -1h0m0s is negative"},
		{args: []string{"--auto-compaction-retention", "5h", "--auto-compaction-mode=revision"},
			text: `error parsing CompactionRetention: "5h" is not a number of revisions`},
		{args: []string{"--logger", "foo"}, text: `unknown logger option "foo"`},
		{args: []string{"--log-format", "foo"}, text: "unknown log format: foo, supported values json, console"},
		{args: []string{"--log-outputs", "default,f"}, text: `multi logoutput for "default" is not supported yet`},
		{args: []string{"--listen-peer-urls", "http://example.com:2380"}, text: "expected IP in URL for binding (http://example.com:2380)"},
		{args: []string{"--listen-peer-urls", "https://127.0.0.1:2380"}, text: "TLS is not implemented yet (https://127.0.0.1:2380)"},
		{args: []string{"--initial-advertise-peer-urls", "http://:2380"},
			text: `--initial-advertise-peer-urls "http://:2380" must be "host:port" (unexpected empty host (http://:2380))`},
		{args: []string{"--discovery-fallback", "proxy"}, text: `v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy"`},
		{args: []string{"--config-file", "f"}, text: "--config-file is not implemented yet, and ignoring it would start another member than you want"},
		{env: []string{"ETCD_DISCOVERY_SRV=x"}, text: "--discovery-srv is not implemented yet, and ignoring it would start another member than you want"},
		{args: []string{"--mailbox-wal-bytes=-1"}, text: "--mailbox-* must be >=0"},
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

func TestWarnings(t *testing.T) {
	const given = "--data-dir=d"
	for _, tc := range []struct {
		args []string
		env  []string
		want []Warning
	}{
		{args: nil, want: nil},
		{env: []string{"ETCD_BOGUS=1", "ETCDCTL_API=3", "PATH=x"}, want: []Warning{{"unrecognized environment variable", "ETCD_BOGUS", "1"}}},
		{args: []string{"--name=a"}, env: []string{"ETCD_NAME=b"}, want: []Warning{{"environment variable is overridden by the command line", "ETCD_NAME", "b"}}},
		{args: []string{"--cors=http://a:1"}, want: []Warning{{textNotYet, "cors", "http://a:1"}}},
		{args: []string{"--cors=*", "--max-learners=1", "--tls-min-version=TLS1.2"}, want: nil},
		{env: []string{"ETCD_UNSAFE_NO_FSYNC=true"}, want: []Warning{{textNotYet, "unsafe-no-fsync", "true"}}},
		{args: []string{"--v", "--snapshot=3"}, want: []Warning{{textRemoved, "snapshot", ""}, {textRemoved, "v", ""}}},
		{args: []string{"--max-snapshots=5"}, want: []Warning{{textDeprecated, "max-snapshots", "5"}}},
		{args: []string{"--feature-gates=FastLeaseKeepAlive=true"}, want: nil},
		{args: []string{"--feature-gates=FastLeaseKeepAlive=false"}, want: nil}, // it has an effect
		{args: []string{"--feature-gates=PriorityRequest=true"}, want: []Warning{
			{"feature gates are not implemented yet and have no effect", "feature-gates", "PriorityRequest"}}},
		{args: []string{"--max-request-bytes=20971520"}, want: []Warning{{"exceeded recommended request limit", "max-request-bytes", "20971520"}}},
		{env: []string{"ETCD_VERSION=3"}, want: []Warning{{"environment variable has no effect", "ETCD_VERSION", "3"}}},
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

// etcdFlags are all flags that etcd 3.7.3 defines, with their defaults as its
// flag set holds them.
var etcdFlags = strings.Fields(`
advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention auto-tls
backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost
bootstrap-defrag-threshold-megabytes cert-file cipher-suites client-cert-allowed-hostname client-cert-auth
client-cert-file client-crl-file client-key-file compact-hash-check-time compaction-batch-limit
compaction-sleep-interval config-file corrupt-check-time cors data-dir discovery-cacert discovery-cert
discovery-dial-timeout discovery-endpoints discovery-fallback discovery-insecure-skip-tls-verify
discovery-insecure-transport discovery-keepalive-time discovery-keepalive-timeout discovery-key
discovery-password discovery-request-timeout discovery-srv discovery-srv-name discovery-token discovery-user
distributed-tracing-address distributed-tracing-instance-id distributed-tracing-sampling-rate
distributed-tracing-service-name downgrade-check-time election-timeout enable-distributed-tracing
enable-grpc-gateway enable-log-rotation enable-pprof feature-gates force-new-cluster grpc-keepalive-interval
grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval host-whitelist initial-advertise-peer-urls
initial-cluster initial-cluster-state initial-cluster-token initial-election-tick-advance key-file
listen-client-http-urls listen-client-urls listen-metrics-urls listen-peer-urls log-format log-level log-outputs
log-rotation-config-json logger max-concurrent-streams max-learners max-request-bytes max-snapshots max-txn-ops
max-wals memory-mlock metrics name peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname peer-cert-file
peer-client-cert-auth peer-client-cert-file peer-client-key-file peer-crl-file peer-key-file
peer-skip-client-san-verification peer-trusted-ca-file pre-vote quota-backend-bytes raft-read-timeout
raft-write-timeout self-signed-cert-validity snapshot-catchup-entries snapshot-count socket-reuse-address
socket-reuse-port strict-reconfig-check tls-max-version tls-min-version trusted-ca-file unsafe-no-fsync
v2-deprecation version wal-dir warning-apply-duration warning-unary-request-duration
watch-progress-notify-interval
cluster-active-size cluster-remove-delay cluster-sync-interval config force max-result-buffer max-retry-attempts
peer-heartbeat-interval peer-election-timeout retry-interval snapshot v vv test.coverprofile test.outputdir
`)

// TestEveryFlagOfEtcd: no flag is missing, and none is added but our own.
func TestEveryFlagOfEtcd(t *testing.T) {
	have := map[string]bool{}
	newParser().flags.VisitAll(func(f *flag.Flag) { have[f.Name] = true })
	for _, name := range etcdFlags {
		if !have[name] {
			t.Errorf("--%s is not defined", name)
		}
		delete(have, name)
	}
	for name := range have {
		if !strings.HasPrefix(name, "mailbox-") && name != "cache-bytes" && name != "scrub-period" {
			t.Errorf("--%s is not a flag of etcd", name)
		}
	}
}

// TestDefaultIsSilent: a manifest that spells out defaults gets no warning.
func TestDefaultIsSilent(t *testing.T) {
	args := []string{"--data-dir=d"}
	for _, o := range notYet {
		args = append(args, "--"+o.name+"="+o.value)
	}
	for i := 1; i < len(args); i++ { // an empty value is no duration, number or boolean
		if strings.HasSuffix(args[i], "=") && notYet[i-1].kind != text && notYet[i-1].kind != urlList {
			t.Errorf("%s has no default", args[i])
		}
	}
	if _, warnings := mustParse(t, args); len(warnings) > 0 {
		t.Errorf("%+v", warnings)
	}
}

func TestBootstrap(t *testing.T) {
	three := "--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380"
	c, _ := mustParse(t, []string{"--name=b", "--initial-advertise-peer-urls=http://10.0.0.2:2380", three, "--initial-cluster-token=tok"})
	b, err := c.Bootstrap()
	if err != nil || b.ClusterID != 0x8e67f3b977698ab3 || b.MemberID != 0x61b046c1789d11d8 || len(b.Members) != 3 || b.Members[0].Name != "b" {
		t.Errorf("%+v, %v", b, err)
	}
	for _, tc := range []struct {
		args []string
		text string
	}{
		{[]string{"--name=m1", "--initial-cluster=m2=http://localhost:2380"}, `couldn't find local name "m1" in the initial cluster configuration`},
		{[]string{"--initial-advertise-peer-urls=http://10.1.1.1:2380"},
			"--initial-cluster has default=http://localhost:2380 but missing from --initial-advertise-peer-urls=http://10.1.1.1:2380"},
		{[]string{"--initial-advertise-peer-urls=http://10.1.1.1:1,http://localhost:2380"},
			"--initial-advertise-peer-urls has http://10.1.1.1:1 but missing from --initial-cluster=default=http://localhost:2380"},
		{[]string{"--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"},
			"initial cluster default=http://localhost:2380,b=http://localhost:2380 has duplicate url"},
		{[]string{"--initial-cluster=default=localhost:2380"},
			"--initial-cluster: URL scheme must be http, https, unix, or unixs: localhost:2380"},
		{[]string{"--initial-cluster="}, `couldn't find local name "default" in the initial cluster configuration`},
	} {
		c, _ := mustParse(t, tc.args)
		if b, err := c.Bootstrap(); err == nil || err.Error() != tc.text {
			t.Errorf("%q: %+v, %v", tc.args, b, err)
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
			_, _ = c.Bootstrap()
		}
	})
}
