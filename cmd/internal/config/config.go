// Package config turns the command line and the environment of a member into a
// Config, with etcd's names, defaults, checks and error texts: a script or a
// manifest that starts etcd starts Troupe.
//
// Parse reads the flags of the registry (registry.go) from the command line, then
// from the environment, where --a-b is ETCD_A_B. A flag that works stores its value
// in the Config, usually directly in its Node. A flag of etcd that has no effect yet
// causes a Warning if it is given, or an error if ignoring it would do harm. Finally,
// derive computes the values that depend on several flags, and validate rejects what
// cannot work.
package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
)

// Config is the configuration of a member.
type Config struct {
	// Node configures the member, except for what the process provides: listeners,
	// logger, and the exit function. Bootstrap sets its ids and its cluster's members.
	Node node.Config

	ListenClientURLs []url.URL
	// ListenClientHTTPURLs, if any, serve HTTP alone, and ListenClientURLs then gRPC alone.
	ListenClientHTTPURLs []url.URL
	ListenPeerURLs       []url.URL
	ListenMetricsURLs    []url.URL // none by default
	AdvertiseClientURLs  []url.URL
	AdvertisePeerURLs    []url.URL
	ReusePort            bool // listen with SO_REUSEPORT

	// ClientTLS is for URLs with https or unixs that clients use, and PeerTLS for those of
	// members.
	ClientTLS, PeerTLS certs.Options
	// ClientAutoTLS and PeerAutoTLS have a certificate made if the options have none.
	ClientAutoTLS, PeerAutoTLS bool
	SelfSignedYears            int64 // validity of those
	// SkipPeerSAN accepts the certificates of members from any address.
	SkipPeerSAN  bool
	CipherSuites []string // by name; Parse sets those of ClientTLS and PeerTLS

	InitialCluster      string // name=url,name=url; see Bootstrap
	InitialClusterState string // StateNew or StateExisting
	InitialClusterToken string

	Log Log

	// Effective holds the final value of every flag that has an effect, for the
	// log.
	Effective map[string]string
}

// Values of --initial-cluster-state.
const (
	StateNew      = "new"
	StateExisting = "existing"
)

// Values of other flags.
const (
	compactPeriodic = "periodic"
	compactRevision = "revision"

	metricsExtensive = "extensive"
)

// Log configures the log.
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

// Warning is a problem with the configuration that does not prevent a member from
// starting.
type Warning struct {
	Text  string
	Name  string // of the flag or variable
	Value string
}

// Errors of Parse that report a request of the user, not a mistake.
var (
	// ErrHelp means that the user asked for the flags. See WriteHelp.
	ErrHelp = errors.New("config: help requested")
	// ErrVersion means that the user asked for the version.
	ErrVersion = errors.New("config: version requested")
)

// ErrShadowed means that a flag is given on the command line and in the environment
// too, so that one of the two would be ignored.
var ErrShadowed = errors.New("conflicting environment variable is shadowed by corresponding command-line flag " +
	"(either unset environment variable or disable flag))")

// UsageError is a command line that cannot be parsed. The process prints it with the
// usage and exits with code 2. Any other error of Parse is a configuration that
// cannot work; the process exits with code 1.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// parser is the state of Parse: the Config so far, and what does not belong into it.
type parser struct {
	Config
	flags *flag.FlagSet
	fromCommandLine,
	given map[string]bool // by name; given includes the environment

	compactionMode, retention string
	metrics, logger           string
	authToken                 string
	authTokenTTL, bcryptCost  int64
	version                   bool
	features                  featureGates
	tlsMin, tlsMax            string

	warnings []Warning
}

// Parse reads the command line, without the program's name, and the environment
// in the form of os.Environ. It returns the warnings with an error too.
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
	p.define()
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
	p.warnNoEffect()
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

// readEnvironment sets the flags that are not on the command line. A variable for a
// flag that is on the command line is an error, even if the variable is empty;
// otherwise an empty variable counts as absent.
func (p *parser) readEnvironment(environ []string) error {
	values := map[string]string{}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, envPrefix) {
			values[k] = v
		}
	}
	var shadowed, invalid error
	each(func(s *flagSpec) {
		key := s.env()
		text, ok := values[key]
		switch {
		case !ok:
		case s.name == "version":
			p.warn("cannot set special environment variable", key, text)
		case p.fromCommandLine[s.name]:
			if shadowed == nil {
				shadowed = fmt.Errorf("%w: %s", ErrShadowed, key)
			}
		case text == "":
			return
		default:
			if err := p.flags.Set(s.name, text); err != nil && invalid == nil {
				invalid = fmt.Errorf("invalid value %q for %s: %w", text, key, err)
			}
		}
		delete(values, key)
	})
	for _, key := range slices.Sorted(maps.Keys(values)) {
		p.warn("unrecognized environment variable", key, values[key])
	}
	if shadowed != nil {
		return shadowed
	}
	return invalid
}

