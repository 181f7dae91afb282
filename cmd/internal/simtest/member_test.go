package simtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/walactor"
	"github.com/troupe-db/troupe/watchactor"
)

const (
	heartbeat = 100 * time.Millisecond
	election  = time.Second
	clusterID = 0xc1
)

// member is a member of the cluster, across its processes.
type member struct {
	c     *cluster
	id    uint64
	disk  *disk
	boots int
	join  bool // it was added to a cluster that runs
	// gone is why it must not start again; empty while it may.
	gone string
	// wiped is set when its disk was emptied: it may not know yet that it must not start.
	wiped bool

	// Of its process; nil while it is down.
	p       *process
	host    *core.Host
	net     *endpoint
	core    *actors.Core
	edge    *actors.Edge
	watches *watchactor.Streams
	leases  *leaseactor.Server
	running bool // its core has started
	// forwarding is the mailbox of the forwarder of calls about leases.
	forwarding *actors.Mailbox
	// hasher is the mailbox of the loop that takes hashes.
	hasher *actors.Mailbox
	faults *actors.Faults
	seen   position
	// handing is since when it has been handing over the leadership, as far as clients of
	// leases may see; 0 if it is not.
	handing int64

	// damaged is set when a pack of its store was damaged, until it starts or has replaced the
	// store; noticed is set when it has found the damage. flipped is set when its log was damaged.
	damaged, noticed, flipped bool

	promised promise
	// logged is the last index of its log when it crashed, in the term loggedTerm.
	logged, loggedTerm uint64
	// installed is set when it has opened a snapshot, until it publishes its first view.
	installed bool
}

// name is how the trace calls it.
func (m *member) name() string { return fmt.Sprintf("m%x", m.id) }

func (m *member) peerURL() string { return "http://" + m.name() }

// start starts a process.
func (m *member) start() {
	w := m.c.w
	m.boots++
	m.p = &process{name: fmt.Sprintf("%s.%d", m.name(), m.boots), speed: 1 + w.rng.Int64N(3), wall: m.c.plan.wallOf(m.id)}
	w.spawn(m.p, "boot", func() {
		if err := m.boot(); err != nil {
			m.c.failedBoot(m, err)
			w.exit()
		}
	})
}

// boot does what package node does to start a member.
func (m *member) boot() error {
	w, p := m.c.w, m.p
	dir := core.DataDir{Path: "/data", FS: m.disk.fs}
	id, _, err := core.OpenDataDir(dir, core.Identity{ClusterID: clusterID, MemberID: m.id, Name: m.name(),
		PeerURLs: []string{m.peerURL()}, Joined: m.join}, w.rng.Uint64)
	if err != nil {
		return err
	}
	shared := core.NewShared()
	r := prometheus.NewRegistry()
	logger := m.c.logger(p)
	m.faults, m.seen = actors.NewFaults(), position{}
	cfg := core.Config{
		Dir: dir, Identity: id, Members: m.c.founders(m),
		Storage: core.Storage{LogSegmentBytes: m.c.plan.segment, OpenStore: m.disk.open,
			SnapshotChunkBytes: m.c.plan.chunk, SnapshotLastRoundBytes: 2 * m.c.plan.chunk},
		Heartbeat: heartbeat, Election: election, PreVote: true,
		Mailboxes: m.c.plan.mailboxes, CacheBytes: 1 << 20,
		RequestTimeout: 5*time.Second + 2*election, MinLeaseTTL: 2, LeaseCheckpoint: 5 * time.Minute,
		Join: m.join || id.Joined, Disk: room{m.disk},
		CatchUpEntries: m.c.plan.catchUp, TailBytes: m.c.plan.tail, TransferBytes: 2 * m.c.plan.tail,
		Metrics: core.Metrics{
			Raft:     raftactor.NewMetrics(r, raftactor.MetricsConfig{Member: m.id, State: shared.Raft, Applied: shared.Applied}),
			WAL:      walactor.NewMetrics(r),
			Apply:    applyactor.NewMetrics(r, applyactor.MetricsConfig{Member: m.id, View: shared.Published.View}),
			Lease:    leaseactor.NewMetrics(r),
			Snapshot: snapshot.NewMetrics(r),
			MVCC:     mvccactor.NewMetrics(r, mvccactor.MetricsConfig{SlowApply: time.Hour, Published: shared.Published}),
		},
		Reboot: func(reason error) { m.core.Reboot(reason) },
		Removed: func(reason string) {
			m.gone = "removed"
			w.after(p, 5*heartbeat, "leave", w.exit)
		},
		LeaseForwarder: m.forwarder,
		Corrupt:        func(err error) { m.corrupt(p, err) },
		Damaged:        func() bool { return m.noticed },
		Replaced:       func() { m.replacedStore() },
		Hash:           func() { m.wakeHasher() },
		Rand:           w.rng.Uint64,
		Exit:           func(reason error) { m.exited(reason) },
		Committed:      func(e *raftpb.Entry) { m.c.check.committed(m, e) },
		Logger:         logger, Faults: m.faults,
	}
	m.host = core.New(cfg, shared, func(ctx context.Context) bool { return actors.Sleep(ctx, heartbeat) == nil })
	m.leases = leaseactor.NewServer(m.host.Leases)
	m.net = m.c.net.join(m, id.DataID)
	m.host.Connect(m.net)
	m.watches = watchactor.NewStreams(watchactor.Config{
		Published: shared.Published,
		Spawn:     func(c actors.Child) (*actors.Handle, error) { return m.edge.Spawn(c) },
		Unpinned: func() {
			if c := m.host.Current(); c != nil {
				_ = mvccactor.Continue(c.MVCC)
			}
		},
		Reason: func(err error) string { return err.Error() },
	})
	shared.Published.Notify(func() {
		m.c.check.published(m)
		m.watches.Wake()
	})
	sys := actors.NewSystem(logger)
	failed := func(f actors.Failure) { m.failed(p, f) }
	if m.edge, err = actors.StartEdge(sys, actors.EdgeConfig{Logger: zerolog.Nop(), OnFailure: failed}); err != nil {
		return err
	}
	registry := actors.NewRegistry()
	coreConfig := m.host.CoreConfig(registry)
	onReboot := coreConfig.OnReboot
	coreConfig.OnReboot = func(epoch uint64, f actors.Failure) {
		w.beacon("core rebooted")
		if !f.Planned {
			m.failed(p, f)
		}
		onReboot(epoch, f)
	}
	if m.core, err = actors.StartCore(sys, coreConfig); err != nil {
		return err
	}
	if err := m.startEdge(); err != nil {
		return err
	}
	m.damaged, m.noticed = false, false // its start has read all packs
	w.spawn(p, "promises", func() { m.c.check.kept(m) })
	m.running = true
	w.spawn(p, "announce", func() { m.announce(id.DataID) })
	return nil
}

