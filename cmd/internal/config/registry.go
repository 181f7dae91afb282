package config

import (
	"flag"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
)

// state is how a given flag is handled.
type state string

const (
	works   state = "works"
	warns   state = "no effect" // giving it causes a Warning
	refused state = "refused"   // giving it is an error, because ignoring it would do harm
)

// flagSpec defines one flag.
type flagSpec struct {
	name  string
	state state
	value string // the default, as text; empty for the zero value
	// bind returns a flag.Value that stores a given value in the parser.
	bind  func(*parser) flag.Value
	usage string // what the flag does, or why it has no effect
	// quiet is a value, other than the default, that matches what the member does
	// anyway. Giving it causes no Warning and no error.
	quiet string
	// always causes the Warning for every value, including the default.
	always bool
}

// env is the environment variable that sets the flag.
func (s *flagSpec) env() string { return envName(s.name) }

// section is a part of --help.
type section struct {
	title string
	flags []flagSpec
}

const (
	defaultName      = "default"
	defaultClientURL = "http://localhost:2379"
	defaultPeerURL   = "http://localhost:2380"

	defaultInitialCluster = defaultName + "=" + defaultPeerURL
)

// Why flags have no effect.
const (
	noPeers     = "a cluster has one member, which listens to no others"
	noTracing   = "distributed tracing is not implemented"
	noDiscovery = "discovery is not implemented"
	otherStore  = "the store has no such setting"
	etcdRemoved = "etcd has removed the flag and ignores it too"
)

