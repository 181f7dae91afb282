package core

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/raftactor/replica"
	"github.com/troupe-db/troupe/walactor"
	"github.com/troupe-db/troupe/walactor/wal"
)

// boot creates an incarnation of the core. If the store is damaged, and others have the data,
// it replaces the store before.
func (h *Host) boot(uint64) (*actors.Incarnation, error) {
	for {
		inc, err := h.open()
		if err == nil || !h.repairable(err) {
			return inc, err
		}
		if err := h.replaceStore(err); err != nil {
			return nil, err
		}
	}
}

// open opens log and store, and creates the stages with what they contain.
func (h *Host) open() (_ *actors.Incarnation, err error) {
	if h.isStopping() {
		return nil, ErrStopping
	}
	if err := h.cfg.Disk.MakeRoom(); err != nil {
		return nil, err
	}
	log, rec, err := h.openLog()
	if errors.Is(err, wal.ErrNoSpace) {
		err = h.cfg.Disk.Full(err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, log.Close())
		}
	}()
	store := h.backendConfig(largest(rec.Entries))
	store.MustExist = rec.Mark.Index > 0 || h.cfg.Dir.Exists()
	if store.Dir, err = h.chooseStore(rec.Mark.Index); err != nil {
		return nil, h.cfg.Disk.Full(err)
	}
	installed := h.installed.Swap(false)
	opened, err := mvccactor.Open(mvccactor.OpenConfig{
		Backend:     store,
		Installed:   installed,
		OpenBackend: h.cfg.Storage.OpenStore,
		Check:       func(d *mvccmsg.Durable) error { return h.checkTogether(log, rec, d) },
		CacheBytes:  h.cfg.CacheBytes,
		Published:   h.Published,
		Corrupt:     func(e *mvcc.CorruptError) { h.cfg.Corrupt(e) },
	})
	if err != nil {
		return nil, h.cfg.Disk.Full(err) // it may have become full after MakeRoom
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.Backend.Close())
		}
	}()
	if opened.Durable == nil { // Check was not called
		if err := h.checkTogether(log, rec, nil); err != nil {
			return nil, err
		}
	}
	// IMPORTANT: the data id must be durable before a vote or an append leaves the member, so
	// that a directory that is wiped later is recognised, and cannot break its promises.
	if err := h.cfg.Dir.record(h.cfg.Identity); err != nil {
		return nil, err
	}
	var forced []uint64
	if h.cfg.ForceNewCluster && !h.forced.Load() {
		if forced, err = h.forceAlone(log, rec, opened.Durable); err != nil {
			return nil, err
		}
		h.forced.Store(true)
	}
	rep, err := h.newReplica(rec, opened.Durable)
	if err != nil {
		return nil, err
	}
	if installed {
		h.cfg.Replaced()
	}
	switch removed, err := h.stores.Clean(); {
	case err != nil:
		h.cfg.Logger.Warn().Err(err).Msg("failed to remove stores that are no longer used")
	case len(removed) > 0:
		h.cfg.Logger.Info().Strs("folders", removed).Msg("removed stores that are no longer used")
	}
	h.membersChanged(aloneIn(opened.Durable.GetCluster(), forced))
	return h.assemble(log, rep, opened), nil
}

// RequestOverhead bounds the bytes that the encoding adds to a request of the largest size.
const RequestOverhead = 64 << 10

// largest returns a bound of the largest pack that the replay of entries may create: a
// record is as large as its request, and a pack has at least one record.
func largest(entries []*raftpb.Entry) (bytes int64) {
	for _, e := range entries {
		bytes = max(bytes, int64(len(e.Data))+RequestOverhead)
	}
	return bytes
}

// tailBytes is the default of Config.TailBytes, and that of replica.
const tailBytes = 64 << 20