func (m *member) startEdge() error {
	compactor := mvccactor.NewCompactor(mvccactor.CompactorConfig{
		Published: m.host.Published, Holds: m.host.Holds, Logger: zerolog.Nop(),
		Core: func() (mvccactor.Core, bool) {
			c := m.host.Current()
			if c == nil {
				return mvccactor.Core{}, false
			}
			return c.Core(), true
		},
		Corrupt: func(err error) { m.corrupt(m.p, err) },
	})
	children := []actors.Child{
		{Name: actors.EdgeCompactor, New: func(uint64) (actors.Stage, error) { return compactor.Stage(), nil }},
		{Name: actors.EdgeWatchHub, New: m.watches.Hub},
		{Name: actors.EdgeRepair, New: m.repair},
		{Name: actors.EdgeHash, New: m.hash},
		{Name: actors.EdgeHandOver, New: m.host.HandOverLoop},
		{Name: actors.EdgeLeases, New: func(uint64) (actors.Stage, error) {
			s := leaseactor.NewForwarder(leaseactor.ForwarderConfig{
				Limit: m.c.plan.mailboxes.Lease, Election: election, Self: m.id,
				Leader: m.host.Leader, Conn: m.net.Conn, Metrics: leaseactor.NewMetrics(prometheus.NewRegistry()),
			})
			m.forwarding = s.Mailbox
			return s, nil
		}},
	}
	for _, c := range append(children, m.host.Senders()...) {
		if _, err := m.edge.Spawn(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *member) forwarder() *actors.Mailbox { return m.forwarding }

// announce publishes the attributes of the member, as a node does before it serves.
func (m *member) announce(dataID uint64) {
	ctx := context.Background()
	req := &applymsg.Request{Op: &applymsg.Request_MemberAttributes{MemberAttributes: &applymsg.MemberAttributes{
		MemberId: m.id, Name: m.name(), ClientUrls: []string{"http://client-" + m.name()}, DataId: dataID}}}
	for {
		if code, err := m.host.Requests.ReadIndex(ctx); err == nil && code == raftmsg.Code_OK {
			break
		}
		_ = actors.Sleep(ctx, heartbeat)
	}
	known := func(c *applymsg.Member) bool { return c.Id == m.id && c.DataId == dataID && c.Name == m.name() }
	for !slices.ContainsFunc(m.host.Published.View().Cluster.GetMembers(), known) {
		out, err := m.host.Requests.Propose(ctx, req)
		if err == nil && out.Result.Code == raftmsg.Code_DATA_REPLACED {
			m.replaced()
		}
		if err == nil && (out.Result.Code == raftmsg.Code_OK || out.Result.Code == raftmsg.Code_MEMBER_NOT_FOUND) {
			return
		}
		_ = actors.Sleep(ctx, heartbeat)
	}
}

// replaced ends the member: it has lost its data. The running task is one of its own.
func (m *member) replaced() {
	m.c.w.beacon("data replaced")
	m.gone = "replaced"
	m.c.w.exit()
}

// exited ends the process, because the member cannot continue.
func (m *member) exited(reason error) {
	m.c.w.logf("%s exits: %v", m.p.name, reason)
	var injected actors.Fault // too often for the limit of reboots
	if !errors.Is(reason, errIO) && !errors.Is(reason, syscall.ENOSPC) && !errors.As(reason, &injected) {
		m.c.w.fail("%s exits: %v", m.p.name, reason)
	}
	m.c.w.exit()
}

// corrupt notes that a process has found damage to its store.
func (m *member) corrupt(p *process, err error) {
	if !m.damaged {
		m.c.w.fail("%s: the store is damaged: %v", p.name, err)
	}
	if !m.noticed {
		m.c.w.beacon("damage noticed")
	}
	m.noticed = true
}

// replacedStore notes that the store of a snapshot has been opened.
func (m *member) replacedStore() {
	m.c.w.beacon("snapshot installed")
	if m.noticed {
		m.c.w.beacon("a damaged store is replaced")
	}
	if m.join && m.boots == 1 && !m.running {
		m.c.w.beacon("a new member begins with a snapshot")
	}
	m.installed, m.damaged, m.noticed = true, false, false
}

// repair replaces a damaged store, as a node does.
func (m *member) repair(uint64) (actors.Stage, error) {
	host := m.host
	return actors.NewLoop(actors.LoopConfig{Name: actors.EdgeRepair, Every: 2 * heartbeat,
		Due: func() bool { return m.noticed && host.Replicated() },
		Do: func(ctx context.Context, _ actors.Tick) {
			host.HandOver(ctx)
			_ = host.Repair(ctx) // the next tick tries again
		},
	}), nil
}

// hash takes the hashes that compactions wait for, as a node does.
func (m *member) hash(uint64) (actors.Stage, error) {
	host, p := m.host, m.p
	s := actors.NewLoop(actors.LoopConfig{Name: actors.EdgeHash, Every: time.Second,
		Do: func(context.Context, actors.Tick) {
			took, err := host.Published.TakeHashes(func() error { return nil })
			if err != nil && !errors.Is(err, backend.ErrClosed) && !m.isDamage(err) {
				m.c.w.fail("%s: take the hash of a compaction: %v", p.name, err)
			}
			if c := host.Current(); took && c != nil {
				_ = mvccactor.Continue(c.MVCC) // the next applied entry does the same
			}
		},
	})
	m.hasher = s.Mailbox
	return s, nil
}

// wakeHasher has the hash of a compaction taken now. If the mailbox is full, it is about to be.
func (m *member) wakeHasher() {
	if m.hasher != nil {
		_ = m.hasher.TryPost(0, &actors.Tick{}, actors.Cost{Requests: 1})
	}
}

// isDamage reports whether an error is due to the damage of a member's store.
func (m *member) isDamage(err error) bool {
	var file *backend.CorruptError
	var pack *mvcc.CorruptError
	return m.damaged && (errors.As(err, &file) || errors.As(err, &pack))
}

// failed judges the failure of an actor: those that were injected are no violations.
func (m *member) failed(p *process, f actors.Failure) {
	var injected actors.Fault
	err, _ := f.Reason.(error)
	if errors.As(err, &injected) || errors.Is(err, errIO) || errors.Is(err, syscall.ENOSPC) || p.dead || m.isDamage(err) {
		return
	}
	m.c.w.logf("%s", f.Stack)
	m.c.w.fail("%s: %s has failed: %v", p.name, f.Stage, f.Reason)
}

// up reports whether clients can use the member.
func (m *member) up() bool { return m.p != nil && !m.p.dead && m.running }

// crash kills the process. With power, only the process ends.
func (m *member) crash(power bool) {
	if m.p == nil || m.p.dead {
		return
	}
	p := m.p
	m.c.w.logf("crash %s power=%v", p.name, power)
	m.disk.crash(p, power)
	m.c.net.left(m, power)
	m.c.w.kill(p)
	m.p, m.host, m.net, m.core, m.edge, m.watches, m.leases, m.running = nil, nil, nil, nil, nil, nil, nil, false
	m.forwarding, m.hasher, m.handing = nil, nil, 0
}

// view is the newest view; nil if there is none.
func (m *member) view() *mvcc.View {
	if m.host == nil {
		return nil
	}
	return m.host.Published.View()
}
