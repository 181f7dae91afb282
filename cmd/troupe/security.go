package main

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/grpcgw"
)

// security is the TLS of a member, and the sockets that it listens on.
type security struct {
	clients *certs.Endpoint // nil if no URL of clients has TLS
	peers   *certs.Endpoint

	peerSockets, clientSockets, metricsSockets []socket
}

func (s *security) close() {
	for _, e := range []*certs.Endpoint{s.clients, s.peers} {
		if e != nil {
			e.Close()
		}
	}
}

// Errors of etcd.
var errMetricsTLS = errors.New("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")

// openSecurity reads the TLS files, or makes certificates, and decides what to listen on.
func openSecurity(cfg *config.Config, logger zerolog.Logger) (*security, error) {
	s := &security{}
	err := s.openPeers(cfg, logger)
	if err == nil {
		err = s.openClients(cfg, logger)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *security) openPeers(cfg *config.Config, logger zerolog.Logger) error {
	o, err := autoTLS{"peer", "--peer-auto-tls", cfg.PeerAutoTLS, cfg.PeerTLS, cfg.ListenPeerURLs}.complete(cfg, logger)
	if err != nil {
		return err
	}
	for _, u := range cfg.ListenPeerURLs {
		if isSecure(u) && o.Empty() {
			return fmt.Errorf("cannot listen on TLS for %s: KeyFile and CertFile are not presented", u.Host+u.Path)
		}
		if u.Scheme == "http" {
			warnPlain(logger, o, "peer-url", u, "scheme is HTTP", "--peer-client-cert-auth")
		}
	}
	if s.peers, err = open("peer", o, logger); err != nil {
		return err
	}
	s.peerSockets = socketsOf(cfg.ListenPeerURLs, socket{endpoint: s.peers, checkSAN: !cfg.SkipPeerSAN,
		text: "serving peer traffic", traffic: "peer"})
	return nil
}

func (s *security) openClients(cfg *config.Config, logger zerolog.Logger) error {
	urls := slices.Concat(cfg.ListenClientURLs, cfg.ListenClientHTTPURLs)
	o, err := autoTLS{"client", "--auto-tls", cfg.ClientAutoTLS, cfg.ClientTLS, urls}.complete(cfg, logger)
	if err != nil {
		return err
	}
	for _, u := range urls {
		switch {
		case !isSecure(u):
			warnPlain(logger, o, "client-url", u, "scheme is http or unix", "--client-cert-auth")
		case o.Empty():
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme", u.String())
		}
	}
	if slices.ContainsFunc(cfg.ListenMetricsURLs, isSecure) && o.Empty() {
		return errMetricsTLS
	}
	if slices.ContainsFunc(urls, isSecure) || slices.ContainsFunc(cfg.ListenMetricsURLs, isSecure) {
		if s.clients, err = open("client", o, logger); err != nil {
			return err
		}
	}
	pattern := socket{endpoint: s.clients, text: "serving client traffic", traffic: "grpc+http"}
	metrics := pattern
	metrics.traffic = "metrics"
	metrics.checkSAN = true // as etcd does there, and only there
	s.metricsSockets = socketsOf(cfg.ListenMetricsURLs, metrics)
	if len(cfg.ListenClientHTTPURLs) > 0 {
		pattern.only, pattern.traffic = grpcgw.OnlyGRPC, "grpc"
	}
	s.clientSockets = socketsOf(cfg.ListenClientURLs, pattern)
	pattern.only, pattern.traffic = grpcgw.OnlyHTTP, "http"
	for _, h := range socketsOf(cfg.ListenClientHTTPURLs, pattern) {
		if slices.ContainsFunc(s.clientSockets, func(c socket) bool { return c.network == h.network && c.address == h.address }) {
			return fmt.Errorf("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url %s", h.url.String())
		}
		s.clientSockets = append(s.clientSockets, h)
	}
	return nil
}

// warnPlain warns that the TLS flags do not count for a URL, in etcd's words.
func warnPlain(logger zerolog.Logger, o certs.Options, key string, u url.URL, scheme, auth string) {
	if !o.Empty() {
		logger.Warn().Str(key, u.String()).Msg(scheme + " while key and cert files are present; ignoring key and cert files")
	}
	if o.ClientCertAuth {
		logger.Warn().Str(key, u.String()).Msg(scheme + " while " + auth + " is enabled; ignoring client cert auth for this URL")
	}
}

// open opens an endpoint.
func open(name string, o certs.Options, logger zerolog.Logger) (*certs.Endpoint, error) {
	if !o.Empty() {
		logger.Info().Str("tls-info", o.String()).Msg("starting with " + name + " TLS")
	}
	if !o.Authenticates() && (o.CRLFile != "" || len(o.AllowedCNs) > 0 || len(o.AllowedHostnames) > 0) {
		logger.Warn().Str("endpoint", name).
			Msg("names and revocation of certificates do not count for those that connect, because no certificate is demanded of them: give a trusted CA file")
	}
	e, err := certs.Open(certs.Config{Options: o, Name: name, Logger: logger})
	if err != nil {
		return nil, fmt.Errorf("%s TLS: %w", name, err)
	}
	return e, nil
}

// autoTLS is whether to make a certificate.
type autoTLS struct {
	name, flag string
	wanted     bool
	options    certs.Options
	urls       []url.URL // that the certificate is for
}

// complete returns the options, with a certificate that was made if one is wanted and none given.
func (a autoTLS) complete(cfg *config.Config, logger zerolog.Logger) (certs.Options, error) {
	o := a.options
	if !a.wanted {
		return o, nil
	}
	if !o.Empty() {
		logger.Warn().Msg("ignoring " + a.name + " auto TLS since certs given")
		return o, nil
	}
	if err := o.CheckSelfSigned(); err != nil {
		return o, fmt.Errorf("%s: %w", a.flag, err)
	}
	var hosts []string
	for _, u := range a.urls {
		hosts = append(hosts, u.Host)
	}
	dir := filepath.Join(cfg.Node.DataDir, "fixtures", a.name)
	var created bool
	var err error
	if o.CertFile, o.KeyFile, created, err = certs.SelfSign(dir, hosts, cfg.SelfSignedYears, time.Now()); err != nil {
		return o, fmt.Errorf("failed to get %s self-signed certs: %w", a.name, err)
	}
	o.SelfSigned = true
	if created {
		logger.Warn().Str("path", o.CertFile).Int64("years", cfg.SelfSignedYears).Msg("automatically generate certificates")
	}
	return o, nil
}