func (h *Host) openLog() (*wal.Log, *wal.Recovered, error) {
	dir := h.cfg.Dir.LogDir()
	fsys := h.cfg.Dir.fs()
	cfg := wal.Config{ClusterID: h.cfg.Identity.ClusterID, MemberID: h.cfg.Identity.MemberID, Rand: h.cfg.Rand,
		SegmentBytes: h.cfg.Storage.LogSegmentBytes, TailBytes: int64(cmp.Or(h.cfg.TailBytes, tailBytes))}
	exists, err := wal.Exists(fsys, dir)
	if err != nil {
		return nil, nil, err
	}
	if !exists && h.cfg.Dir.Exists() {
		return nil, nil, fmt.Errorf("%w: none in %s", ErrLogBehind, dir)
	}
	if !exists {
		log, err := wal.Create(fsys, dir, cfg, wal.Batch{})
		return log, &wal.Recovered{}, err
	}
	log, rec, err := wal.Open(fsys, dir, cfg)
	if err != nil {
		return nil, nil, err
	}
	if t := rec.Torn; t != nil {
		actors.Seen("log: a torn write at the end is truncated")
		h.cfg.Logger.Warn().Str("file", t.File).Int64("offset", t.Offset).Int64("bytes", t.Bytes).
			Msg("truncated an unfinished write at the end of the log")
	}
	for _, file := range rec.Resized {
		h.cfg.Logger.Warn().Str("file", file).Msg("a file of the log was shortened or extended; nothing is missing")
	}
	return log, rec, nil
}

// checkTogether returns an error if store and log do not belong together. d is nil if the
// store has never been written to.
func (h *Host) checkTogether(log *wal.Log, rec *wal.Recovered, d *mvccmsg.Durable) error {
	if d != nil && (d.ClusterId != h.cfg.Identity.ClusterID || d.MemberId != h.cfg.Identity.MemberID) {
		return fmt.Errorf("%w: the store is of member %x in cluster %x, this is member %x in cluster %x",
			ErrOtherMember, d.MemberId, d.ClusterId, h.cfg.Identity.MemberID, h.cfg.Identity.ClusterID)
	}
	applied := d.GetAppliedIndex()
	if applied < rec.Mark.Index {
		return fmt.Errorf("%w: in %s %d entries are applied, the log begins after %d",
			ErrStoreBehind, h.cfg.Dir.StoreDir(), applied, rec.Mark.Index)
	}
	if last := log.LastIndex(); applied > last {
		return fmt.Errorf("%w: %s ends with %d, in %s %d entries are applied",
			ErrLogBehind, h.cfg.Dir.LogDir(), last, h.cfg.Dir.StoreDir(), applied)
	}
	return nil
}

func (h *Host) newReplica(rec *wal.Recovered, d *mvccmsg.Durable) (*replica.Replica, error) {
	h.committed.Store(rec.HardState.GetCommit())
	cfg := replica.Config{
		ID:             h.cfg.Identity.MemberID,
		ElectionTicks:  int(h.cfg.Election / h.cfg.Heartbeat),
		HeartbeatTicks: 1,
		PreVote:        h.cfg.PreVote,
		Logger:         &raftactor.Logger{Log: h.cfg.Logger},
		TailBytes:      h.cfg.TailBytes,
		TransferBytes:  h.cfg.TransferBytes,
		TailEntries:    h.cfg.CatchUpEntries,
		MarkIndex:      rec.TailIndex,
		MarkTerm:       rec.TailTerm,
		Entries:        slices.Concat(rec.Tail, rec.Entries),
		HardState:      rec.HardState,
		Applied:        d.GetAppliedIndex(),
		AppliedTerm:    d.GetAppliedTerm(),
		ConfState:      d.GetConfState(),
	}
	if rec.Mark.Index > 0 && actors.Planted("drop a configuration change on reboot") {
		cfg.ConfState = rec.Mark.ConfState
	}
	if rec.HardState == nil && len(rec.Entries) == 0 && d == nil && !h.cfg.Join && !h.cfg.Identity.Joined {
		for _, m := range h.cfg.Members {
			context, err := proto.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("core: member %x: %w", m.Id, err)
			}
			cfg.Bootstrap = append(cfg.Bootstrap, raft.Peer{ID: m.Id, Context: context})
		}
	}
	return replica.New(cfg)
}

