package node

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

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

// coreHandles are the parts of one incarnation of the core that others use.
type coreHandles struct {
	log      *wal.Log
	store    backend.Store
	keyspace *mvcc.Store // only to recognise its views
	mvcc     *actors.Mailbox
}

// Errors of opening a data directory.
var (
	// ErrEtcdData: the directory belongs to a real etcd member.
	ErrEtcdData = errors.New("node: the data directory belongs to an etcd member, whose files have another format; " +
		"to migrate, start with a new data directory while etcd runs, and copy the keys with 'etcdctl make-mirror'")
	// ErrStoreBehind: the store lacks entries that are not in the log any more.
	ErrStoreBehind = errors.New("node: the store ends before the log begins")
	// ErrLogBehind: the log lacks entries that the store has, or is another one.
	ErrLogBehind = errors.New("node: the log ends before what was applied from it")
	// ErrOtherMember: store and log do not belong to the same member, or not to this one.
	ErrOtherMember = errors.New("node: the data directory belongs to another member")
)

// prepareDataDir refuses the data of another member, or of etcd, before it changes anything.
func prepareDataDir(cfg *Config) error {
	layout, err := LayoutOf(cfg.DataDir, cfg.WALDir)
	if err != nil {
		return err
	}
	if layout.Stray != "" {
		cfg.Logger.Warn().Str("file", layout.Stray).
			Msg("etcd was started on this data directory and left a file, which is not used and may be removed")
	}
	for _, dir := range []string{filepath.Join(cfg.DataDir, "member"), filepath.Dir(cfg.walDir())} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("node: data directory: %w", err)
		}
	}
	return identify(cfg)
}

// etcdLog returns a file of an etcd member's log in dir, if there is one. Such files have
// the same names as ours, but begin with a frame whose record has type 4, a checksum.
func etcdLog(dir string) (file string, ok bool) {
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(files) == 0 {
		return "", false
	}
	f, err := os.Open(files[0])
	if err != nil {
		return "", false
	}
	defer f.Close()
	var head [10]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return "", false
	}
	return files[0], head[8] == 0x08 && head[9] == 0x04
}

// boot opens log and store, and creates the stages with what they contain.
func (n *Node) boot(uint64) (_ *actors.Incarnation, err error) {
	select {
	case <-n.stopping:
		return nil, errStopping
	default:
	}
	if err := n.makeRoom(); err != nil {
		return nil, err
	}
	log, rec, err := n.openLog()
	if errors.Is(err, wal.ErrNoSpace) {
		err = n.diskFull(err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, log.Close())
		}
	}()
	opened, err := mvccactor.Open(mvccactor.OpenConfig{
		Backend: backend.Config{
			Dir:           n.cfg.dbDir(),
			MustExist:     rec.Mark.Index > 0 || Exists(n.cfg.DataDir),
			Logger:        storeLogger{n.cfg.Logger},
			OnFailure:     n.exit,
			MemTableBytes: n.cfg.Storage.MemTableBytes,
			ValueLogBytes: n.cfg.Storage.ValueLogBytes,
			PackBytes:     largest(rec.Entries),
		},
		OpenBackend: n.cfg.Storage.OpenStore,
		Check:       func(d *mvccmsg.Durable) error { return n.checkTogether(log, rec, d) },
		CacheBytes:  n.cfg.CacheBytes,
		Published:   n.published,
		Corrupt:     func(e *mvcc.CorruptError) { n.corrupt(e) },
	})
	if err != nil && !n.room(0) {
		err = n.diskFull(err) // it became full after makeRoom
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.Backend.Close())
		}
	}()
	if opened.Durable == nil { // Check was not called
		if err := n.checkTogether(log, rec, nil); err != nil {
			return nil, err
		}
	}
	if err := recordIdentity(&n.cfg); err != nil {
		return nil, err
	}
	rep, err := n.newReplica(rec, opened.Durable)
	if err != nil {
		return nil, err
	}
	return n.assemble(log, rep, opened), nil
}

// largest returns a bound of the largest pack that the replay of entries may create: a
// record is as large as its request, and a pack has at least one record.
func largest(entries []*raftpb.Entry) (bytes int64) {
	for _, e := range entries {
		bytes = max(bytes, int64(len(e.Data))+requestOverhead)
	}
	return bytes
}

func (n *Node) openLog() (*wal.Log, *wal.Recovered, error) {
	dir := n.cfg.walDir()
	fsys := n.cfg.Storage.LogFS
	cfg := wal.Config{ClusterID: n.cfg.ClusterID, MemberID: n.cfg.MemberID, Rand: rand.Uint64,
		SegmentBytes: n.cfg.Storage.LogSegmentBytes}
	exists, err := wal.Exists(fsys, dir)
	if err != nil {
		return nil, nil, err
	}
	if !exists && Exists(n.cfg.DataDir) {
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
		n.cfg.Logger.Warn().Str("file", t.File).Int64("offset", t.Offset).Int64("bytes", t.Bytes).
			Msg("truncated an unfinished write at the end of the log")
	}
	for _, file := range rec.Resized {
		n.cfg.Logger.Warn().Str("file", file).Msg("a file of the log was shortened or extended; nothing is missing")
	}
	return log, rec, nil
}

