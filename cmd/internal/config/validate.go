package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// ErrAdvertiseClientURLs: where to listen is set, and what to tell clients is not.
var ErrAdvertiseClientURLs = errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")

const (
	// maxElectionMillis is etcd's limit: beyond it a cluster without a leader
	// stays without one for longer than operators wait.
	maxElectionMillis = 50000
	// heartbeatsPerElection is how many heartbeats at least must fit into an
	// election timeout, so that the loss of one means nothing.
	heartbeatsPerElection = 5
	// recommendedRequestBytes is the largest --max-request-bytes without a
	// warning: larger requests hold up all others behind them.
	recommendedRequestBytes = 10 << 20
	// mostRequestBytes leaves room for gRPC's framing, whose sizes are 31 bits.
	mostRequestBytes = 1 << 30
)

// validate complains of what cannot work, in etcd's order.
func (p *parser) validate() error {
	for _, check := range []func() error{
		p.checkLog, p.checkURLs, p.checkBootstrapFlags, p.checkTiming, p.checkCompaction, p.checkLimits,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) checkLog() error {
	l := &p.Log
	switch {
	case p.logger != "zap":
		return fmt.Errorf("unknown logger option %q", p.logger)
	case l.Format != LogJSON && l.Format != LogConsole:
		return fmt.Errorf("unknown log format: %s, supported values json, console", l.Format)
	case len(l.Outputs) > 1 && slices.Contains(l.Outputs, LogDefault):
		return fmt.Errorf("multi logoutput for %q is not supported yet", LogDefault)
	case slices.Contains(l.Outputs, ""):
		return errors.New("--log-outputs must not contain an empty output")
	case slices.Contains(l.Outputs, logJournal):
		return fmt.Errorf("--log-outputs %s is not implemented yet; systemd takes what is written to %s", logJournal, LogStderr)
	}
	return nil
}

func (p *parser) checkURLs() error {
	c := &p.Config
	for _, urls := range [][]url.URL{c.ListenPeerURLs, c.ListenClientURLs, c.ListenMetricsURLs} {
		if err := checkBind(urls); err != nil {
			return err
		}
	}
	if err := checkHosts(c.AdvertisePeerURLs); err != nil {
		return fmt.Errorf(`--initial-advertise-peer-urls %q must be "host:port" (%w)`,
			strings.Join(urlStrings(c.AdvertisePeerURLs), ","), err)
	}
	if err := checkHosts(c.AdvertiseClientURLs); err != nil {
		return fmt.Errorf(`--advertise-client-urls %q must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (%w)`,
			strings.Join(urlStrings(c.AdvertiseClientURLs), ","), err)
	}
	return nil
}

// checkBind: one listens on addresses, not on names that may move.
func checkBind(urls []url.URL) error {
	for i := range urls {
		u := &urls[i]
		if u.Scheme == "https" || u.Scheme == "unixs" {
			return fmt.Errorf("TLS is not implemented yet (%s)", u)
		}
		if u.Scheme == "unix" {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host != "localhost" && net.ParseIP(host) == nil {
			return fmt.Errorf("expected IP in URL for binding (%s)", u)
		}
	}
	return nil
}

func checkHosts(urls []url.URL) error {
	for i := range urls {
		u := &urls[i]
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host == "" {
			return fmt.Errorf("unexpected empty host (%s)", u)
		}
	}
	return nil
}

func (p *parser) checkBootstrapFlags() error {
	for _, o := range dangerous {
		if p.given[o.name] && p.flags.Lookup(o.name).Value.String() != "" {
			return fmt.Errorf("--%s is not implemented yet, and ignoring it would start another member than you want", o.name)
		}
	}
	if p.fallback != "exit" {
		return fmt.Errorf("v2 proxy is deprecated, and --discovery-fallback can't be configured as %q", p.fallback)
	}
	return nil
}

func (p *parser) checkTiming() error {
	tick, election := p.heartbeatMillis, p.electionMillis
	switch {
	case tick == 0:
		return fmt.Errorf("--heartbeat-interval must be >0 (set to %dms)", tick)
	case election == 0:
		return fmt.Errorf("--election-timeout must be >0 (set to %dms)", election)
	case election/heartbeatsPerElection < tick:
		return fmt.Errorf("--election-timeout[%vms] should be at least as 5 times as --heartbeat-interval[%vms]", election, tick)
	case election > maxElectionMillis:
		return fmt.Errorf("--election-timeout[%vms] is too long, and should be set less than %vms", election, maxElectionMillis)
	case p.ListenClientURLs != nil && p.AdvertiseClientURLs == nil:
		return ErrAdvertiseClientURLs
	}
	return nil
}

func (p *parser) checkCompaction() error {
	switch p.AutoCompactionMode {
	case CompactPeriodic, CompactRevision:
		return nil
	case "":
		return errors.New("undefined auto-compaction-mode")
	}
	return fmt.Errorf("unknown auto-compaction-mode %q", p.AutoCompactionMode)
}

func (p *parser) checkLimits() error {
	c := &p.Config
	switch {
	case c.Name == "":
		return errors.New("--name must not be empty")
	case c.MaxRequestBytes == 0 || c.MaxRequestBytes > mostRequestBytes:
		return fmt.Errorf("--max-request-bytes must be between 1 and %d (set to %d)", mostRequestBytes, c.MaxRequestBytes)
	case c.MaxTxnOps == 0 || c.MaxTxnOps > mostRequestBytes:
		return fmt.Errorf("--max-txn-ops must be between 1 and %d (set to %d)", mostRequestBytes, c.MaxTxnOps)
	case c.MaxConcurrentStreams == 0:
		return errors.New("--max-concurrent-streams must be >0")
	case c.SnapshotCount == 0:
		return errors.New("--snapshot-count must be >0")
	case c.CacheBytes < 0:
		return fmt.Errorf("--cache-bytes must be >=0 (set to %d)", c.CacheBytes)
	}
	for name, d := range map[string]int64{
		"grpc-keepalive-min-time": int64(c.KeepaliveMinTime), "grpc-keepalive-interval": int64(c.KeepaliveInterval),
		"grpc-keepalive-timeout": int64(c.KeepaliveTimeout), "warning-apply-duration": int64(c.WarningApply),
		"warning-unary-request-duration": int64(c.WarningRequest), "scrub-period": int64(c.ScrubPeriod),
	} {
		if d < 0 {
			return fmt.Errorf("--%s must be >=0", name)
		}
	}
	if c.MaxRequestBytes > recommendedRequestBytes {
		p.warn("exceeded recommended request limit", "max-request-bytes", fmt.Sprint(c.MaxRequestBytes))
	}
	return c.Mailboxes.check()
}

func (m *Mailboxes) check() error {
	for _, l := range []MailboxLimit{m.Proposer, m.Raft, m.WAL, m.Apply, m.MVCC, m.Persister, m.Lease} {
		if l.Requests < 0 || l.Bytes < 0 {
			return errors.New("--mailbox-* must be >=0")
		}
	}
	return nil
}
