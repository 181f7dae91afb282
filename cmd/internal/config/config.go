// Package config turns the command line and the environment of a member into a
// Config, under etcd's names, with etcd's defaults, rules and complaints: a
// script or a manifest that starts etcd starts Troupe.
//
// A flag --a-b may be given as the environment variable ETCD_A_B; the command
// line wins. Every flag of etcd 3.7 is known. Those that Troupe does not act on
// yet are accepted, and setting one to anything but its default gives a Warning
// (other.go). Where ignoring a flag would be dangerous it is an error instead.
package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is the configuration of a member.
type Config struct {
	Name    string
	DataDir string // "<name>.etcd" when not given
	WALDir  string // empty: below DataDir

	ListenClientURLs    []url.URL
	ListenPeerURLs      []url.URL
	ListenMetricsURLs   []url.URL // none by default
	AdvertiseClientURLs []url.URL
	AdvertisePeerURLs   []url.URL

	InitialCluster      string // name=url,name=url; see Bootstrap
	InitialClusterState string // StateNew or StateExisting
	InitialClusterToken string

	QuotaBytes           int64 // 0: the default of 2 GiB; below 0: none
	MaxRequestBytes      uint
	MaxTxnOps            uint
	MaxConcurrentStreams uint32
	WatchProgress        time.Duration // 0: the default of ten minutes

	SnapshotCount              uint64 // applied entries between raft snapshots
	HeartbeatInterval          time.Duration
	ElectionTimeout            time.Duration
	InitialElectionTickAdvance bool
	PreVote                    bool
	StrictReconfigCheck        bool

	AutoCompactionMode string // CompactPeriodic or CompactRevision
	// AutoCompactionPeriod and AutoCompactionRevisions say how much history is
	// kept, in the unit of the mode; the other one is zero. Both zero means no
	// automatic compaction.
	AutoCompactionPeriod    time.Duration
	AutoCompactionRevisions int64

	KeepaliveMinTime  time.Duration
	KeepaliveInterval time.Duration
	KeepaliveTimeout  time.Duration

	WarningApply   time.Duration // applies that take longer are logged
	WarningRequest time.Duration // unary requests that take longer are logged

	Pprof            bool
	ExtensiveMetrics bool
	Log              Log
	Mailboxes        Mailboxes
	CacheBytes       int64 // of the keyspace's records in memory; 0: the store's default
	Features         []Feature
	// ScrubPeriod is how long a pass over all stored packs takes that looks for
	// damage; 0 is never.
	ScrubPeriod time.Duration

	// Effective holds the final value of every flag that has an effect, for the
	// log.
	Effective map[string]string
}

// Values of flags that are a choice.
const (
	StateNew      = "new"
	StateExisting = "existing"

	CompactPeriodic = "periodic"
	CompactRevision = "revision"

	metricsBasic     = "basic"
	metricsExtensive = "extensive"
)

// Log says where the log goes.
type Log struct {
	Level   string   // debug, info, warn, error, panic or fatal
	Format  string   // LogJSON or LogConsole
	Outputs []string // LogDefault, LogStderr, LogStdout or paths of files
}

// Values of --log-format and --log-outputs.
const (
	LogJSON    = "json"
	LogConsole = "console"
	LogDefault = "default" // stderr
	LogStderr  = "stderr"
	LogStdout  = "stdout"

	logJournal = "systemd/journal"
)

// MailboxLimit bounds a mailbox. Zero is the default of its stage.
type MailboxLimit struct {
	Requests int
	Bytes    int64
}

// Mailboxes are the limits of the pipeline's mailboxes.
type Mailboxes struct {
	Proposer, Raft, WAL, Apply, MVCC, Persister, Lease MailboxLimit
}

// Warning is something odd in the configuration that does not keep a member from
// starting.
type Warning struct {
	Text  string
	Name  string // of the flag or variable
	Value string
}

// Errors of Parse that are no mistakes.
var (
	// ErrHelp: the user asked for the flags. See WriteHelp.
	ErrHelp = errors.New("config: help requested")
	// ErrVersion: the user asked for the version.
	ErrVersion = errors.New("config: version requested")
)

// UsageError is a command line that cannot be understood. The process says what
// is wrong, shows its usage and exits with code 2. Any other error of Parse is a
// configuration that cannot work, and exits with code 1.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// parser holds what becomes a Config while flags are being read.
type parser struct {
	Config
	flags *flag.FlagSet
	fromCommandLine,
	given map[string]bool // by name; given includes the environment

	heartbeatMillis, electionMillis uint
	retention                       string
	metrics, logger                 string
	version                         bool
	fallback                        string
	features                        featureGates

	warnings []Warning
}

// Parse reads the command line, without the program's name, and the environment
// in the form of os.Environ. Warnings are returned with an error too.
func Parse(args, environ []string) (*Config, []Warning, error) {
	p := newParser()
	if err := p.parse(args, environ); err != nil {
		return nil, p.warnings, err
	}
	return &p.Config, p.warnings, nil
}

