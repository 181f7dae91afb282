package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	// pollEvery is the interval at which the files are looked at. A change is in use after two
	// of them, and must be within five seconds.
	pollEvery = time.Second
	// handshakeTimeout bounds a handshake, as in etcd. A handshake takes two round trips.
	handshakeTimeout = 10 * time.Second
	// handshakesMax bounds the handshakes in progress. Each takes some 50 KiB, and while
	// crowded, in which case it has crowdedTimeout, at most two seconds: a hundred new clients per
	// second are served beside clients that never end their handshake.
	handshakesMax  = 256
	crowdedTimeout = 2 * time.Second
)

// Resolver looks up host names and addresses, like net.Resolver.
type Resolver interface {
	LookupAddr(ctx context.Context, addr string) (names []string, err error)
	LookupHost(ctx context.Context, host string) (addrs []string, err error)
}

// Config is what an Endpoint needs.
type Config struct {
	Options
	// Name is in the log: "client" or "peer".
	Name   string
	Logger zerolog.Logger
	// Now is the clock; nil is that of the process. Validity of certificates is a matter of
	// crypto/tls during a handshake, which uses this clock too.
	Now func() time.Time
	// Resolver finds the addresses of the names in certificates; nil is that of the process.
	Resolver Resolver
}

// Endpoint is the TLS of a member's clients, or of its peers. Its methods are safe for
// concurrent use.
type Endpoint struct {
	cfg      Config
	sources  []*source
	material atomic.Pointer[material]
	slots    chan struct{} // a token for each handshake in progress
	sessions sessions
	rejected lineLimit

	polling sync.Mutex    // held by Poll
	stop    chan struct{} // closed by Close
	once    sync.Once
	running sync.WaitGroup
}

// material is what the files had when they were last read. It is immutable.
type material struct {
	server *tls.Certificate // nil if the endpoint does not listen
	client *tls.Certificate // to connect with; nil if there is none
	roots  *authorities     // nil means those of the operating system
	crl    revocations
}

// Open reads the files and begins to watch them. The caller must Close the endpoint.
func Open(cfg Config) (*Endpoint, error) {
	if err := cfg.Options.validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	e := &Endpoint{cfg: cfg, slots: make(chan struct{}, handshakesMax), stop: make(chan struct{})}
	e.sessions.open = map[*session]struct{}{}
	e.addSources()
	m := &material{}
	for _, s := range e.sources {
		if err := s.begin(m); err != nil {
			return nil, err
		}
	}
	e.material.Store(m)
	if len(e.sources) > 0 {
		e.running.Go(e.watch) // until Close
	}
	return e, nil
}

// addSources lists the files of the endpoint.
func (e *Endpoint) addSources() {
	o := &e.cfg.Options
	add := func(what string, trust bool, load func(*material) error, paths ...string) {
		if paths[0] != "" {
			e.sources = append(e.sources, &source{what: what, paths: paths, trust: trust, load: load})
		}
	}
	add("certificate", false, func(m *material) (err error) {
		if m.server, err = loadPair(o.CertFile, o.KeyFile); err == nil && o.ClientCertFile == "" {
			m.client = m.server
		}
		return err
	}, o.CertFile, o.KeyFile)
	add("client certificate", false, func(m *material) (err error) {
		m.client, err = loadPair(o.ClientCertFile, o.ClientKeyFile)
		return err
	}, o.ClientCertFile, o.ClientKeyFile)
	add("trusted authorities", true, func(m *material) (err error) {
		m.roots, err = loadAuthorities(o.TrustedCAFile)
		return err
	}, o.TrustedCAFile)
	add("revocation list", true, func(m *material) (err error) {
		m.crl, err = loadRevocations(o.CRLFile)
		return err
	}, o.CRLFile)
}

// Close ends the watch of the files. Connections stay open.
func (e *Endpoint) Close() {
	e.once.Do(func() { close(e.stop) })
	e.running.Wait()
}

