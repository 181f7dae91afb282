package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"syscall"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/node"
)

// startMember starts the member that a configuration describes. exit is called
// when the member cannot go on; it ends the process.
func startMember(cfg *config.Config, logger zerolog.Logger, exit func(error)) (*node.Node, error) {
	exists := core.DataDir{Path: cfg.Node.DataDir}.Exists()
	if err := cfg.Bootstrap(context.Background(), exists, config.NewNetwork()); err != nil {
		return nil, err
	}
	var all []net.Listener
	lists := make([][]net.Listener, 3)
	for i, urls := range [][]url.URL{cfg.ListenPeerURLs, cfg.ListenClientURLs, cfg.ListenMetricsURLs} {
		var err error
		if lists[i], err = listen(urls, cfg.ReusePort); err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, lists[i]...)
	}
	nc := cfg.Node
	nc.PeerListeners, nc.Listeners, nc.MetricsListeners = lists[0], lists[1], lists[2]
	nc.Logger, nc.Exit = logger, exit
	nc.Memory = availableMemory()
	n, err := node.New(nc)
	if err != nil {
		closeAll(all)
		return nil, err
	}
	logListeners(logger, "serving peer traffic", "peer", nc.PeerListeners)
	logListeners(logger, "serving client traffic", "grpc+http", nc.Listeners)
	logListeners(logger, "serving client traffic", "metrics", nc.MetricsListeners)
	return n, nil
}

// logListeners logs the addresses of the listeners: with port 0, the kernel chooses
// the port.
func logListeners(logger zerolog.Logger, text, traffic string, listeners []net.Listener) {
	for _, l := range listeners {
		logger.Info().Str("traffic", traffic).Str("address", l.Addr().String()).Msg(text)
	}
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// listen opens a listener for each URL. It replaces a socket file that a killed
// member left behind.
func listen(urls []url.URL, reusePort bool) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	var lc net.ListenConfig
	if reusePort {
		lc.Control = setReusePort
	}
	for _, u := range urls {
		network, address := "tcp", u.Host
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			network, address = "unix", u.Host+u.Path
			if err := os.Remove(address); err != nil && !os.IsNotExist(err) {
				return listeners, fmt.Errorf("listen on %s: %w", u.String(), err)
			}
		}
		l, err := lc.Listen(context.Background(), network, address)
		if err != nil {
			return listeners, fmt.Errorf("listen on %s: %w", u.String(), err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
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
