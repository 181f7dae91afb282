// Package node assembles a whole member: the supervision tree, the gateway in front of it,
// and the loops at its edge. The daemon and tests use the same member.
package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/watchactor"
)

// Node is a running member.
type Node struct {
	cfg      Config
	id       core.Identity
	metrics  metrics
	gateway  *grpcgw.Gateway
	system   *actor.ActorSystem
	core     *actors.Core
	edge     *actors.Edge
	loops    *mvccactor.Compactor
	monitor  *http.Server
	peers    *peer.Transport
	reconfig *grpcgw.Reconfig

	host      *core.Host
	requests  *requests
	shared    core.Shared
	registry  *actors.Registry
	watches   *watchactor.Streams
	reads     *grpcgw.Reads
	auth      grpcgw.AuthConfig
	trouble   trouble
	space     space
	integrity integrity
	files     descriptors
	hasher    atomic.Pointer[actors.Handle]
	forwarder atomic.Pointer[actors.Handle]
	watchHub  atomic.Pointer[actors.Handle]
	monitors  monitors

	leaving  atomic.Bool   // removed was called
	left     chan struct{} // closed by removed
	ready    chan struct{} // closed once the member serves
	done     chan error    // receives an error if serving fails
	stop     sync.Once
	stopping chan struct{} // closed by Stop
}

// New starts a member: it opens or creates the data directory, boots the core and serves.
// It returns when the core runs. Ready is closed when the calls of clients succeed.
//
// ctx bounds the start only, which may wait for the snapshot or for the hashes of another
// member. If ctx ends meanwhile, New leaves nothing running and returns core.ErrStopping or
// the error of ctx.
func New(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	limit, err := descriptorLimit()
	if err != nil {
		return nil, err
	}
	if err := checkDescriptors(limit, cfg.dir().StoreDir(), cfg.dir().LogDir()); err != nil {
		return nil, err
	}
	id, stray, err := core.OpenDataDir(cfg.dir(), core.Identity{ClusterID: cfg.ClusterID, MemberID: cfg.MemberID,
		Name: cfg.Name, PeerURLs: cfg.PeerURLs, Joined: cfg.Join}, rand.Uint64)
	if err != nil {
		return nil, err
	}
	if stray != "" {
		cfg.Logger.Warn().Str("file", stray).
			Msg("etcd was started on this data directory and left a file, which is not used and may be removed")
	}
	cfg.ClusterID, cfg.MemberID = id.ClusterID, id.MemberID
	cfg.Join = cfg.Join || id.Joined
	n := &Node{
		files:    descriptors{limit: limit, count: descriptorsUsed, now: time.Now},
		cfg:      cfg,
		id:       id,
		shared:   core.NewShared(),
		registry: actors.NewRegistry(),
		ready:    make(chan struct{}),
		done:     make(chan error, 1),
		stopping: make(chan struct{}),
		left:     make(chan struct{}),
	}
	n.reads = grpcgw.NewReads(cfg.Mailboxes.Reads, grpcgw.DefaultReadWait)
	n.registry.Add(n.reads.Gate())
	n.watches = n.newWatches()
	if n.auth, err = newAuth(&cfg); err != nil {
		return nil, err
	}
	n.metrics = n.newMetrics()
	n.host = core.New(n.coreConfig(id), n.shared, n.wait)
	if n.monitors, err = n.newMonitors(); err != nil {
		return nil, err
	}
	n.requests = &requests{Client: n.host.Requests, n: n}
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *Node) coreConfig(id core.Identity) core.Config {
	cfg := &n.cfg
	members := cfg.Members
	if cfg.Join {
		members = nil // the cluster exists, and the member gets its log from the leader
	}
	return core.Config{
		Dir: cfg.dir(), Identity: id, Members: members, Storage: cfg.Storage,
		Heartbeat: cfg.Heartbeat, Election: cfg.Election, PreVote: cfg.PreVote,
		Mailboxes: cfg.Mailboxes.Mailboxes, CacheBytes: cfg.CacheBytes,
		RequestTimeout: cfg.requestTimeout(), MinLeaseTTL: cfg.minLeaseTTL(),
		LeaseCheckpoint: cfg.LeaseCheckpoint, SlowKeepAlive: cfg.SlowKeepAlive, LeaseClock: cfg.LeaseClock,
		Join: cfg.Join, ForceNewCluster: cfg.ForceNewCluster, Disk: disk{n}, Metrics: n.metrics.core,
		CatchUpEntries: uint64(cfg.SnapshotCatchUpEntries), SnapshotSendRate: cfg.SnapshotSendRate, TailBytes: cfg.CatchUpBytes,
		Reboot: func(reason error) { n.core.Reboot(reason) }, Removed: n.removed, LeaseForwarder: n.forwarderBox,
		Corrupt: n.corrupt, Damaged: n.integrity.damaged.Load, Replaced: n.integrity.reset, Hash: n.wakeHash,
		Tokens: n.auth.Tokens, Rand: rand.Uint64,
		Exit: cfg.Exit, Logger: cfg.Logger, Faults: cfg.Faults,
	}
}

