package config

import (
	"math"
	"time"
)

// etcd's defaults.
const (
	defaultName           = "default"
	defaultClientURL      = "http://localhost:2379"
	defaultPeerURL        = "http://localhost:2380"
	defaultInitialCluster = defaultName + "=" + defaultPeerURL
	defaultToken          = "etcd-cluster"

	defaultSnapshotCount     = 10000
	defaultHeartbeatMillis   = 100
	defaultElectionMillis    = 1000
	defaultMaxTxnOps         = 128
	defaultMaxRequestBytes   = 3 << 19 // 1.5 MiB
	defaultKeepaliveMinTime  = 5 * time.Second
	defaultKeepaliveInterval = 2 * time.Hour
	defaultKeepaliveTimeout  = 20 * time.Second
	defaultScrubPeriod       = 12 * time.Hour // a pass within a day, whatever comes between
	defaultWarningApply      = 100 * time.Millisecond
	defaultWarningRequest    = 300 * time.Millisecond
)

// addFlags defines the flags that have an effect.
func (p *parser) addFlags() {
	p.addMemberFlags()
	p.addClusterFlags()
	p.addLimitFlags()
	p.addMonitoringFlags()
	p.addOwnFlags()
	p.flags.BoolVar(&p.version, "version", false, "Print the version and exit.")
}

func (p *parser) addMemberFlags() {
	fs, c := p.flags, &p.Config
	fs.StringVar(&c.Name, "name", defaultName, "Human-readable name of this member.")
	fs.StringVar(&c.DataDir, "data-dir", "", "Directory of the data; '<name>.etcd' when not given.")
	fs.StringVar(&c.WALDir, "wal-dir", "", "Directory of the write-ahead log, if it is not to be in the data directory.")
	urlsVar(fs, &c.ListenClientURLs, "listen-client-urls", defaultClientURL, "URLs to listen on for clients.")
	urlsVar(fs, &c.ListenPeerURLs, "listen-peer-urls", defaultPeerURL, "URLs to listen on for other members.")
	urlsVar(fs, &c.ListenMetricsURLs, "listen-metrics-urls", "", "URLs to listen on for /metrics and health checks, besides the client URLs.")
	fs.Uint64Var(&c.SnapshotCount, "snapshot-count", defaultSnapshotCount, "Applied entries after which a raft snapshot is taken.")
	fs.UintVar(&p.heartbeatMillis, "heartbeat-interval", defaultHeartbeatMillis, "Time between heartbeats in milliseconds.")
	fs.UintVar(&p.electionMillis, "election-timeout", defaultElectionMillis, "Time without a heartbeat after which a member stands for election, in milliseconds.")
	fs.BoolVar(&c.InitialElectionTickAdvance, "initial-election-tick-advance", true, "Wait for less than an election timeout for a leader after a start.")
}

func (p *parser) addClusterFlags() {
	fs, c := p.flags, &p.Config
	urlsVar(fs, &c.AdvertiseClientURLs, "advertise-client-urls", defaultClientURL, "URLs under which clients reach this member.")
	urlsVar(fs, &c.AdvertisePeerURLs, "initial-advertise-peer-urls", defaultPeerURL, "URLs under which other members reach this member.")
	fs.StringVar(&c.InitialCluster, "initial-cluster", defaultInitialCluster, "The members of a new cluster, as name=url,name=url.")
	choiceVar(fs, &c.InitialClusterState, "initial-cluster-state", "Whether the cluster is 'new' or 'existing'.", StateNew, StateExisting)
	fs.StringVar(&c.InitialClusterToken, "initial-cluster-token", defaultToken, "Makes the ids of a new cluster and its members differ from those of others.")
	fs.BoolVar(&c.StrictReconfigCheck, "strict-reconfig-check", true, "Refuse changes of members that would lose the quorum.")
	fs.BoolVar(&c.PreVote, "pre-vote", true, "Ask before standing for election, so that a member that was cut off disturbs nobody.")
	fs.StringVar(&c.AutoCompactionMode, "auto-compaction-mode", CompactPeriodic, "Unit of the retention: 'periodic' or 'revision'.")
	fs.StringVar(&p.retention, "auto-compaction-retention", "0", "History that automatic compaction keeps: a duration, a number of hours, or a number of revisions. 0 is off.")
}