// registry holds every flag of etcd 3.7.3, and Troupe's own. A flag is defined here
// and nowhere else: its row also names the field that the value is stored in.
var registry = []section{
	{"Member", []flagSpec{
		{name: "name", state: works, value: defaultName, bind: func(p *parser) flag.Value { return text(&p.Node.Name) },
			usage: "Human-readable name of this member."},
		{name: "data-dir", state: works, bind: func(p *parser) flag.Value { return text(&p.Node.DataDir) },
			usage: "Directory of the data; '<name>.etcd' if not given."},
		{name: "wal-dir", state: works, bind: func(p *parser) flag.Value { return text(&p.Node.WALDir) },
			usage: "Directory of the write-ahead log, if it is not below the data directory."},
		{name: "listen-client-urls", state: works, value: defaultClientURL, bind: func(p *parser) flag.Value { return urls(&p.ListenClientURLs) },
			usage: "URLs to listen on for clients: gRPC and HTTP."},
		{name: "listen-client-http-urls", state: works, bind: func(p *parser) flag.Value { return urls(&p.ListenClientHTTPURLs) },
			usage: "URLs to listen on for HTTP alone; then --listen-client-urls serve gRPC alone."},
		{name: "listen-peer-urls", state: works, value: defaultPeerURL, bind: func(p *parser) flag.Value { return urls(&p.ListenPeerURLs) },
			usage: "URLs to listen on for other members."},
		{name: "heartbeat-interval", state: works, value: "100", bind: func(p *parser) flag.Value { return millis(&p.Node.Heartbeat) },
			usage: "Time between heartbeats in milliseconds."},
		{name: "election-timeout", state: works, value: "1000", bind: func(p *parser) flag.Value { return millis(&p.Node.Election) },
			usage: "Time without a heartbeat after which a member stands for election, in milliseconds."},
		{name: "initial-election-tick-advance", state: works, value: "true", bind: func(p *parser) flag.Value { return boolean(&p.Node.ElectionTickAdvance) },
			usage: "Wait for a leader only for a heartbeat after a start, instead of a whole election timeout."},
		{name: "snapshot-count", state: warns, value: "10000", bind: unusedNatural,
			usage: "the log is trimmed as soon as the store holds its entries, whatever their number"},
		{name: "max-snapshots", state: warns, value: "5", bind: unusedNatural, always: true,
			usage: "deprecated by etcd; there are no snapshot files"},
		{name: "max-wals", state: warns, value: "5", bind: unusedNatural,
			usage: "the log keeps the files that it needs, and two in advance"},
		{name: "memory-mlock", state: warns, value: "false", bind: unusedBoolean, usage: "pages are not locked in memory"},
		{name: "backend-bbolt-freelist-type", state: warns, value: "map", bind: unusedText, usage: otherStore},
		{name: "backend-batch-interval", state: warns, value: "0s", bind: unusedDuration, usage: otherStore},
		{name: "backend-batch-limit", state: warns, value: "0", bind: unusedInteger, usage: otherStore},
		{name: "socket-reuse-port", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.ReusePort) },
			usage: "Listen with SO_REUSEPORT, so that several processes may listen on a port."},
		{name: "socket-reuse-address", state: warns, value: "false", bind: unusedBoolean, quiet: "true", always: true,
			usage: "listeners always have SO_REUSEADDR"},
		{name: "raft-read-timeout", state: warns, value: "5s", bind: unusedDuration, usage: noPeers},
		{name: "raft-write-timeout", state: warns, value: "5s", bind: unusedDuration, usage: noPeers},
	}},
	{"Limits", []flagSpec{
		{name: "quota-backend-bytes", state: works, value: "0", bind: func(p *parser) flag.Value { return integer(&p.Node.Gateway.QuotaBytes) },
			usage: "Bytes of live data beyond which puts are refused. 0 is 2 GiB, negative is no limit."},
		{name: "max-txn-ops", state: works, value: "128", bind: func(p *parser) flag.Value { return natural(&p.Node.Gateway.MaxTxnOps) },
			usage: "Operations that a transaction may have."},
		{name: "max-request-bytes", state: works, value: "1572864", bind: func(p *parser) flag.Value { return natural(&p.Node.Gateway.MaxRequestBytes) },
			usage: "Bytes that a client's request may have."},
		{name: "max-concurrent-streams", state: works, value: strconv.Itoa(math.MaxUint32),
			bind:  func(p *parser) flag.Value { return natural32(&p.Node.Gateway.MaxConcurrentStreams) },
			usage: "RPCs that a client connection may have at a time."},
		{name: "grpc-keepalive-min-time", state: works, value: "5s", bind: func(p *parser) flag.Value { return duration(&p.Node.Gateway.KeepaliveMinTime) },
			usage: "Shortest time between pings of a client."},
		{name: "grpc-keepalive-interval", state: works, value: "2h", bind: func(p *parser) flag.Value { return duration(&p.Node.Gateway.KeepaliveInterval) },
			usage: "Time between pings to an idle client; 0 is never."},
		{name: "grpc-keepalive-timeout", state: works, value: "20s", bind: func(p *parser) flag.Value { return duration(&p.Node.Gateway.KeepaliveTimeout) },
			usage: "Time that a client has to answer a ping; 0 is no limit."},
	}},
	{"Clustering", []flagSpec{
		{name: "advertise-client-urls", state: works, value: defaultClientURL, bind: func(p *parser) flag.Value { return urls(&p.AdvertiseClientURLs) },
			usage: "URLs under which clients reach this member."},
		{name: "initial-advertise-peer-urls", state: works, value: defaultPeerURL, bind: func(p *parser) flag.Value { return urls(&p.AdvertisePeerURLs) },
			usage: "URLs under which other members reach this member; ids are derived from them."},
		{name: "initial-cluster", state: works, value: defaultInitialCluster, bind: func(p *parser) flag.Value { return text(&p.InitialCluster) },
			usage: "The members of the cluster, as name=url,name=url; a member with several URLs is named several times."},
		{name: "initial-cluster-state", state: works, value: StateNew, bind: func(p *parser) flag.Value { return choice(&p.InitialClusterState, StateNew, StateExisting) },
			usage: "'new' creates a cluster on an empty data directory, 'existing' joins one that has this member already."},
		{name: "initial-cluster-token", state: works, value: "etcd-cluster", bind: func(p *parser) flag.Value { return text(&p.InitialClusterToken) },
			usage: "Makes the ids of a new cluster and its members differ from those of others."},
		{name: "strict-reconfig-check", state: works, value: "true", bind: func(p *parser) flag.Value { return boolean(&p.Node.StrictReconfig) },
			usage: "Refuse changes of the members after which the cluster might have no quorum."},
		{name: "pre-vote", state: works, value: "true", bind: func(p *parser) flag.Value { return boolean(&p.Node.PreVote) },
			usage: "Ask before standing for election."},
		{name: "max-learners", state: works, value: "1", bind: func(p *parser) flag.Value { return integer(&p.Node.MaxLearners) },
			usage: "Learners that the cluster may have."},
		{name: "snapshot-catchup-entries", state: works, value: "5000", bind: func(p *parser) flag.Value { return natural(&p.Node.SnapshotCatchUpEntries) },
			usage: "Entries of the log that are kept at least, for members that are behind."},
		{name: "discovery-endpoints", state: refused, bind: unusedText, usage: noDiscovery + ", and another cluster would be created"},
		{name: "discovery-token", state: refused, bind: unusedText, usage: noDiscovery + ", and another cluster would be created"},
		{name: "discovery-srv", state: refused, bind: unusedText, usage: noDiscovery + ", and another cluster would be created"},
		{name: "discovery-srv-name", state: refused, bind: unusedText, usage: noDiscovery + ", and another cluster would be created"},
		{name: "discovery-dial-timeout", state: warns, value: "2s", bind: unusedDuration, usage: noDiscovery},
		{name: "discovery-request-timeout", state: warns, value: "5s", bind: unusedDuration, usage: noDiscovery},
		{name: "discovery-keepalive-time", state: warns, value: "2s", bind: unusedDuration, usage: noDiscovery},
		{name: "discovery-keepalive-timeout", state: warns, value: "6s", bind: unusedDuration, usage: noDiscovery},
		{name: "discovery-insecure-transport", state: warns, value: "true", bind: unusedBoolean, usage: noDiscovery},
		{name: "discovery-insecure-skip-tls-verify", state: warns, value: "false", bind: unusedBoolean, usage: noDiscovery},
		{name: "discovery-cert", state: warns, bind: unusedText, usage: noDiscovery},
		{name: "discovery-key", state: warns, bind: unusedText, usage: noDiscovery},
		{name: "discovery-cacert", state: warns, bind: unusedText, usage: noDiscovery},
		{name: "discovery-user", state: warns, bind: unusedText, usage: noDiscovery},
		{name: "discovery-password", state: warns, bind: unusedText, usage: noDiscovery},
		{name: "discovery-fallback", state: refused, value: "exit", bind: func(*parser) flag.Value { return choice(new(string), "exit", "proxy") },
			usage: "the v2 proxy is gone from etcd too"},
	}},
	{"History", []flagSpec{
		{name: "auto-compaction-mode", state: works, value: compactPeriodic, bind: func(p *parser) flag.Value { return text(&p.compactionMode) },
			usage: "Unit of the retention: 'periodic' or 'revision'."},
		{name: "auto-compaction-retention", state: works, value: "0", bind: func(p *parser) flag.Value { return text(&p.retention) },
			usage: "History that automatic compaction keeps: a duration, a number of hours, or a number of revisions. 0 is off."},
		{name: "compaction-batch-limit", state: warns, value: "0", bind: unusedInteger, usage: "compaction paces itself"},
		{name: "compaction-sleep-interval", state: warns, value: "0s", bind: unusedDuration, usage: "compaction paces itself"},
		{name: "bootstrap-defrag-threshold-megabytes", state: warns, value: "0", bind: unusedNatural, usage: "space is reclaimed while the member runs"},
		{name: "watch-progress-notify-interval", state: works, value: "0s", bind: func(p *parser) flag.Value { return duration(&p.Node.Gateway.WatchProgress) },
			usage: "Time between progress notifications to idle watchers that ask for them, at least 100ms. 0 is 10 minutes."},
		{name: "corrupt-check-time", state: works, value: "0s", bind: func(p *parser) flag.Value { return duration(&p.Node.CorruptCheckTime) },
			usage: "Time between comparisons of the members' keyspaces by the leader; 0 is never."},
		{name: "compact-hash-check-time", state: works, value: "1m", bind: func(p *parser) flag.Value { return duration(&p.Node.CompactHashCheckTime) },
			usage: "Time between comparisons of the members' hashes of compactions by the leader, with the feature gate CompactHashCheck."},
		{name: "downgrade-check-time", state: warns, value: "5s", bind: unusedDuration, usage: noPeers},
	}},
	{"Security", []flagSpec{
		{name: "cors", state: works, value: "*", bind: func(p *parser) flag.Value { return origins(&p.Node.CORS) },
			usage: "Origins that browsers may call from, comma-separated; '*' is all."},
		{name: "host-whitelist", state: works, value: "*", bind: func(p *parser) flag.Value { return words(&p.Node.HostWhitelist) },
			usage: "Host names that HTTP requests may name, comma-separated; '*' or nothing is all."},
		{name: "cert-file", state: works, bind: func(p *parser) flag.Value { return text(&p.ClientTLS.CertFile) },
			usage: "Certificate for clients, in PEM. This and the other TLS files are read again when they change."},
		{name: "key-file", state: works, bind: func(p *parser) flag.Value { return text(&p.ClientTLS.KeyFile) },
			usage: "Key of --cert-file, in PEM."},
		{name: "client-cert-auth", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.ClientTLS.ClientCertAuth) },
			usage: "Demand a certificate from clients. --trusted-ca-file does so too."},
		{name: "client-cert-file", state: works, bind: func(p *parser) flag.Value { return text(&p.ClientTLS.ClientCertFile) },
			usage: "For compatibility: checked, but not used, because the member is no client of itself."},
		{name: "client-key-file", state: works, bind: func(p *parser) flag.Value { return text(&p.ClientTLS.ClientKeyFile) },
			usage: "Key of --client-cert-file."},
		{name: "client-crl-file", state: works, bind: func(p *parser) flag.Value { return text(&p.ClientTLS.CRLFile) },
			usage: "Revoked certificates of clients: a list in DER, or several in PEM."},
		{name: "client-cert-allowed-hostname", state: works, bind: func(p *parser) flag.Value { return list(&p.ClientTLS.AllowedHostnames) },
			usage: "Host names, comma-separated, of which a client's certificate must have one."},
		{name: "trusted-ca-file", state: works, bind: func(p *parser) flag.Value { return text(&p.ClientTLS.TrustedCAFile) },
			usage: "Authorities of clients' certificates, in PEM."},
		{name: "auto-tls", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.ClientAutoTLS) },
			usage: "Make a certificate for clients, if none is given. It is kept below the data directory."},
		{name: "peer-cert-file", state: works, bind: func(p *parser) flag.Value { return text(&p.PeerTLS.CertFile) },
			usage: "Certificate for other members, in PEM."},
		{name: "peer-key-file", state: works, bind: func(p *parser) flag.Value { return text(&p.PeerTLS.KeyFile) },
			usage: "Key of --peer-cert-file, in PEM."},
		{name: "peer-client-cert-auth", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.PeerTLS.ClientCertAuth) },
			usage: "Demand a certificate from members that connect. --peer-trusted-ca-file does so too."},
		{name: "peer-client-cert-file", state: works, bind: func(p *parser) flag.Value { return text(&p.PeerTLS.ClientCertFile) },
			usage: "Certificate to connect to other members with; --peer-cert-file if not given."},
		{name: "peer-client-key-file", state: works, bind: func(p *parser) flag.Value { return text(&p.PeerTLS.ClientKeyFile) },
			usage: "Key of --peer-client-cert-file."},
		{name: "peer-trusted-ca-file", state: works, bind: func(p *parser) flag.Value { return text(&p.PeerTLS.TrustedCAFile) },
			usage: "Authorities of members' certificates, in PEM."},
		{name: "peer-crl-file", state: works, bind: func(p *parser) flag.Value { return text(&p.PeerTLS.CRLFile) },
			usage: "Revoked certificates of members: a list in DER, or several in PEM."},
		{name: "peer-cert-allowed-cn", state: works, bind: func(p *parser) flag.Value { return list(&p.PeerTLS.AllowedCNs) },
			usage: "Common names, comma-separated, of which a member's certificate must have one."},
		{name: "peer-cert-allowed-hostname", state: works, bind: func(p *parser) flag.Value { return list(&p.PeerTLS.AllowedHostnames) },
			usage: "Host names, comma-separated, of which a member's certificate must have one."},
		{name: "peer-auto-tls", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.PeerAutoTLS) },
			usage: "Make a certificate for other members, if none is given. It encrypts, and proves nothing."},
		{name: "peer-skip-client-san-verification", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.SkipPeerSAN) },
			usage: "Accept certificates of members from addresses that they are not for."},
		{name: "self-signed-cert-validity", state: works, value: "1", bind: func(p *parser) flag.Value { return natural(&p.SelfSignedYears) },
			usage: "Validity of certificates that are made, in years."},
		{name: "cipher-suites", state: works, bind: func(p *parser) flag.Value { return list(&p.CipherSuites) },
			usage: "Cipher suites of TLS 1.2, comma-separated; Go's choice if not given."},
		{name: "tls-min-version", state: works, value: "TLS1.2", bind: func(p *parser) flag.Value { return text(&p.tlsMin) },
			usage: "Lowest version of TLS: TLS1.2 or TLS1.3."},
		{name: "tls-max-version", state: works, bind: func(p *parser) flag.Value { return text(&p.tlsMax) },
			usage: "Highest version of TLS: TLS1.2 or TLS1.3; Go's choice if not given."},
		{name: "auth-token", state: works, value: "simple", bind: func(p *parser) flag.Value { return text(&p.authToken) },
			usage: "Tokens of users who log in: 'simple', or 'jwt,sign-method=...,pub-key=...,priv-key=...,ttl=...'."},
		{name: "auth-token-ttl", state: works, value: "300", bind: func(p *parser) flag.Value { return natural(&p.authTokenTTL) },
			usage: "Seconds after its last use until a simple token expires."},
		{name: "bcrypt-cost", state: works, value: "10", bind: func(p *parser) flag.Value { return natural(&p.bcryptCost) },
			usage: "Cost of the hashes of passwords, from 4 to 31: each step doubles the time that logging in takes."},
	}},
	{"Monitoring", []flagSpec{
		{name: "listen-metrics-urls", state: works, bind: func(p *parser) flag.Value { return urls(&p.ListenMetricsURLs) },
			usage: "URLs to listen on for /metrics and health checks, besides the client URLs. With https, the TLS of clients counts."},
		{name: "metrics", state: works, value: "basic", bind: func(p *parser) flag.Value { return text(&p.metrics) },
			usage: "'extensive' adds histograms of all RPCs to /metrics."},
		{name: "enable-pprof", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.Node.Pprof) },
			usage: "Serve profiles of the process at the client URLs under /debug/pprof/."},
		{name: "warning-apply-duration", state: works, value: "100ms", bind: func(p *parser) flag.Value { return duration(&p.Node.SlowApply) },
			usage: "Time from which applying a request counts as slow."},
		{name: "warning-unary-request-duration", state: works, value: "300ms", bind: func(p *parser) flag.Value { return duration(&p.Node.Gateway.SlowRequest) },
			usage: "Time from which a unary request is logged as slow. 0 is the default."},
		{name: "enable-distributed-tracing", state: warns, value: "false", bind: unusedBoolean, usage: noTracing},
		{name: "distributed-tracing-address", state: warns, value: "localhost:4317", bind: unusedText, usage: noTracing},
		{name: "distributed-tracing-service-name", state: warns, value: "etcd", bind: unusedText, usage: noTracing},
		{name: "distributed-tracing-instance-id", state: warns, bind: unusedText, usage: noTracing},
		{name: "distributed-tracing-sampling-rate", state: warns, value: "0", bind: unusedInteger, usage: noTracing},
	}},
	{"Log", []flagSpec{
		{name: "logger", state: works, value: "zap", bind: func(p *parser) flag.Value { return text(&p.logger) },
			usage: "For compatibility; 'zap' is the only value."},
		{name: "log-level", state: works, value: "info", bind: func(p *parser) flag.Value { return level(&p.Log.Level) },
			usage: "debug, info, warn, error, panic or fatal."},
		{name: "log-format", state: works, value: LogJSON, bind: func(p *parser) flag.Value { return text(&p.Log.Format) },
			usage: "'json' or 'console'."},
		{name: "log-outputs", state: works, value: LogDefault, bind: func(p *parser) flag.Value { return words(&p.Log.Outputs) },
			usage: "'stdout', 'stderr', 'default' (stderr), or files, comma-separated."},
		{name: "enable-log-rotation", state: warns, value: "false", bind: unusedBoolean, usage: "log files are only appended to"},
		{name: "log-rotation-config-json", state: warns, bind: unusedText, usage: "log files are only appended to",
			value: `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`},
	}},
	{"Features", []flagSpec{
		{name: "feature-gates", state: works, bind: func(p *parser) flag.Value { return &p.features },
			usage: "Feature gates of etcd, as name=true,name=false. FastLeaseKeepAlive, CompactHashCheck and InitialCorruptCheck have an effect; the others cause a warning."},
		{name: "enable-grpc-gateway", state: warns, value: "true", bind: unusedBoolean, quiet: "false", always: true,
			usage: "there is no JSON gateway: only gRPC is served"},
		{name: "config-file", state: refused, bind: unusedText, usage: "ignoring it would start another member than it describes"},
		{name: "force-new-cluster", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.Node.ForceNewCluster) },
			usage: "Remove all other members at the start. For a cluster that has lost its quorum for good."},
		{name: "unsafe-no-fsync", state: warns, value: "false", bind: unusedBoolean, usage: "every write is synced"},
		{name: "v2-deprecation", state: warns, value: "write-only", always: true, usage: "deprecated by etcd; there is no v2 store",
			bind: func(*parser) flag.Value {
				return choices(new(string), "write-only", "write-only-skip-check", "write-only-drop-data", "gone")
			}},
		{name: "version", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.version) },
			usage: "Print the version and exit."},
	}},
	{"Troupe's own", append([]flagSpec{
		{name: "small", state: works, value: "false", bind: func(p *parser) flag.Value { return boolean(&p.Node.Small) },
			usage: "For machines with little disk and memory: smaller files, reserves and cache. May be given or not at each start."},
		{name: "cache-bytes", state: works, value: "0", bind: func(p *parser) flag.Value { return limit(&p.Node.CacheBytes) },
			usage: "Bytes of stored records to keep in memory. 0 is a sixteenth of memory, 256 MiB at most."},
		{name: "snapshot-send-rate", state: works, value: "0", bind: func(p *parser) flag.Value { return limit(&p.Node.SnapshotSendRate) },
			usage: "Bytes per second of a snapshot that is sent to another member. 0 is no limit."},
		{name: "scrub-period", state: works, value: "12h", bind: func(p *parser) flag.Value { return duration(&p.Node.ScrubPeriod) },
			usage: "Time in which all stored data is read back once, to find damage early. 0 is never."},
	}, mailboxFlags()...)},
	{"Removed from etcd", removedFlags("cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force",
		"max-result-buffer", "max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout", "retry-interval",
		"snapshot", "v", "vv", "test.coverprofile", "test.outputdir")},
}

