package config

import (
	"bytes"
	"flag"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// etcdFlags are all flags that etcd 3.7.3 defines: those that its --help lists
// and those that it ignores.
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

// TestEveryFlagOfEtcd: no flag is missing, none is defined twice, and only the section
// of Troupe's own adds any.
func TestEveryFlagOfEtcd(t *testing.T) {
	have := map[string]bool{}
	newParser().flags.VisitAll(func(f *flag.Flag) { have[f.Name] = true })
	for _, name := range etcdFlags {
		if !have[name] {
			t.Errorf("--%s is not defined", name)
		}
		delete(have, name)
	}
	for _, s := range registry {
		for _, f := range s.flags {
			if s.title == "Troupe's own" {
				delete(have, f.name)
			}
		}
	}
	for name := range have {
		t.Errorf("--%s is not a flag of etcd", name)
	}
}

// other returns a value of a flag, other than its default, that the parser
// accepts beside args. For one that is refused, the right type is enough.
func other(t *testing.T, s *flagSpec, args []string) string {
	t.Helper()
	for _, value := range []string{"extensive", "http://127.0.0.1:1", "existing", "revision", "true", "false",
		"7", "2000", "13s", "TLS1.3", "debug", "console", "gone", "proxy", "FastLeaseKeepAlive=false",
		"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "jwt,sign-method=HS256,priv-key=registry.go"} {
		f := newParser().flags.Lookup(s.name)
		if value == f.DefValue && !s.always || value == s.quiet || f.Value.Set(value) != nil {
			continue
		}
		if _, _, err := Parse(append(slices.Clone(args), "--"+s.name+"="+value), nil); err == nil || s.state == refused {
			return value
		}
	}
	t.Fatalf("--%s: no value but the default is accepted", s.name)
	return ""
}

// configuration returns what the member gets of a command line: not the flags' own
// values, which change also if nothing reads them.
func configuration(t *testing.T, args, environ []string) *Config {
	t.Helper()
	c, _ := mustParse(t, args, environ...)
	c.Effective = nil
	return c
}

// TestNoFlagIsSilent: each flag that is given, on the command line or in the
// environment, changes the configuration, causes exactly one warning, or is
// refused by name, as its state says.
func TestNoFlagIsSilent(t *testing.T) {
	base := []string{"--data-dir=d", "--advertise-client-urls=http://127.0.0.1:9", "--name=n", "--initial-cluster=n=http://localhost:2380",
		"--auto-compaction-retention=5"} // without it the mode changes nothing
	each(func(s *flagSpec) {
		switch s.name {
		case "version":
			return // ends Parse
		case "logger":
			if _, _, err := Parse(append(slices.Clone(base), "--logger=x"), nil); err == nil {
				t.Error("--logger=x: got no error, and it has one value")
			}
			return
		}
		args := slices.DeleteFunc(slices.Clone(base), func(a string) bool { return strings.HasPrefix(a, "--"+s.name+"=") })
		value := other(t, s, args)
		for _, given := range []struct{ args, environ []string }{
			{args: append(slices.Clone(args), "--"+s.name+"="+value)},
			{args: args, environ: []string{s.env() + "=" + value}},
		} {
			_, warnings, err := Parse(given.args, given.environ)
			about := slices.DeleteFunc(slices.Clone(warnings), func(w Warning) bool { return w.Name != s.name })
			switch s.state {
			case works:
				// --data-dir warns when it is not given.
				if err != nil || len(about) > 0 && s.name != "feature-gates" {
					t.Errorf("--%s=%s works: got %v and warnings %v", s.name, value, err, about)
				} else if reflect.DeepEqual(configuration(t, given.args, given.environ), configuration(t, args, nil)) {
					t.Errorf("--%s=%s works: got the same configuration as without it, want another", s.name, value)
				}
			case warns:
				if err != nil || len(about) != 1 {
					t.Errorf("--%s=%s has no effect: got %v and warnings %v, want one warning", s.name, value, err, about)
				}
			case refused:
				if err == nil || !strings.Contains(err.Error(), s.name) {
					t.Errorf("--%s=%s is refused: got %v", s.name, value, err)
				}
			default:
				t.Errorf("--%s has state %q", s.name, s.state)
			}
			if s.usage == "" {
				t.Errorf("--%s has no usage", s.name)
			}
		}
	})
}

// TestDefaultIsSilent: defaults that are given cause no warning, except for flags whose
// default promises something that the member does not do.
func TestDefaultIsSilent(t *testing.T) {
	args := []string{"--data-dir=d"}
	each(func(s *flagSpec) {
		if !s.always && s.value != "" && s.name != "version" {
			args = append(args, "--"+s.name+"="+s.value)
		}
	})
	if len(args) < 80 {
		t.Errorf("got %d flags with a default, want more", len(args))
	}
	if _, warnings := mustParse(t, args); len(warnings) > 0 {
		t.Errorf("got %+v, want none", warnings)
	}
}

// TestHelp: --help shows each flag with its default, and whether it has an effect.
func TestHelp(t *testing.T) {
	var b bytes.Buffer
	if err := WriteHelp(&b); err != nil {
		t.Fatal(err)
	}
	each(func(s *flagSpec) {
		if !strings.Contains(b.String(), "\n  --"+s.name+" '") {
			t.Errorf("--%s is not listed", s.name)
		}
	})
	for _, want := range []string{
		"\nMember:\n", "\nTroupe's own:\n",
		"  --listen-client-urls 'http://localhost:2379'\n    URLs to listen",
		"  --cert-file ''\n    Certificate for clients, in PEM.",
		"  --memory-mlock 'false'\n    [no effect] Pages are not locked",
		"  --config-file ''\n    [refused] Ignoring it",
		"  --mailbox-proposer-requests '10000'\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, b.String())
		}
	}
}