func (p *parser) warn(text, name, value string) {
	p.warnings = append(p.warnings, Warning{text, name, value})
}

// leastWatchProgress is etcd's minimum: a shorter interval is raised to it.
const leastWatchProgress = 100 * time.Millisecond

// derive computes the values that depend on several flags.
func (p *parser) derive() error {
	n := &p.Node
	n.ExtensiveMetrics = p.metrics == metricsExtensive
	n.Features = p.features.list()
	n.SlowKeepAlive = !p.features.enabled(fastKeepAlive)
	n.CompactHashCheck, n.InitialCorruptCheck = p.features.enabled(compactHash), p.features.enabled(initialCorrupt)
	if n.Gateway.SlowRequest == 0 {
		n.Gateway.SlowRequest = grpcgw.DefaultSlowRequest
	}
	if n.Gateway.WatchProgress <= 0 {
		n.Gateway.WatchProgress = grpcgw.DefaultWatchProgress
	}
	n.Gateway.WatchProgress = max(n.Gateway.WatchProgress, leastWatchProgress)
	// A larger limit of the proposer needs a larger one of raft behind it.
	if !p.given["mailbox-raft-requests"] {
		n.Mailboxes.Raft.Requests = max(n.Mailboxes.Raft.Requests, 2*n.Mailboxes.Proposer.Requests)
	}
	// If only the URLs to listen on are given, the default to advertise is wrong.
	// validate then demands --advertise-client-urls.
	if p.given["listen-client-urls"] && !p.given["advertise-client-urls"] {
		p.AdvertiseClientURLs = nil
	}
	n.PeerURLs, n.ClientURLs = membership.URLStrings(p.AdvertisePeerURLs), membership.URLStrings(p.AdvertiseClientURLs)
	// If only a name is given, the initial cluster is that member.
	if n.Name != defaultName && p.InitialCluster == defaultInitialCluster {
		p.InitialCluster = pairs(n.Name, n.PeerURLs)
	}
	if n.DataDir == "" {
		n.DataDir = n.Name + ".etcd"
		p.warn("'data-dir' was empty; using default", "data-dir", n.DataDir)
	}
	if err := p.deriveAuth(); err != nil {
		return err
	}
	return p.deriveRetention()
}

// deriveAuth reads --auth-token and the files that it names.
func (p *parser) deriveAuth() error {
	a := &p.Node.Auth
	a.CertificateUsers = p.ClientTLS.ClientCertAuth
	var unknown []string
	var err error
	if a.Tokens, a.JWT, unknown, err = authn.ParseTokens(p.authToken, os.ReadFile); err != nil {
		return fmt.Errorf("invalid value for --auth-token: %w", err)
	}
	for _, option := range unknown {
		p.warn("unknown JWT option", "auth-token", option)
	}
	a.TokenTTL = time.Duration(min(p.authTokenTTL, math.MaxInt64/int64(time.Second))) * time.Second
	a.BcryptCost = int(min(p.bcryptCost, math.MaxInt32))
	if a.BcryptCost < bcryptCostMin || a.BcryptCost > bcryptCostMax {
		p.warn("use default bcrypt cost instead of the invalid given cost", "bcrypt-cost", strconv.Itoa(a.BcryptCost))
	}
	return nil
}

// Costs that bcrypt accepts.
const (
	bcryptCostMin = 4
	bcryptCostMax = 31
)

// leastRetention keeps automatic compaction, which polls ten times per period, from
// running all the time. etcd divides by zero below ten nanoseconds.
const leastRetention = 10 * time.Millisecond

// deriveRetention reads --auto-compaction-retention in the unit of the mode: a
// bare number is hours or revisions.
func (p *parser) deriveRetention() error {
	n, err := strconv.Atoi(p.retention)
	number := err == nil && n >= 0
	if p.compactionMode == compactRevision {
		if !number {
			return fmt.Errorf("error parsing CompactionRetention: %q is not a number of revisions", p.retention)
		}
		if n > 0 {
			p.Node.AutoCompact = mvccactor.KeepRevisions(int64(n))
		}
		return nil
	}
	period := time.Duration(n) * time.Hour
	if !number || time.Duration(n) > math.MaxInt64/time.Hour {
		if period, err = time.ParseDuration(p.retention); err != nil {
			return fmt.Errorf("error parsing CompactionRetention: %w", err)
		}
	}
	switch {
	case period < 0:
		return fmt.Errorf("error parsing CompactionRetention: %v is negative", period)
	case period > 0 && period < leastRetention:
		return fmt.Errorf("error parsing CompactionRetention: %v is below %v", period, leastRetention)
	case period > 0:
		p.Node.AutoCompact = mvccactor.KeepPeriod(period)
	}
	return nil
}

// effective returns the flags that have an effect, with their values.
func (p *parser) effective() map[string]string {
	all := map[string]string{}
	each(func(s *flagSpec) {
		if s.state == works && s.name != "version" {
			all[s.name] = p.flags.Lookup(s.name).Value.String()
		}
	})
	return all
}