// checkTogether returns an error if store and log do not belong together. d is nil if the
// store has never been written to.
func (n *Node) checkTogether(log *wal.Log, rec *wal.Recovered, d *mvccmsg.Durable) error {
	if d != nil && (d.ClusterId != n.cfg.ClusterID || d.MemberId != n.cfg.MemberID) {
		return fmt.Errorf("%w: the store is of member %x in cluster %x, this is member %x in cluster %x",
			ErrOtherMember, d.MemberId, d.ClusterId, n.cfg.MemberID, n.cfg.ClusterID)
	}
	applied := d.GetAppliedIndex()
	if applied < rec.Mark.Index {
		return fmt.Errorf("%w: in %s %d entries are applied, the log begins after %d",
			ErrStoreBehind, n.cfg.dbDir(), applied, rec.Mark.Index)
	}
	if last := log.LastIndex(); applied > last {
		return fmt.Errorf("%w: %s ends with %d, in %s %d entries are applied",
			ErrLogBehind, n.cfg.walDir(), last, n.cfg.dbDir(), applied)
	}
	return nil
}

func (n *Node) newReplica(rec *wal.Recovered, d *mvccmsg.Durable) (*replica.Replica, error) {
	cfg := replica.Config{
		ID:             n.cfg.MemberID,
		ElectionTicks:  int(n.cfg.Election / n.cfg.Heartbeat),
		HeartbeatTicks: 1,
		PreVote:        n.cfg.PreVote,
		Logger:         &raftactor.Logger{Log: n.cfg.Logger},
		MarkIndex:      rec.Mark.Index,
		MarkTerm:       rec.Mark.Term,
		Entries:        rec.Entries,
		HardState:      rec.HardState,
		Applied:        d.GetAppliedIndex(),
		AppliedTerm:    d.GetAppliedTerm(),
		ConfState:      d.GetConfState(),
	}
	if rec.HardState == nil && len(rec.Entries) == 0 && d == nil {
		for _, m := range n.cfg.Members {
			context, err := proto.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("node: member %x: %w", m.Id, err)
			}
			cfg.Bootstrap = append(cfg.Bootstrap, raft.Peer{ID: m.Id, Context: context})
		}
	}
	return replica.New(cfg)
}