func (e *Endpoint) watch() {
	ticks := time.NewTicker(pollEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			e.Poll()
		case <-e.stop:
			return
		}
	}
}

// Poll looks at the files, and reads those that have changed since the last call but one. It
// is called every second.
func (e *Endpoint) Poll() {
	e.polling.Lock()
	defer e.polling.Unlock()
	e.logSkipped()
	next, changed, trust := *e.material.Load(), false, false
	for _, s := range e.sources {
		if s.poll(&next, e.cfg.Logger.With().Str("endpoint", e.cfg.Name).Logger()) {
			changed, trust = true, trust || s.trust
		}
	}
	if changed {
		e.material.Store(&next)
	}
	if trust {
		e.recheck()
	}
}

// base returns the part of a configuration that both sides have.
func (e *Endpoint) base() *tls.Config {
	return &tls.Config{
		Time: e.cfg.Now, MinVersion: e.cfg.minVersion(), MaxVersion: e.cfg.MaxVersion, CipherSuites: e.cfg.CipherSuites,
		// A resumed session would skip the verification of certificates. A ticket could not be
		// read again anyway, because each handshake has its own configuration.
		SessionTicketsDisabled: true,
		// Answers are written whole: small records at the beginning only cost.
		DynamicRecordSizingDisabled: true,
	}
}

// server returns the configuration of one handshake with a client. remote is its address.
func (e *Endpoint) server(ctx context.Context, m *material, o *ListenOptions, remote net.Addr) *tls.Config {
	cfg := e.base()
	cfg.Certificates = []tls.Certificate{*m.server}
	cfg.NextProtos = o.Protocols
	if e.cfg.Authenticates() {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if m.roots != nil {
		cfg.ClientCAs = m.roots.pool
	}
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return nil
		}
		if err := e.vet(m, s.PeerCertificates, s.VerifiedChains); err != nil {
			return err
		}
		if !o.CheckSAN {
			return nil
		}
		return e.checkAddress(ctx, s.PeerCertificates[0], remote)
	}
	return cfg
}

// client returns the configuration of one handshake with a server of the given name.
func (e *Endpoint) client(m *material, name string, protocols []string) *tls.Config {
	cfg := e.base()
	cfg.ServerName, cfg.NextProtos = name, protocols
	cfg.InsecureSkipVerify = e.cfg.SelfSigned
	if m.roots != nil {
		cfg.RootCAs = m.roots.pool
	}
	if m.client != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return m.client, nil }
	}
	if !e.cfg.SelfSigned {
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return e.vet(m, s.PeerCertificates, s.VerifiedChains) }
	}
	return cfg
}

// errNotAllowed is etcd's text.
var errNotAllowed = errors.New("client certificate authentication failed")

// vet checks of a verified certificate what crypto/tls does not: revocation and names.
func (e *Endpoint) vet(m *material, presented []*x509.Certificate, chains [][]*x509.Certificate) error {
	if err := m.crl.check(presented, chains, m.roots); err != nil {
		return err
	}
	var allowed func(*x509.Certificate) bool
	switch {
	case len(e.cfg.AllowedCNs) > 0:
		allowed = func(c *x509.Certificate) bool { return slices.Contains(e.cfg.AllowedCNs, c.Subject.CommonName) }
	case len(e.cfg.AllowedHostnames) > 0:
		allowed = func(c *x509.Certificate) bool {
			return slices.ContainsFunc(e.cfg.AllowedHostnames, func(name string) bool { return c.VerifyHostname(name) == nil })
		}
	default:
		return nil
	}
	if slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool { return len(chain) > 0 && allowed(chain[0]) }) {
		return nil
	}
	leaf := presented[0]
	return fmt.Errorf("%w: neither its common name %q nor its other names are allowed", errNotAllowed, clip(leaf.Subject.CommonName))
}