// Values of flags without an effect are parsed all the same, so that a malformed value
// is reported now and not when the flag gets an effect.

func unusedText(*parser) flag.Value     { return text(new(string)) }
func unusedBoolean(*parser) flag.Value  { return boolean(new(bool)) }
func unusedInteger(*parser) flag.Value  { return integer(new(int)) }
func unusedNatural(*parser) flag.Value  { return natural(new(int64)) }
func unusedDuration(*parser) flag.Value { return duration(new(time.Duration)) }

// mailboxFlags are the limits of the mailboxes. Their defaults are defined in package
// node, beside the stages.
func mailboxFlags() []flagSpec {
	var flags []flagSpec
	for _, m := range []struct {
		stage string
		limit func(*node.Mailboxes) *actors.Limit
	}{
		{"proposer", func(m *node.Mailboxes) *actors.Limit { return &m.Proposer }},
		{"raft", func(m *node.Mailboxes) *actors.Limit { return &m.Raft }},
		{"wal", func(m *node.Mailboxes) *actors.Limit { return &m.WAL }},
		{"apply", func(m *node.Mailboxes) *actors.Limit { return &m.Apply }},
		{"mvcc", func(m *node.Mailboxes) *actors.Limit { return &m.MVCC }},
		{"persister", func(m *node.Mailboxes) *actors.Limit { return &m.Persister }},
		{"lease", func(m *node.Mailboxes) *actors.Limit { return &m.Lease }},
		{"reads", func(m *node.Mailboxes) *actors.Limit { return &m.Reads }},
	} {
		flags = append(flags,
			flagSpec{name: "mailbox-" + m.stage + "-requests", state: works, value: "0",
				bind:  func(p *parser) flag.Value { return limit(&m.limit(&p.Node.Mailboxes).Requests) },
				usage: "Requests that the mailbox of the " + m.stage + " holds. 0 is the default."},
			flagSpec{name: "mailbox-" + m.stage + "-bytes", state: works, value: "0",
				bind:  func(p *parser) flag.Value { return limit(&m.limit(&p.Node.Mailboxes).Bytes) },
				usage: "Bytes that the mailbox of the " + m.stage + " holds. 0 is the default."})
	}
	return flags
}