// assemble wires the stages. Their mailboxes are made from the last to the
// first, because each stage posts to those behind it.
func (n *Node) assemble(log *wal.Log, rep *replica.Replica, o *mvccactor.Opened) *actors.Incarnation {
	limits, faults := n.cfg.Mailboxes, n.cfg.Faults
	d := o.Durable
	raftBox := raftactor.NewMailbox(limits.Raft, faults)
	persister, persisterStage := mvccactor.NewPersister(mvccactor.PersisterConfig{
		Store: o.Backend, Limit: limits.Persister,
		Raft: raftBox, RaftLane: raftactor.RaftLocal,
		Fatal: n.exit, Room: n.persistRoom, Watch: &n.commit, Metrics: n.metrics.mvcc, Faults: faults,
	})
	leaseStage := leaseactor.New(leaseactor.Config{
		Limit:  limits.Lease,
		MinTTL: n.cfg.minLeaseTTL(), Election: n.cfg.Election, Checkpoint: n.cfg.LeaseCheckpoint,
		Term: n.raft.Leads, View: n.published.View, Propose: n.requests.Post, Now: n.cfg.LeaseClock,
		Metrics: n.metrics.lease, Faults: faults,
	})
	mvccStage := mvccactor.New(mvccactor.Config{
		Store: o.Store, Limit: limits.MVCC,
		State: mvccactor.State{
			ClusterID: n.cfg.ClusterID, MemberID: n.cfg.MemberID,
			AppliedIndex: d.GetAppliedIndex(), AppliedTerm: d.GetAppliedTerm(),
			ConfState: d.GetConfState(), Cluster: d.GetCluster(),
		},
		Persister: persisterStage.Mailbox, Raft: raftBox, RaftLane: raftactor.RaftLocal,
		Deliver: n.deliver, Awaited: n.replies.Awaited, Compacted: n.compacted,
		Lease: leaseStage.Mailbox, LeaseLane: leaseactor.ChangesLane,
		ReplayedTo: log.LastIndex(), Hash: n.wakeHash,
		Timeline: n.timeline, Metrics: n.metrics.mvcc, Logger: n.cfg.Logger, Faults: faults,
	})
	persister.Connect(mvccStage.Mailbox)
	applyStage := applyactor.New(applyactor.Config{
		State: apply.NewState(d.GetAppliedIndex(), d.GetConfState(), d.GetCluster()),
		Limit: limits.Apply, MVCC: mvccStage.Mailbox, MVCCLane: mvccactor.ExecuteLane,
		Timeline: n.timeline, Metrics: n.metrics.apply, Logger: n.cfg.Logger, Faults: faults,
	})
	walStage := walactor.New(walactor.Config{
		Member: n.cfg.MemberID, Log: log, Limit: limits.WAL,
		Raft: raftBox, RaftLane: raftactor.RaftLocal, Peers: replica.NoPeers{},
		Disk: n.disk, Timeline: n.timeline, Fatal: n.exit, Metrics: n.metrics.wal, Faults: faults,
	})
	raftActor, raftStage := raftactor.New(raftactor.Config{
		Replica: rep, Heartbeat: n.cfg.Heartbeat,
		WAL: walStage.Mailbox, Apply: applyStage.Mailbox, Peers: replica.NoPeers{},
		State: n.raft, Timeline: n.timeline, Metrics: n.metrics.raft, Faults: faults,
	}, raftBox)
	readStage := raftactor.NewReadIndex(raftactor.ReadIndexConfig{
		Limit: limits.Proposer, Raft: raftBox, State: n.raft,
		Applied: n.applied, NextID: n.nextID, Metrics: n.metrics.raft, Faults: faults,
	})
	proposerStage := raftactor.NewProposer(raftactor.ProposerConfig{
		Limit: limits.Proposer, Replies: n.replies, Raft: raftBox,
		NextBatch: n.nextID, Fsync: n.disk.Fsync, Metrics: n.metrics.raft, Faults: faults,
	})
	raftActor.Connect(proposerStage.Mailbox, readStage.Mailbox)
	return &actors.Incarnation{
		Stages: []actors.Stage{proposerStage, readStage, raftStage, walStage, applyStage, mvccStage, leaseStage, persisterStage},
		Started: func() {
			n.current.Store(&coreHandles{log: log, store: o.Backend, keyspace: o.Store, mvcc: mvccStage.Mailbox})
			n.requests.Connect(proposerStage.Mailbox, readStage.Mailbox)
			n.leases.Connect(leaseStage.Mailbox)
		},
		Halt: func() error {
			n.requests.Disconnect()
			n.leases.Disconnect()
			n.current.Store(nil)
			n.raft.Reset()
			n.replies.FailAll(raftmsg.Code_STOPPED) // the calls that the stages did not answer
			return errors.Join(n.closeStore(o.Backend), closeLog(log, rep.Unwritten()))
		},
	}
}

// closeLog closes the log. Before that it writes the hard state that no append contained,
// so that the next start knows the commit index. All stages must have stopped.
func closeLog(log *wal.Log, unwritten *raftpb.HardState) error {
	var err error
	if unwritten != nil {
		if err = log.Append(wal.Batch{HardState: unwritten}); errors.Is(err, wal.ErrFailed) {
			err = nil // reported when it failed
		}
	}
	return errors.Join(err, log.Close())
}

func (n *Node) nextID() uint64 { return n.sequence.Add(1) }

func (n *Node) applied() uint64 {
	if v := n.published.View(); v != nil {
		return v.AppliedIndex
	}
	return 0
}

// exit ends the process at once, because it is unknown what was written to the disk.
func (n *Node) exit(err error) { n.cfg.Exit(err) }

func (n *Node) giveUp(reason error) {
	n.replies.FailAll(raftmsg.Code_STOPPED)
	if !errors.Is(reason, errStopping) {
		n.cfg.Exit(reason)
	}
}

// errStopping ends a reboot of the core while the member stops.
var errStopping = errors.New("node: the member is stopping")

// classify returns a reason to give up at once if a reboot would only repeat the failure.
func (n *Node) classify(f actors.Failure) error {
	var entry *actors.EntryPanic
	switch {
	case errors.Is(f, wal.ErrFailed), errors.Is(f, backend.ErrFailed):
		return f
	case errors.As(f, &entry):
		if n.lastPanic.Swap(entry.Index) == entry.Index {
			return fmt.Errorf("node: applying entry %d failed twice: %w", entry.Index, f)
		}
	}
	return nil
}

// onReboot fails the calls that the failed core has not answered.
func (n *Node) onReboot(epoch uint64, f actors.Failure) {
	n.cfg.Logger.Error().Str("stage", f.Stage).Uint64("epoch", epoch).Interface("reason", fmt.Sprint(f.Reason)).
		Bytes("stack", f.Stack).Msg("a stage failed; the core reboots from disk")
	n.raft.Reset()
	n.replies.FailAll(raftmsg.Code_STOPPED)
}
