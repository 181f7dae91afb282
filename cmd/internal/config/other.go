package config

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"
)

// other is a flag of etcd without an effect. Its kind makes a bad value an error
// all the same, so that a typing mistake does not hide until the flag works.
type other struct {
	name  string
	kind  kind
	value string // default
}

type kind int

const (
	text kind = iota
	boolean
	integer // int
	natural // uint and uint64
	duration
	urlList // of http, https, unix; or "*"
)

const (
	textNotYet     = "flag is not implemented yet and has no effect"
	textRemoved    = "flag is no longer supported - ignoring"
	textDeprecated = "flag is deprecated and has no effect"
)

// notYet are the flags of etcd that will have an effect one day.
var notYet = []other{
	{"listen-client-http-urls", urlList, ""},
	{"max-wals", natural, "5"},
	{"memory-mlock", boolean, "false"},
	{"backend-bbolt-freelist-type", text, ""},
	{"backend-batch-interval", duration, "0s"},
	{"backend-batch-limit", integer, "0"},
	{"socket-reuse-port", boolean, "false"},
	{"socket-reuse-address", boolean, "false"},
	{"enable-grpc-gateway", boolean, "true"},
	{"raft-read-timeout", duration, "5s"},
	{"raft-write-timeout", duration, "5s"},
	{"snapshot-catchup-entries", natural, "5000"},
	{"bootstrap-defrag-threshold-megabytes", natural, "0"},
	{"max-learners", integer, "1"},

	{"discovery-dial-timeout", duration, "2s"},
	{"discovery-request-timeout", duration, "5s"},
	{"discovery-keepalive-time", duration, "2s"},
	{"discovery-keepalive-timeout", duration, "6s"},
	{"discovery-insecure-transport", boolean, "true"},
	{"discovery-insecure-skip-tls-verify", boolean, "false"},
	{"discovery-cert", text, ""},
	{"discovery-key", text, ""},
	{"discovery-cacert", text, ""},
	{"discovery-user", text, ""},
	{"discovery-password", text, ""},

	{"cert-file", text, ""},
	{"key-file", text, ""},
	{"client-cert-auth", boolean, "false"},
	{"client-cert-file", text, ""},
	{"client-key-file", text, ""},
	{"client-crl-file", text, ""},
	{"client-cert-allowed-hostname", text, ""},
	{"trusted-ca-file", text, ""},
	{"auto-tls", boolean, "false"},
	{"peer-cert-file", text, ""},
	{"peer-key-file", text, ""},
	{"peer-client-cert-auth", boolean, "false"},
	{"peer-client-cert-file", text, ""},
	{"peer-client-key-file", text, ""},
	{"peer-trusted-ca-file", text, ""},
	{"peer-crl-file", text, ""},
	{"peer-cert-allowed-cn", text, ""},
	{"peer-cert-allowed-hostname", text, ""},
	{"peer-auto-tls", boolean, "false"},
	{"peer-skip-client-san-verification", boolean, "false"},
	{"self-signed-cert-validity", natural, "1"},
	{"cipher-suites", text, ""},
	{"tls-min-version", text, "TLS1.2"},
	{"tls-max-version", text, ""},
	{"cors", urlList, "*"},
	{"host-whitelist", text, "*"},

	{"auth-token", text, "simple"},
	{"auth-token-ttl", natural, "300"},
	{"bcrypt-cost", natural, "10"},

	{"enable-log-rotation", boolean, "false"},
	{"log-rotation-config-json", text, `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`},
	{"enable-distributed-tracing", boolean, "false"},
	{"distributed-tracing-address", text, "localhost:4317"},
	{"distributed-tracing-service-name", text, "etcd"},
	{"distributed-tracing-instance-id", text, ""},
	{"distributed-tracing-sampling-rate", integer, "0"},

	{"corrupt-check-time", duration, "0s"},
	{"compact-hash-check-time", duration, "1m0s"},
	{"compaction-batch-limit", integer, "0"},
	{"compaction-sleep-interval", duration, "0s"},
	{"downgrade-check-time", duration, "5s"},
	{"force-new-cluster", boolean, "false"},
	{"unsafe-no-fsync", boolean, "false"},
}

// dangerous are flags that say where a member's configuration or cluster comes
// from. A member that ignored one would start something else than it was asked
// to, with an empty store; so setting one is an error.
var dangerous = []other{
	{"config-file", text, ""},
	{"discovery-endpoints", text, ""},
	{"discovery-token", text, ""},
	{"discovery-srv", text, ""},
	{"discovery-srv-name", text, ""},
}