// assemble wires the stages. Their mailboxes are made from the last to the
// first, because each stage posts to those behind it.
func (h *Host) assemble(log *wal.Log, rep *replica.Replica, o *mvccactor.Opened) *actors.Incarnation {
	limits, faults := h.cfg.Mailboxes, h.cfg.Faults
	d := o.Durable
	raftBox := raftactor.NewMailbox(limits.Raft, faults)
	persister, persisterStage := mvccactor.NewPersister(mvccactor.PersisterConfig{
		Store: o.Backend, Limit: limits.Persister,
		Raft: raftBox, RaftLane: raftactor.RaftLocal,
		Fatal: h.cfg.Exit, Room: h.cfg.Disk.PersistRoom, Watch: h.Commit, Metrics: h.cfg.Metrics.MVCC, Faults: faults,
	})
	leaseStage := leaseactor.New(leaseactor.Config{
		Limit:  limits.Lease,
		MinTTL: h.cfg.MinLeaseTTL, Election: h.cfg.Election, Checkpoint: h.cfg.LeaseCheckpoint,
		Term: h.Raft.Leads, Transferring: h.Raft.Transferring, Heard: h.Raft.Heard, View: h.Published.View, Propose: h.Requests.Post, Now: h.cfg.LeaseClock,
		Metrics: h.cfg.Metrics.Lease, Faults: faults,
	})
	mvccStage := mvccactor.New(mvccactor.Config{
		Store: o.Store, Limit: limits.MVCC,
		State: mvccactor.State{
			ClusterID: h.cfg.Identity.ClusterID, MemberID: h.cfg.Identity.MemberID,
			AppliedIndex: d.GetAppliedIndex(), AppliedTerm: d.GetAppliedTerm(),
			ConfState: d.GetConfState(), Cluster: d.GetCluster(), Auth: o.Auth,
		},
		Persister: persisterStage.Mailbox, Raft: raftBox, RaftLane: raftactor.RaftLocal,
		Deliver: h.deliver, Awaited: h.Replies.Awaited, Compacted: h.Compacted,
		Lease: leaseStage.Mailbox, LeaseLane: leaseactor.ChangesLane,
		Holds: h.Holds, ReplayedTo: log.LastIndex(), Hash: h.cfg.Hash,
		Timeline: h.Timeline, Metrics: h.cfg.Metrics.MVCC, Logger: h.cfg.Logger, Faults: faults,
	})
	persister.Connect(mvccStage.Mailbox)
	state := apply.NewState(d.GetAppliedIndex(), d.GetConfState(), d.GetCluster())
	state.RestoreAuth(o.Auth)
	h.cfg.Tokens.Begin(d.GetAppliedIndex())
	applyStage := applyactor.New(applyactor.Config{
		State:          state,
		MembersChanged: h.membersChanged, Committed: h.cfg.Committed, Tokens: h.cfg.Tokens.Apply,
		Limit: limits.Apply, MVCC: mvccStage.Mailbox, MVCCLane: mvccactor.ExecuteLane,
		Timeline: h.Timeline, Metrics: h.cfg.Metrics.Apply, Logger: h.cfg.Logger, Faults: faults,
	})
	walStage := walactor.New(walactor.Config{
		Member: h.cfg.Identity.MemberID, Log: log, Limit: limits.WAL,
		Raft: raftBox, RaftLane: raftactor.RaftLocal, Peers: h.cfg.Network,
		Disk: h.Fsync, Timeline: h.Timeline, Fatal: h.cfg.Exit, Metrics: h.cfg.Metrics.WAL, Faults: faults,
	})
	raftActor, raftStage := raftactor.New(raftactor.Config{
		Replica: rep, Heartbeat: h.cfg.Heartbeat,
		WAL: walStage.Mailbox, Apply: applyStage.Mailbox, Peers: h.cfg.Network,
		State: h.Raft, Timeline: h.Timeline, Metrics: h.cfg.Metrics.Raft, Faults: faults,
		Removed: h.isRemoved, KeepLog: h.keepLog.Load,
	}, raftBox)
	readStage := raftactor.NewReadIndex(raftactor.ReadIndexConfig{
		Limit: limits.Proposer, Raft: raftBox, State: h.Raft,
		Applied: h.Applied, NextID: h.nextID, RTT: h.quorumRoundTrip, Metrics: h.cfg.Metrics.Raft, Faults: faults,
	})
	proposerStage := raftactor.NewProposer(raftactor.ProposerConfig{
		Limit: limits.Proposer, Replies: h.Replies, Raft: raftBox,
		NextBatch: h.nextID, Fsync: h.Fsync.Fsync, Metrics: h.cfg.Metrics.Raft, Faults: faults,
		Member: h.cfg.Identity.MemberID, Election: h.cfg.Election,
		Forward: func(to uint64, m *raftmsg.Forward) { h.cfg.Network.Forward(to, m) },
		Answer:  func(to uint64, m *raftmsg.Forwarded) { h.cfg.Network.Forwarded(to, m) },
		RTT:     h.cfg.Network.RoundTrip, Connected: h.connected,
	})
	raftActor.Connect(proposerStage.Mailbox, readStage.Mailbox)
	return &actors.Incarnation{
		Stages: []actors.Stage{proposerStage, readStage, raftStage, walStage, applyStage, mvccStage, leaseStage, persisterStage},
		Started: func() {
			h.current.Store(&Handles{Log: log, Store: o.Backend, Keyspace: o.Store, MVCC: mvccStage.Mailbox})
			h.Requests.Connect(raftBox, proposerStage.Mailbox, readStage.Mailbox)
			h.Leases.Connect(leaseStage.Mailbox)
			h.installing.Store(false)
		},
		Halt: func() error {
			h.Requests.Disconnect()
			h.Leases.Disconnect()
			h.current.Store(nil)
			h.Raft.Reset()
			h.Replies.FailAll(raftmsg.Code_STOPPED) // the calls that the stages did not answer
			return h.close(log, rep.Unwritten(), o.Backend)
		},
	}
}