func (p *parser) addLimitFlags() {
	fs, c := p.flags, &p.Config
	fs.Int64Var(&c.QuotaBytes, "quota-backend-bytes", 0, "Bytes that the keyspace may take; beyond them it accepts no puts. 0 is 2 GiB, negative is no limit.")
	fs.UintVar(&c.MaxTxnOps, "max-txn-ops", defaultMaxTxnOps, "Operations that a transaction may have.")
	fs.UintVar(&c.MaxRequestBytes, "max-request-bytes", defaultMaxRequestBytes, "Bytes that a client's request may have.")
	uint32Var(fs, &c.MaxConcurrentStreams, "max-concurrent-streams", math.MaxUint32, "RPCs that a client connection may have at a time.")
	fs.DurationVar(&c.WatchProgress, "watch-progress-notify-interval", 0, "Time between notifications of progress to idle watchers that ask for them, at least 100ms. 0 is 10 minutes.")
	fs.DurationVar(&c.KeepaliveMinTime, "grpc-keepalive-min-time", defaultKeepaliveMinTime, "Shortest time between pings of a client.")
	fs.DurationVar(&c.KeepaliveInterval, "grpc-keepalive-interval", defaultKeepaliveInterval, "Time between pings to an idle client; 0 is never.")
	fs.DurationVar(&c.KeepaliveTimeout, "grpc-keepalive-timeout", defaultKeepaliveTimeout, "Time that a client has to answer a ping; 0 is for ever.")
}

func (p *parser) addMonitoringFlags() {
	fs, c := p.flags, &p.Config
	fs.BoolVar(&c.Pprof, "enable-pprof", false, "Serve profiles of the process at the client URLs under /debug/pprof/.")
	fs.StringVar(&p.metrics, "metrics", metricsBasic, "'extensive' adds histograms of all RPCs to /metrics.")
	fs.DurationVar(&c.WarningApply, "warning-apply-duration", defaultWarningApply, "Time from which applying a request counts as slow.")
	fs.DurationVar(&c.WarningRequest, "warning-unary-request-duration", defaultWarningRequest, "Time from which a unary request is logged as slow.")
	fs.StringVar(&p.logger, "logger", "zap", "For compatibility; 'zap' is the only value.")
	levelVar(fs, &c.Log.Level, "log-level", "info", "debug, info, warn, error, panic or fatal.")
	fs.StringVar(&c.Log.Format, "log-format", LogJSON, "'json' or 'console'.")
	listVar(fs, &c.Log.Outputs, "log-outputs", LogDefault, "'stdout', 'stderr', 'default' (stderr), or files, comma-separated.")
}

// addOwnFlags defines what etcd does not have. Limits have no default of their
// own here, because what a stage can bear is known where the stage is.
func (p *parser) addOwnFlags() {
	fs, m := p.flags, &p.Mailboxes
	for _, s := range []struct {
		name  string
		limit *MailboxLimit
	}{
		{"proposer", &m.Proposer}, {"raft", &m.Raft}, {"wal", &m.WAL},
		{"apply", &m.Apply}, {"mvcc", &m.MVCC}, {"persister", &m.Persister}, {"lease", &m.Lease},
	} {
		fs.IntVar(&s.limit.Requests, "mailbox-"+s.name+"-requests", 0, "Requests that the mailbox of the "+s.name+" holds; 0 is its default.")
		fs.Int64Var(&s.limit.Bytes, "mailbox-"+s.name+"-bytes", 0, "Bytes that the mailbox of the "+s.name+" holds; 0 is its default.")
	}
	fs.DurationVar(&p.ScrubPeriod, "scrub-period", defaultScrubPeriod, "Time in which everything stored is read back once, to find damage early; 0 is never.")
	fs.Int64Var(&p.CacheBytes, "cache-bytes", 0, "Bytes of the keyspace's records that are held in memory; 0 is a sixteenth of memory, 128 MiB at most.")
}

// isOther tells whether a flag is one of other.go.
func isOther(name string) bool {
	for _, group := range [][]other{notYet, dangerous, removed} {
		for i := range group {
			if group[i].name == name {
				return true
			}
		}
	}
	return false
}