// removed are flags of etcd's past, that etcd still accepts and ignores. They
// take a value only after "=".
var removed = []other{
	{"cluster-active-size", boolean, ""},
	{"cluster-remove-delay", boolean, ""},
	{"cluster-sync-interval", boolean, ""},
	{"config", boolean, ""},
	{"force", boolean, ""},
	{"max-result-buffer", boolean, ""},
	{"max-retry-attempts", boolean, ""},
	{"peer-heartbeat-interval", boolean, ""},
	{"peer-election-timeout", boolean, ""},
	{"retry-interval", boolean, ""},
	{"snapshot", boolean, ""},
	{"v", boolean, ""},
	{"vv", boolean, ""},
	{"test.coverprofile", boolean, ""},
	{"test.outputdir", boolean, ""},
}

// ignoredValue accepts everything.
type ignoredValue struct{}

func (ignoredValue) Set(string) error { return nil }
func (ignoredValue) String() string   { return "" }
func (ignoredValue) IsBoolFlag() bool { return true }

// anyURLs is a list of URLs, or "*".
type anyURLs struct{ text *string }

// Set implements flag.Value.
func (v anyURLs) Set(s string) error {
	if s != "*" && s != "" {
		if _, err := parseURLs(strings.Split(s, ",")); err != nil {
			return err
		}
	}
	*v.text = s
	return nil
}

// String implements flag.Value.
func (v anyURLs) String() string {
	if v.text == nil {
		return ""
	}
	return *v.text
}

// stagesOfV2 is the value of --v2-deprecation: some of four words.
type stagesOfV2 struct{ text *string }

// Set implements flag.Value.
func (v stagesOfV2) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		if !slices.Contains([]string{"write-only", "write-only-skip-check", "write-only-drop-data", "gone"}, word) {
			return fmt.Errorf("invalid value %q", word)
		}
	}
	*v.text = s
	return nil
}

// String implements flag.Value.
func (v stagesOfV2) String() string {
	if v.text == nil {
		return ""
	}
	return *v.text
}

// addOtherFlags defines all flags of etcd that have no effect.
func (p *parser) addOtherFlags() {
	for _, o := range slices.Concat(notYet, dangerous) {
		o.define(p.flags)
	}
	for _, o := range removed {
		p.flags.Var(ignoredValue{}, o.name, "")
	}
	p.flags.Var(&p.features, "feature-gates", "Feature gates of etcd, as name=true,name=false.")
	p.flags.Uint("max-snapshots", 5, "")
	p.flags.Var(stagesOfV2{new(string)}, "v2-deprecation", "")
	choiceVar(p.flags, &p.fallback, "discovery-fallback", "", "exit", "proxy")
}

func (o *other) define(fs *flag.FlagSet) {
	const usage = "Not implemented yet."
	switch o.kind {
	case text:
		fs.String(o.name, o.value, usage)
	case urlList:
		value := o.value
		fs.Var(anyURLs{&value}, o.name, usage)
	case boolean:
		fs.Bool(o.name, o.value == "true", usage)
	case integer:
		fs.Int(o.name, 0, usage)
	case natural:
		fs.Uint64(o.name, 0, usage)
	case duration:
		fs.Duration(o.name, time.Duration(0), usage)
	}
	f := fs.Lookup(o.name)
	if err := f.Value.Set(o.value); err != nil && o.value != "" {
		panic(fmt.Sprintf("config: default of --%s: %v", o.name, err))
	}
	f.DefValue = o.value
}

// warnOthers tells of each flag that was set and will do nothing.
func (p *parser) warnOthers() {
	for _, o := range notYet {
		if f := p.flags.Lookup(o.name); f.Value.String() != o.value {
			p.warn(textNotYet, o.name, f.Value.String())
		}
	}
	for _, o := range removed {
		if p.given[o.name] {
			p.warn(textRemoved, o.name, "")
		}
	}
	for _, name := range []string{"max-snapshots", "v2-deprecation"} {
		if p.given[name] {
			p.warn(textDeprecated, name, p.flags.Lookup(name).Value.String())
		}
	}
	if changed := p.features.changed(); len(changed) > 0 {
		p.warn("feature gates are not implemented yet and have no effect", "feature-gates", strings.Join(changed, ","))
	}
}
