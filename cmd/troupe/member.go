package main

import (
	"context"
	"net"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/node"
)

// runningMember is a node with the TLS of its listeners.
type runningMember struct {
	*node.Node
	security *security
}

// Stop implements member.
func (m *runningMember) Stop(ctx context.Context) error {
	defer m.security.close()
	return m.Node.Stop(ctx)
}

// startMember starts the member that a configuration describes. exit is called
// when the member cannot go on; it ends the process. ctx bounds the start only.
func startMember(ctx context.Context, cfg *config.Config, logger zerolog.Logger, exit func(error)) (m *runningMember, err error) {
	exists := core.DataDir{Path: cfg.Node.DataDir}.Exists()
	s, err := openSecurity(cfg, logger)
	if err != nil {
		return nil, err
	}
	var all []net.Listener
	defer func() {
		if err != nil {
			closeAll(all)
			s.close()
		}
	}()
	network := config.NewNetwork(s.peers.Transport())
	network.Failed = func(url string, err error) {
		logger.Warn().Str("address", url).Err(err).Msg("failed to get cluster response")
	}
	if err := cfg.Bootstrap(ctx, exists, network); err != nil {
		return nil, err
	}
	lists := make([][]net.Listener, 3)
	for i, sockets := range [][]socket{s.peerSockets, s.clientSockets, s.metricsSockets} {
		if lists[i], err = listen(sockets, cfg.ReusePort); err != nil {
			return nil, err
		}
		all = append(all, lists[i]...)
	}
	nc := cfg.Node
	nc.PeerListeners, nc.Listeners, nc.MetricsListeners = lists[0], lists[1], lists[2]
	nc.PeerCredentials, nc.PeerTransport = s.peers.Credentials(), s.peers.Transport()
	nc.Logger, nc.Exit = logger, exit
	nc.Memory = availableMemory()
	n, err := node.New(ctx, nc)
	if err != nil {
		return nil, err
	}
	for i, sockets := range [][]socket{s.peerSockets, s.clientSockets, s.metricsSockets} {
		for j := range sockets {
			sockets[j].log(logger, lists[i][j].Addr())
		}
	}
	return &runningMember{n, s}, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}
