package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"

	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/cmd/internal/certs"
)

// ErrAdvertiseClientURLs means that the URLs to listen on are given, and the URLs to
// advertise are not.
var ErrAdvertiseClientURLs = errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")

const (
	// maxElectionMillis is etcd's limit: with a longer timeout, a cluster that loses
	// its leader would be unavailable for too long.
	maxElectionMillis = 50000
	// heartbeatsPerElection is the least number of heartbeats per election timeout, so
	// that a lost heartbeat causes no election.
	heartbeatsPerElection = 5
	// recommendedRequestBytes is the largest --max-request-bytes without a
	// warning: larger requests delay those behind them.
	recommendedRequestBytes = 10 << 20
	// mostRequestBytes leaves room for gRPC's framing, whose sizes are 31 bits.
	mostRequestBytes = 1 << 30
)

// validate rejects what cannot work, in etcd's order.
func (p *parser) validate() error {
	for _, check := range []func() error{
		p.checkLog, p.checkURLs, p.checkRefused, p.checkTiming, p.checkCompaction, p.checkUnused, p.checkTLS, p.checkLimits,
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
	for _, urls := range [][]url.URL{c.ListenPeerURLs, c.ListenClientURLs, c.ListenClientHTTPURLs, c.ListenMetricsURLs} {
		if err := checkBind(urls); err != nil {
			return err
		}
	}
	if err := checkHosts(c.AdvertisePeerURLs); err != nil {
		return fmt.Errorf(`--initial-advertise-peer-urls %q must be "host:port" (%w)`,
			strings.Join(membership.URLStrings(c.AdvertisePeerURLs), ","), err)
	}
	if err := checkHosts(c.AdvertiseClientURLs); err != nil {
		return fmt.Errorf(`--advertise-client-urls %q must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (%w)`,
			strings.Join(membership.URLStrings(c.AdvertiseClientURLs), ","), err)
	}
	return nil
}

// checkBind rejects host names: a listener needs an address, and a name's may
// change.
func checkBind(urls []url.URL) error {
	for i := range urls {
		u := &urls[i]
		if u.Scheme == "unix" || u.Scheme == "unixs" {
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

// checkRefused rejects flags that are not implemented and must not be ignored.
func (p *parser) checkRefused() (err error) {
	if fallback := p.flags.Lookup("discovery-fallback"); fallback.Value.String() != fallback.DefValue {
		return fmt.Errorf("v2 proxy is deprecated, and --discovery-fallback can't be configured as %q", fallback.Value)
	}
	each(func(s *flagSpec) {
		if value, ok := p.ineffective(s); ok && err == nil && s.state == refused {
			err = fmt.Errorf("--%s=%s is not implemented: %s", s.name, value, s.usage)
		}
	})
	return err
}

func (p *parser) checkTiming() error {
	tick, election := p.Node.Heartbeat.Milliseconds(), p.Node.Election.Milliseconds()
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
	switch p.compactionMode {
	case compactPeriodic, compactRevision:
		return nil
	case "":
		return errors.New("undefined auto-compaction-mode")
	}
	return fmt.Errorf("unknown auto-compaction-mode %q", p.compactionMode)
}

// checkUnused applies etcd's limits to feature gates that have no effect.
func (p *parser) checkUnused() error {
	if p.features.enabled("LeaseCheckpointPersist") && !p.features.enabled("LeaseCheckpoint") {
		return errors.New("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")
	}
	return nil
}

// checkTLS reads the versions and cipher suites of TLS.
func (p *parser) checkTLS() error {
	lowest, err := tlsutil.GetTLSVersion(p.tlsMin)
	if err != nil {
		return err
	}
	highest, err := tlsutil.GetTLSVersion(p.tlsMax)
	if err != nil {
		return err
	}
	switch {
	case highest != 0 && lowest > highest:
		return fmt.Errorf("min version (%s) is greater than max version (%s)", p.tlsMin, p.tlsMax)
	case lowest == tls.VersionTLS13 && len(p.CipherSuites) > 0:
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled")
	}
	suites, err := tlsutil.GetCipherSuites(p.CipherSuites)
	if err != nil {
		return err
	}
	for _, o := range []*certs.Options{&p.ClientTLS, &p.PeerTLS} {
		o.MinVersion, o.MaxVersion, o.CipherSuites = lowest, highest, suites
	}
	return nil
}

func (p *parser) checkLimits() error {
	n, g := &p.Node, &p.Node.Gateway
	switch {
	case n.Name == "":
		return errors.New("--name must not be empty")
	case g.MaxRequestBytes == 0 || g.MaxRequestBytes > mostRequestBytes:
		return fmt.Errorf("--max-request-bytes must be between 1 and %d (set to %d)", mostRequestBytes, g.MaxRequestBytes)
	case g.MaxTxnOps == 0 || g.MaxTxnOps > mostRequestBytes:
		return fmt.Errorf("--max-txn-ops must be between 1 and %d (set to %d)", mostRequestBytes, g.MaxTxnOps)
	case n.CompactHashCheckTime <= 0:
		return fmt.Errorf("--compact-hash-check-time must be >0 (set to %v)", n.CompactHashCheckTime)
	case g.MaxConcurrentStreams == 0:
		return errors.New("--max-concurrent-streams must be >0")
	}
	for name, d := range map[string]time.Duration{
		"grpc-keepalive-min-time": g.KeepaliveMinTime, "grpc-keepalive-interval": g.KeepaliveInterval,
		"grpc-keepalive-timeout": g.KeepaliveTimeout, "warning-apply-duration": n.SlowApply,
		"warning-unary-request-duration": g.SlowRequest, "scrub-period": n.ScrubPeriod,
		"corrupt-check-time": n.CorruptCheckTime,
	} {
		if d < 0 {
			return fmt.Errorf("--%s must be >=0", name)
		}
	}
	if g.MaxRequestBytes > recommendedRequestBytes {
		p.warn("exceeded recommended request limit", "max-request-bytes", strconv.Itoa(g.MaxRequestBytes))
	}
	return nil
}