func (n *Node) start(ctx context.Context) (err error) {
	release := context.AfterFunc(ctx, n.host.Stop)
	defer func() {
		release()
		if err != nil {
			err = errors.Join(err, n.abort())
		}
	}()
	n.system = actors.NewSystem(n.cfg.Logger)
	n.registry.Observe(n.system)
	n.edge, err = actors.StartEdge(n.system, actors.EdgeConfig{Registry: n.registry, Logger: n.cfg.Logger})
	if err != nil {
		return err
	}
	if err := n.startPeers(); err != nil {
		return err
	}
	if n.core, err = actors.StartCore(n.system, n.host.CoreConfig(n.registry)); err != nil {
		return err
	}
	if err := n.startEdge(); err != nil {
		return err
	}
	if n.cfg.InitialCorruptCheck {
		if err := n.initialCheck(ctx); err != nil {
			return err
		}
	}
	if !release() { // the core cannot reboot any more
		return core.ErrStopping
	}
	if err := n.startGateway(); err != nil {
		return err
	}
	go n.announce()        // ends when the member is ready, or with the core
	go n.advanceElection() // ends after advanceWait, or with the core
	return nil
}

// abort stops what a start that failed has started.
func (n *Node) abort() (err error) {
	close(n.stopping)
	n.host.Stop()
	if n.peers != nil {
		err = n.stopPeers()
	}
	if n.edge != nil {
		err = errors.Join(err, n.edge.Stop(context.Background()))
	}
	if n.core != nil {
		err = errors.Join(err, n.stopCore(context.Background()))
	}
	return err
}

func (n *Node) startEdge() (err error) {
	n.loops = mvccactor.NewCompactor(mvccactor.CompactorConfig{
		Published: n.host.Published, Core: n.currentCore, Room: n.room, Holds: n.host.Holds, Corrupt: n.corrupt, Logger: n.cfg.Logger})
	children := []actors.Child{
		{Name: actors.EdgeCompactor, New: func(uint64) (actors.Stage, error) { return n.loops.Stage(), nil }},
		{Name: actors.EdgeSpares, New: n.spareLoop},
		{Name: actors.EdgeDisk, New: n.diskLoop},
		{Name: actors.EdgeHash, New: n.hashLoop},
		{Name: actors.EdgeScrub, New: n.scrubLoop},
		{Name: actors.EdgeRepair, New: n.repairLoop},
		{Name: actors.EdgeWatchdog, New: n.watchdogLoop},
		{Name: actors.EdgeHandOver, New: n.host.HandOverLoop},
		{Name: actors.EdgeWatchHub, New: n.watches.Hub},
		{Name: actors.EdgeLeases, New: n.leaseForwarder},
		{Name: actors.EdgeVersions, New: n.versionsLoop},
	}
	if n.monitors.checker.Enabled() {
		children = append(children, actors.Child{Name: actors.EdgeCheck, New: n.checkLoop})
	}
	children = append(children, n.host.Senders()...)
	children = append(children, n.auth.Passwords.Children()...)
	if n.cfg.AutoCompact != nil {
		children = append(children, actors.Child{Name: actors.EdgeAutoCompact, New: n.autoCompactLoop})
	}
	for _, c := range children {
		h, err := n.edge.Spawn(c)
		if err != nil {
			return err
		}
		switch c.Name {
		case actors.EdgeHash:
			n.hasher.Store(h)
		case actors.EdgeWatchHub:
			n.watchHub.Store(h)
		case actors.EdgeLeases:
			n.forwarder.Store(h)
		}
	}
	return nil
}