func removedFlags(names ...string) []flagSpec {
	var flags []flagSpec
	for _, name := range names {
		flags = append(flags, flagSpec{name: name, state: warns, always: true, usage: etcdRemoved,
			bind: func(*parser) flag.Value { return newIgnored() }})
	}
	return flags
}

// each calls fn for every flag.
func each(fn func(*flagSpec)) {
	for i := range registry {
		for j := range registry[i].flags {
			fn(&registry[i].flags[j])
		}
	}
}

// define adds all flags with their defaults to the parser's flag set.
func (p *parser) define() {
	p.Node.Gateway = grpcgw.DefaultConfig()
	p.Node.Mailboxes = node.DefaultMailboxes()
	each(func(s *flagSpec) {
		v := s.bind(p)
		if s.value != "" {
			if err := v.Set(s.value); err != nil {
				panic("config: default of --" + s.name + ": " + err.Error())
			}
		}
		p.flags.Var(v, s.name, s.usage) // keeps v.String() as the default
	})
}

// ineffective reports whether a flag without an effect was given a value that does not match
// what the member does anyway, and returns the value.
func (p *parser) ineffective(s *flagSpec) (value string, ok bool) {
	f := p.flags.Lookup(s.name)
	value = f.Value.String()
	if !p.given[s.name] || s.quiet != "" && value == s.quiet {
		return value, false
	}
	return value, s.always || value != f.DefValue
}

// warnNoEffect adds a warning for each flag that was given and has no effect.
func (p *parser) warnNoEffect() {
	each(func(s *flagSpec) {
		if value, ok := p.ineffective(s); ok && s.state == warns {
			p.warn(textNoEffect+s.usage, s.name, value)
		}
	})
	if changed := p.features.changed(); len(changed) > 0 {
		p.warn(textNoEffect+"the feature gates are not implemented", "feature-gates", strings.Join(changed, ","))
	}
}

const textNoEffect = "flag has no effect: "