// close closes log and store, and installs a snapshot that was received. Before that it writes
// the hard state that no append contained, so that the next start knows the commit index. All
// stages must have stopped.
func (h *Host) close(log *wal.Log, unwritten *raftpb.HardState, store backend.Store) error {
	err := h.closeStore(store)
	if unwritten != nil {
		if werr := log.Append(wal.Batch{HardState: unwritten}); !errors.Is(werr, wal.ErrFailed) { // reported when it failed
			err = errors.Join(err, werr)
		}
	}
	if err == nil {
		err = h.install(log)
	}
	return errors.Join(err, log.Close())
}

// closeStore closes the store, unless the member stops while there is no room: it is then
// left as after a kill.
func (h *Host) closeStore(store backend.Store) error {
	if !h.cfg.Disk.AwaitRoom() {
		return nil
	}
	return store.Close()
}

// storeLogger is the store's interface to the member's log.
type storeLogger struct{ log zerolog.Logger }

func (l storeLogger) Debugf(format string, args ...any) { l.log.Debug().Msgf(format, args...) }
func (l storeLogger) Infof(format string, args ...any)  { l.log.Info().Msgf(format, args...) }
func (l storeLogger) Warnf(format string, args ...any)  { l.log.Warn().Msgf(format, args...) }
func (l storeLogger) Errorf(format string, args ...any) { l.log.Error().Msgf(format, args...) }