func (n *Node) startGateway() (err error) {
	httpConfig := grpcgw.HTTPConfig{Member: n, Metrics: n.metrics.gateway, Logger: n.cfg.Logger,
		CORS: n.cfg.CORS, HostWhitelist: n.cfg.HostWhitelist,
		Pprof: n.cfg.Pprof, ReadTimeout: n.cfg.requestTimeout()}
	cfg := n.cfg.Gateway
	cfg.Member, cfg.Metrics, cfg.Logger = n, n.metrics.gateway, n.cfg.Logger
	cfg.MinLeaseTTL = n.cfg.minLeaseTTL()
	cfg.MaxConnections = n.files.connections
	cfg.HTTP = grpcgw.NewHTTPHandler(httpConfig)
	cfg.Election = n.cfg.Election
	cfg.Reads = n.reads
	cfg.Reconfig = n.reconfig
	cfg.Auth = n.auth
	if n.gateway, err = grpcgw.New(cfg); err != nil {
		return err
	}
	go func() { // ends when Stop closes the listeners
		if err := n.gateway.Serve(n.cfg.Listeners...); err != nil {
			n.fail(fmt.Errorf("node: serve clients: %w", err))
		}
	}()
	n.monitor = grpcgw.NewHTTPServer(grpcgw.NewMetricsHandler(httpConfig))
	for _, l := range n.cfg.MetricsListeners {
		go func() { // ends when Stop closes the server
			if err := n.monitor.Serve(n.gateway.Limit(l)); !errors.Is(err, http.ErrServerClosed) {
				n.fail(fmt.Errorf("node: serve metrics: %w", err))
			}
		}()
	}
	return nil
}

func (n *Node) fail(err error) {
	select {
	case n.done <- err:
	default: // one error is enough
	}
}

// Ready is closed when the calls of clients succeed.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Done receives an error if the member stops serving without a call of Stop.
func (n *Node) Done() <-chan error { return n.done }

// Faults injects faults in tests; it is nil in production.
func (n *Node) Faults() *actors.Faults { return n.cfg.Faults }

// Stop stops the gateway, the stages, and then closes the files. Requests that were
// accepted are answered before, unless ctx ends.
func (n *Node) Stop(ctx context.Context) (err error) {
	n.stop.Do(func() {
		n.host.HandOver(ctx)
		close(n.stopping)
		n.host.Stop()
		err = errors.Join(
			n.stopGateway(ctx),
			n.monitor.Close(),
			n.stopPeers(),
			n.edge.Stop(ctx),
			n.stopCore(ctx),
		)
	})
	return err
}

func (n *Node) stopCore(ctx context.Context) error {
	if err := n.core.Stop(ctx); !errors.Is(err, core.ErrStopping) {
		return err
	}
	return nil
}

// drainTimeout bounds how long a stop waits for the requests in progress. Then it closes
// their connections, and with them the streams, which do not end by themselves. With other
// voters it is drainTimeoutReplicated: the clients turn to another member. A member that
// was removed waits for none, because its requests cannot complete.
const (
	drainTimeout           = 3 * time.Second
	drainTimeoutReplicated = 500 * time.Millisecond
)

func (n *Node) stopGateway(ctx context.Context) error {
	timeout := drainTimeout
	if n.host.Replicated() {
		timeout = drainTimeoutReplicated
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	go func() { // ends with the stop
		select {
		case <-n.left:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := n.gateway.Stop(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// announce waits until reads succeed, publishes the attributes of the member to the
// cluster, and closes ready.
func (n *Node) announce() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for n.readable(ctx) != nil {
		if !n.wait(ctx) {
			return
		}
	}
	n.publishAttributes(ctx)
	close(n.ready)
	n.cfg.Logger.Info().Msg("ready to serve client requests")
}
