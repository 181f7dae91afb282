package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"sync"
	"time"
)

// session is an open connection whose other side has shown a certificate.
type session struct {
	certs []*x509.Certificate // as presented
	// server is the name that the certificate had to have; empty if it is a client's.
	server string
	began  time.Time
	abort  func() // closes the connection; it must not block
}

// sessions are the open ones of an endpoint.
type sessions struct {
	mu   sync.Mutex
	open map[*session]struct{}
}

func (l *sessions) add(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[s] = struct{}{}
}

func (l *sessions) remove(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, s)
}

// identity is what the verification of a session depends on.
type identity struct {
	certs  [sha256.Size]byte
	server string
}

// byIdentity returns the open sessions. There may be thousands with the same certificate.
func (l *sessions) byIdentity() map[identity][]*session {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[identity][]*session{}
	for s := range l.open {
		h := sha256.New()
		for _, c := range s.certs {
			h.Write(c.Raw)
		}
		id := identity{server: s.server}
		h.Sum(id.certs[:0])
		all[id] = append(all[id], s)
	}
	return all
}

// track adds a session that was verified with m. IMPORTANT: the session must be removed when its
// connection ends. If there is newer material, the session is verified with that too: a
// change of the files meanwhile did not see the session.
func (e *Endpoint) track(s *session, m *material) error {
	s.began = e.cfg.Now()
	e.sessions.add(s)
	newest := e.material.Load()
	if newest == m {
		return nil
	}
	err := e.verify(newest, s)
	if err != nil {
		e.sessions.remove(s)
	}
	return err
}

// recheck closes the connections whose certificates are no longer accepted.
func (e *Endpoint) recheck() {
	m := e.material.Load()
	for _, all := range e.sessions.byIdentity() {
		// The oldest of them counts: its handshake is the earliest at which the certificate was valid.
		oldest := all[0]
		for _, s := range all {
			if s.began.Before(oldest.began) {
				oldest = s
			}
		}
		err := e.verify(m, oldest)
		if err == nil {
			continue
		}
		for _, s := range all {
			s.abort()
		}
		leaf := oldest.certs[0]
		e.cfg.Logger.Warn().Str("endpoint", e.cfg.Name).Int("connections", len(all)).Str("common-name", clip(leaf.Subject.CommonName)).
			Str("error", clip(err.Error())).Msg("closed the connections of a certificate that is no longer accepted")
	}
}

// verify verifies the certificate of a session as its handshake did, with newer material. A
// certificate that has expired since is accepted.
func (e *Endpoint) verify(m *material, s *session) error {
	opts := x509.VerifyOptions{CurrentTime: e.cfg.Now(), DNSName: s.server, Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if s.server != "" {
		opts.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	if m.roots != nil {
		opts.Roots = m.roots.pool
	}
	for _, c := range s.certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := s.certs[0].Verify(opts)
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		opts.CurrentTime = s.began
		chains, err = s.certs[0].Verify(opts)
	}
	if err != nil {
		return err
	}
	return e.vet(m, s.certs, chains)
}
