package certs

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
)

// checkAddress returns an error unless a certificate belongs to the address that it is used
// from, as etcd does: one of its IP addresses, or one of its names according to the resolver.
// A certificate without either may be used from anywhere, and a unix socket has no address.
func (e *Endpoint) checkAddress(ctx context.Context, c *x509.Certificate, remote net.Addr) error {
	if len(c.IPAddresses) == 0 && len(c.DNSNames) == 0 || remote.Network() == "unix" {
		return nil
	}
	host, _, err := net.SplitHostPort(remote.String())
	if err != nil {
		return err
	}
	if len(c.IPAddresses) > 0 {
		if err = c.VerifyHostname(host); err == nil || len(c.DNSNames) == 0 {
			return err
		}
	}
	ok, err := e.resolves(ctx, host, c.DNSNames)
	switch {
	case ok:
		return nil
	case err != nil:
		return fmt.Errorf("tls: %q does not match any of DNSNames %q (%w)", host, firstNames(c.DNSNames), err)
	}
	return fmt.Errorf("tls: %q does not match any of DNSNames %q", host, firstNames(c.DNSNames))
}

// namesMax bounds the names of a certificate that are looked up: a client chooses them.
const namesMax = 64

// resolves reports whether an address belongs to one of the names: it resolves to the name, or
// the name to it. A wildcard is compared with the names of the address only.
func (e *Endpoint) resolves(ctx context.Context, host string, names []string) (ok bool, err error) {
	found, err := e.cfg.Resolver.LookupAddr(ctx, host)
	for _, name := range found {
		name = strings.TrimSuffix(name, ".")
		if slices.ContainsFunc(names, func(n string) bool { return n == name || isUnder(name, n) }) {
			return true, nil
		}
	}
	for _, name := range names[:min(len(names), namesMax)] {
		if strings.HasPrefix(name, "*.") {
			continue
		}
		addrs, failed := e.cfg.Resolver.LookupHost(ctx, name)
		if failed != nil {
			err = failed
			continue
		}
		if slices.Contains(addrs, host) {
			return true, nil
		}
	}
	return false, err
}

// isUnder reports whether a name is in the domain of a wildcard.
func isUnder(name, wildcard string) bool {
	domain, ok := strings.CutPrefix(wildcard, "*")
	return ok && strings.HasPrefix(domain, ".") && strings.HasSuffix(name, domain)
}
