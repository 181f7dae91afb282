package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// linePeriod and linesMax bound what is logged of rejected connections: a client that is
	// rejected usually tries again at once.
	linePeriod = 10 * time.Second
	linesMax   = 10
	// clipBytes and clipNames bound what is logged of a certificate: its owner chooses it.
	clipBytes = 256
	clipNames = 8
)

// lineLimit admits linesMax lines in each linePeriod, and counts those that it does not.
type lineLimit struct {
	mu      sync.Mutex
	began   time.Time
	lines   int
	skipped int
}

func (l *lineLimit) admit(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) >= linePeriod {
		l.began, l.lines = now, 0
	}
	if l.lines == linesMax {
		l.skipped++
		return false
	}
	l.lines++
	return true
}

// take returns how many lines were not admitted since the last call; 0 before the end of the
// period.
func (l *lineLimit) take(now time.Time) (skipped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) < linePeriod {
		return 0
	}
	skipped, l.skipped = l.skipped, 0
	return skipped
}

func (e *Endpoint) logSkipped() {
	if n := e.rejected.take(e.cfg.Now()); n > 0 {
		e.cfg.Logger.Warn().Int("connections", n).Msg("rejected more connections on " + e.cfg.Name + " endpoint")
	}
}

// reject logs why a handshake failed.
func (e *Endpoint) reject(remote net.Addr, s tls.ConnectionState, err error) {
	if !e.rejected.admit(e.cfg.Now()) {
		return
	}
	line := e.cfg.Logger.Warn().Str("remote-addr", remote.String()).Str("server-name", clip(s.ServerName))
	presented := s.PeerCertificates
	if failed, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		presented = failed.UnverifiedCertificates
	}
	if len(presented) > 0 {
		line = line.Str("common-name", clip(presented[0].Subject.CommonName)).
			Strs("ip-addresses", addresses(presented[0])).Strs("dns-names", firstNames(presented[0].DNSNames))
	}
	line.Str("error", clip(err.Error())).Msg("rejected connection on " + e.cfg.Name + " endpoint")
}

func addresses(c *x509.Certificate) []string {
	all := make([]string, 0, clipNames)
	for _, ip := range c.IPAddresses[:min(len(c.IPAddresses), clipNames)] {
		all = append(all, ip.String())
	}
	return all
}

// firstNames returns the first names of a list, each of them clipped.
func firstNames(names []string) []string {
	all := make([]string, 0, clipNames)
	for _, name := range names[:min(len(names), clipNames)] {
		all = append(all, clip(name))
	}
	return all
}

func clip(s string) string {
	if len(s) > clipBytes {
		return s[:clipBytes] + "..."
	}
	return s
}
