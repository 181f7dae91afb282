package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// errSeveral: there is no transport between members yet.
var errSeveral = errors.New("--initial-cluster names several members: only clusters of one member can be started")

// startMember starts the member that a configuration describes. exit is called
// when the member cannot go on; it ends the process.
func startMember(cfg *config.Config, logger zerolog.Logger, exit func(error)) (*node.Node, error) {
	boot, err := cfg.Bootstrap()
	if err != nil && !node.Exists(cfg.DataDir) {
		return nil, err // with data, flags of the first start need not make sense any more
	}
	if boot != nil && len(boot.Members) > 1 {
		return nil, errSeveral
	}
	clients, err := listen(cfg.ListenClientURLs)
	if err != nil {
		return nil, err
	}
	monitors, err := listen(cfg.ListenMetricsURLs)
	if err != nil {
		return nil, err
	}
	nc := node.Config{
		Name:             cfg.Name,
		PeerURLs:         texts(cfg.AdvertisePeerURLs),
		ClientURLs:       texts(cfg.AdvertiseClientURLs),
		DataDir:          cfg.DataDir,
		WALDir:           cfg.WALDir,
		Heartbeat:        cfg.HeartbeatInterval,
		Election:         cfg.ElectionTimeout,
		PreVote:          cfg.PreVote,
		Mailboxes:        mailboxes(cfg.Mailboxes),
		CacheBytes:       cfg.CacheBytes,
		ScrubPeriod:      cfg.ScrubPeriod,
		AutoCompact:      autoCompact(cfg),
		SlowKeepAlive:    !enabled(cfg.Features, "FastLeaseKeepAlive"),
		Listeners:        clients,
		MetricsListeners: monitors,
		Gateway:          gateway(cfg),
		SlowApply:        cfg.WarningApply,
		Pprof:            cfg.Pprof,
		ExtensiveMetrics: cfg.ExtensiveMetrics,
		Features:         features(cfg.Features),
		Logger:           logger,
		Exit:             exit,
	}
	if nc.CacheBytes == 0 {
		nc.CacheBytes = node.DefaultCacheBytes(availableMemory())
	}
	if boot != nil {
		nc.ClusterID, nc.MemberID = boot.ClusterID, boot.MemberID
		for _, m := range boot.Members {
			nc.Members = append(nc.Members, &applymsg.Member{Id: m.ID, Name: m.Name, PeerUrls: m.PeerURLs})
		}
	}
	return node.New(nc)
}

func features(gates []config.Feature) []grpcgw.Feature {
	var out []grpcgw.Feature
	for _, f := range gates {
		out = append(out, grpcgw.Feature(f))
	}
	return out
}

func enabled(gates []config.Feature, name string) bool {
	return slices.ContainsFunc(gates, func(f config.Feature) bool { return f.Name == name && f.Enabled })
}

// leastWatchProgress is etcd's: what is asked for below it is raised to it.
const leastWatchProgress = 100 * time.Millisecond

func gateway(cfg *config.Config) grpcgw.Config {
	g := grpcgw.DefaultConfig()
	g.MaxRequestBytes = int(cfg.MaxRequestBytes)
	g.MaxTxnOps = int(cfg.MaxTxnOps)
	g.MaxConcurrentStreams = cfg.MaxConcurrentStreams
	g.QuotaBytes = cfg.QuotaBytes
	if cfg.WarningRequest > 0 { // etcd takes 0 for its default too
		g.SlowRequest = cfg.WarningRequest
	}
	if cfg.WatchProgress > 0 {
		g.WatchProgress = max(cfg.WatchProgress, leastWatchProgress)
	}
	g.KeepaliveMinTime = cfg.KeepaliveMinTime
	g.KeepaliveInterval = cfg.KeepaliveInterval
	g.KeepaliveTimeout = cfg.KeepaliveTimeout
	return g
}

func autoCompact(cfg *config.Config) mvccactor.AutoCompact {
	switch {
	case cfg.AutoCompactionPeriod > 0:
		return mvccactor.KeepPeriod(cfg.AutoCompactionPeriod)
	case cfg.AutoCompactionRevisions > 0:
		return mvccactor.KeepRevisions(cfg.AutoCompactionRevisions)
	}
	return nil
}

// mailboxes puts what flags say over the defaults.
func mailboxes(flags config.Mailboxes) node.Mailboxes {
	m := node.DefaultMailboxes()
	for _, f := range []struct {
		limit *actors.Limit
		flag  config.MailboxLimit
	}{
		{&m.Proposer, flags.Proposer}, {&m.Raft, flags.Raft}, {&m.WAL, flags.WAL},
		{&m.Apply, flags.Apply}, {&m.MVCC, flags.MVCC}, {&m.Persister, flags.Persister},
		{&m.Lease, flags.Lease},
	} {
		if f.flag.Requests > 0 {
			f.limit.Requests = f.flag.Requests
		}
		if f.flag.Bytes > 0 {
			f.limit.Bytes = f.flag.Bytes
		}
	}
	// Whoever lets the proposer accept more means it to pass them on.
	if flags.Raft.Requests == 0 {
		m.Raft.Requests = max(m.Raft.Requests, 2*m.Proposer.Requests)
	}
	return m
}

func texts(urls []url.URL) []string {
	var out []string
	for _, u := range urls {
		out = append(out, u.String())
	}
	return out
}

// listen opens a listener for each URL. The sockets of a member that was killed
// are taken over.
func listen(urls []url.URL) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
		}
	}()
	for _, u := range urls {
		network, address := "tcp", u.Host
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			network, address = "unix", u.Host+u.Path
			if err := os.Remove(address); err != nil && !os.IsNotExist(err) {
				return listeners, fmt.Errorf("listen on %s: %w", u.String(), err)
			}
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return listeners, fmt.Errorf("listen on %s: %w", u.String(), err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}
