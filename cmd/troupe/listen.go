package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"syscall"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/grpcgw"
)

// socket is an address to listen on. Several URLs may have the same one: as http and https, it
// serves clients with and without TLS.
type socket struct {
	network, address string
	url              url.URL // the first one
	plain            bool
	// endpoint is the TLS of clients that speak it; nil if the socket serves none.
	endpoint *certs.Endpoint
	checkSAN bool // of clients' certificates

	text, traffic string // for the log
	only          grpcgw.Only
}

// isSecure reports whether a URL is one of TLS.
func isSecure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// socketsOf returns the sockets of URLs. Other fields are those of the pattern.
func socketsOf(urls []url.URL, pattern socket) (sockets []socket) {
	for _, u := range urls {
		network, address := "tcp", u.Host
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			network, address = "unix", u.Host+u.Path
		}
		i := slices.IndexFunc(sockets, func(s socket) bool { return s.network == network && s.address == address })
		if i < 0 {
			s := pattern
			s.network, s.address, s.url, s.endpoint = network, address, u, nil
			sockets, i = append(sockets, s), len(sockets)
		}
		if isSecure(u) {
			sockets[i].endpoint = pattern.endpoint
		} else {
			sockets[i].plain = true
		}
	}
	return sockets
}

// log logs the address of the listener: with port 0, the kernel chooses the port.
func (s *socket) log(logger zerolog.Logger, addr net.Addr) {
	if s.plain {
		logger.Info().Str("traffic", s.traffic).Stringer("address", addr).Msg(s.text)
	}
	if s.endpoint != nil {
		logger.Info().Str("traffic", s.traffic).Stringer("address", addr).Msg(s.text + " securely")
	}
}

// listen opens a listener for each socket. It replaces a socket file that a killed
// member left behind.
func listen(sockets []socket, reusePort bool) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	var lc net.ListenConfig
	if reusePort {
		lc.Control = setReusePort
	}
	for _, s := range sockets {
		if s.network == "unix" {
			if err := os.Remove(s.address); err != nil && !os.IsNotExist(err) {
				return listeners, fmt.Errorf("listen on %s: %w", s.url.String(), err)
			}
		}
		l, err := lc.Listen(context.Background(), s.network, s.address)
		if err != nil {
			return listeners, fmt.Errorf("listen on %s: %w", s.url.String(), err)
		}
		listeners = append(listeners, s.wrap(l))
	}
	return listeners, nil
}

// wrap makes a listener speak what the socket serves.
func (s *socket) wrap(l net.Listener) net.Listener {
	if s.endpoint != nil {
		// gRPC's clients offer HTTP/2 alone; for others HTTP/1.1 is cheaper.
		protocols := []string{certs.HTTP1, certs.HTTP2}
		if s.only == grpcgw.OnlyGRPC {
			protocols = []string{certs.HTTP2}
		}
		l = s.endpoint.Listen(l, certs.ListenOptions{Plain: s.plain, CheckSAN: s.checkSAN, Protocols: protocols})
	}
	if s.only != 0 {
		l = grpcgw.Restrict(l, s.only)
	}
	return l
}

func setReusePort(network, _ string, conn syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	var err error
	if cerr := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}