func newParser() *parser {
	p := &parser{
		flags:           flag.NewFlagSet("troupe", flag.ContinueOnError),
		fromCommandLine: map[string]bool{},
		given:           map[string]bool{},
	}
	p.flags.SetOutput(io.Discard)
	p.flags.Usage = func() {}
	p.addFlags()
	p.addOtherFlags()
	return p
}

func (p *parser) parse(args, environ []string) error {
	err := p.flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return ErrHelp
	case err != nil:
		return &UsageError{err}
	case p.flags.NArg() > 0:
		return fmt.Errorf("%q is not a valid flag", p.flags.Arg(0))
	case p.version:
		return ErrVersion
	}
	p.flags.Visit(func(f *flag.Flag) { p.fromCommandLine[f.Name] = true })
	if err := p.readEnvironment(environ); err != nil {
		return err
	}
	p.flags.Visit(func(f *flag.Flag) { p.given[f.Name] = true })
	p.warnOthers()
	if err := p.derive(); err != nil {
		return err
	}
	if err := p.validate(); err != nil {
		return err
	}
	p.Effective = p.effective()
	return nil
}

const envPrefix = "ETCD_"

func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// readEnvironment sets what the command line left open. An empty variable counts
// as absent.
func (p *parser) readEnvironment(environ []string) error {
	values := map[string]string{}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, envPrefix) && v != "" {
			values[k] = v
		}
	}
	var first error
	p.flags.VisitAll(func(f *flag.Flag) {
		key := envName(f.Name)
		value, ok := values[key]
		delete(values, key)
		switch {
		case !ok || first != nil:
		case f.Name == "version":
			p.warn("environment variable has no effect", key, value)
		case p.fromCommandLine[f.Name]:
			p.warn("environment variable is overridden by the command line", key, value)
		default:
			if err := p.flags.Set(f.Name, value); err != nil {
				first = fmt.Errorf("invalid value %q for %s: %w", value, key, err)
			}
		}
	})
	for _, key := range slices.Sorted(maps.Keys(values)) {
		p.warn("unrecognized environment variable", key, values[key])
	}
	return first
}

func (p *parser) warn(text, name, value string) {
	p.warnings = append(p.warnings, Warning{text, name, value})
}

// derive computes what follows from several flags.
func (p *parser) derive() error {
	c := &p.Config
	c.HeartbeatInterval = millis(p.heartbeatMillis)
	c.ElectionTimeout = millis(p.electionMillis)
	c.ExtensiveMetrics = p.metrics == metricsExtensive
	c.Features = p.features.list()
	if c.WarningRequest == 0 {
		c.WarningRequest = defaultWarningRequest
	}
	// Whoever sets where to listen must say under which name clients come.
	if p.given["listen-client-urls"] && !p.given["advertise-client-urls"] {
		c.AdvertiseClientURLs = nil
	}
	// Only a name was given: the initial cluster is that member.
	if c.Name != defaultName && c.InitialCluster == defaultInitialCluster {
		c.InitialCluster = initialCluster(c.Name, c.AdvertisePeerURLs)
	}
	if c.DataDir == "" {
		c.DataDir = c.Name + ".etcd"
		p.warn("'data-dir' was empty; using default", "data-dir", c.DataDir)
	}
	return p.deriveRetention()
}

// maxMillis keeps a number of milliseconds from overflowing a Duration; whatever
// is as long is rejected anyway.
const maxMillis = math.MaxInt64 / uint(time.Millisecond)

func millis(n uint) time.Duration { return time.Duration(min(n, maxMillis)) * time.Millisecond }

func initialCluster(name string, urls []url.URL) string {
	pairs := make([]string, len(urls))
	for i := range urls {
		pairs[i] = name + "=" + urls[i].String()
	}
	return strings.Join(pairs, ",")
}

// deriveRetention reads --auto-compaction-retention in the unit of the mode: a
// bare number is hours or revisions.
func (p *parser) deriveRetention() error {
	n, err := strconv.Atoi(p.retention)
	switch number := err == nil && n >= 0; {
	case p.AutoCompactionMode == CompactRevision && number:
		p.AutoCompactionRevisions = int64(n)
	case p.AutoCompactionMode == CompactRevision:
		return fmt.Errorf("error parsing CompactionRetention: %q is not a number of revisions", p.retention)
	case number && time.Duration(n) <= math.MaxInt64/time.Hour:
		p.AutoCompactionPeriod = time.Duration(n) * time.Hour
	default:
		d, err := time.ParseDuration(p.retention)
		if err != nil {
			return fmt.Errorf("error parsing CompactionRetention: %w", err)
		}
		if d < 0 {
			return fmt.Errorf("error parsing CompactionRetention: %v is negative", d)
		}
		p.AutoCompactionPeriod = d
	}
	return nil
}

func (p *parser) effective() map[string]string {
	all := map[string]string{}
	p.flags.VisitAll(func(f *flag.Flag) {
		if !isOther(f.Name) && f.Usage != "" {
			all[f.Name] = f.Value.String()
		}
	})
	delete(all, "version")
	all["data-dir"] = p.DataDir
	all["initial-cluster"] = p.InitialCluster
	all["warning-unary-request-duration"] = p.WarningRequest.String()
	return all
}
