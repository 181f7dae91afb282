package core

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/walactor"
	"github.com/troupe-db/troupe/walactor/wal"
)

// Shared is what the incarnations of a core have in common.
type Shared struct {
	Timeline  *actors.Timeline
	Published *mvcc.Published
	Replies   *raftactor.Replies
	Raft      *raftactor.State
	Fsync     *walactor.Disk
	Compacted *mvccactor.Compacted
	Commit    *actors.Stopwatch // runs during commits to the store
}

// NewShared returns what a member begins with.
func NewShared() Shared {
	return Shared{
		Timeline: actors.NewTimeline(), Published: mvcc.NewPublished(), Replies: raftactor.NewReplies(),
		Raft: new(raftactor.State), Fsync: new(walactor.Disk), Compacted: mvccactor.NewCompacted(),
		Commit: new(actors.Stopwatch),
	}
}

// Applied returns the index of the newest view.
func (s *Shared) Applied() uint64 {
	if v := s.Published.View(); v != nil {
		return v.AppliedIndex
	}
	return 0
}

// Host boots the incarnations of a member's core, and has what outlives them.
type Host struct {
	Shared
	// Requests and Leases follow the current incarnation.
	Requests *raftactor.Client
	Leases   *leaseactor.Client

	// Holds stop reclaiming while snapshots are sent.
	Holds *mvccactor.Holds

	cfg       Config
	stores    *snapshot.Stores
	transfers transfers
	received  atomic.Pointer[snapshot.Received] // a snapshot to install at the next reboot
	installed atomic.Bool                       // the next boot opens an installed store
	// installing is set when a snapshot was received, and cleared when the core has booted.
	installing atomic.Bool
	members    atomic.Pointer[[]*applymsg.Member] // as last passed to the network; immutable
	removed    atomic.Pointer[[]uint64]           // ids of removed members
	sequence   atomic.Uint64                      // the last unique id that was assigned
	current    atomic.Pointer[Handles]
	lastPanic  atomic.Uint64 // index of the entry at which a stage last panicked
	keepLog    atomic.Bool   // a snapshot that is not newer than the log will be installed
	committed  atomic.Uint64 // as the log knew at the last boot
	installs   atomic.Uint64 // snapshots that were installed
	repairing  atomic.Bool   // boot waits for a snapshot
	// stopping ends with Stop, which calls stop.
	stopping context.Context
	stop     context.CancelFunc
	forced   atomic.Bool // ForceNewCluster has had its effect
}

// Handles are the parts of one incarnation that others use.
type Handles struct {
	Log   *wal.Log
	Store backend.Store
	// Keyspace is only for recognising its views.
	Keyspace *mvcc.Store
	MVCC     *actors.Mailbox
}

// Core returns the parts that the compactor, the scrubber and the senders of snapshots use.
func (c *Handles) Core() mvccactor.Core {
	return mvccactor.Core{MVCC: c.MVCC, Store: c.Store, Keyspace: c.Keyspace}
}

// New returns a host. wait waits between two attempts of a call; see
// leaseactor.ClientConfig.Pause.
func New(cfg Config, shared Shared, wait func(context.Context) bool) *Host {
	if cfg.Storage.OpenStore == nil {
		cfg.Storage.OpenStore = backend.Open
	}
	if cfg.Tokens == nil {
		cfg.Tokens = authn.NewTokens(authn.DefaultTokenTTL)
	}
	h := &Host{Shared: shared, cfg: cfg, Holds: mvccactor.NewHolds(), stores: cfg.Dir.stores()}
	h.stopping, h.stop = context.WithCancel(context.Background())
	h.Requests = raftactor.NewClient(raftactor.ClientConfig{Timeout: cfg.RequestTimeout, State: h.Raft,
		Full: cfg.Disk.LogFull, Metrics: cfg.Metrics.Raft})
	h.Leases = leaseactor.NewClient(leaseactor.ClientConfig{Timeout: cfg.RequestTimeout,
		ReadIndex: h.Requests.ReadIndex, Alone: h.Raft.Alone, Slow: cfg.SlowKeepAlive, Pause: wait,
		Self: cfg.Identity.MemberID, Leader: h.Leader, Forwarder: cfg.LeaseForwarder})
	// Ids are unique among members and boots, because the upper half is random.
	h.sequence.Store((cfg.Rand()^cfg.Identity.MemberID)&^(1<<32-1) | 1)
	return h
}

// Installing reports whether a snapshot was received and the core reboots to install it.
func (h *Host) Installing() bool { return h.installing.Load() }

// Connect sets the network. IMPORTANT: it must be called before the core starts.
func (h *Host) Connect(n Network) { h.cfg.Network = n }

// Leader returns the member that leads, and its term, as far as this one knows; 0 if there is
// none.
func (h *Host) Leader() (id, term uint64) {
	s := h.Raft.Status()
	return s.Leader, s.Term
}

func (h *Host) nextID() uint64 { return h.sequence.Add(1) }

// Current returns the handles of the running incarnation; nil if none is running.
func (h *Host) Current() *Handles { return h.current.Load() }

// Replayed reports whether the view has all that the log knew to be committed at the last
// boot. The store may have been behind.
func (h *Host) Replayed() bool {
	return h.Published.View() != nil && h.Applied() >= h.committed.Load()
}

// CoreConfig returns the configuration of the supervisor.
func (h *Host) CoreConfig(registry *actors.Registry) actors.CoreConfig {
	return actors.CoreConfig{
		Boot: h.boot, GiveUp: h.giveUp, Classify: h.classify, OnReboot: h.onReboot,
		Registry: registry, Logger: h.cfg.Logger,
	}
}

// Stop prevents further reboots.
func (h *Host) Stop() { h.stop() }

func (h *Host) isStopping() bool { return h.stopping.Err() != nil }

// ErrStopping ends a reboot of the core while the member stops.
var ErrStopping = errors.New("core: the member is stopping")

// deliver passes the results of a batch to the callers, with the ranges of their
// transactions that they have yet to read.
func (h *Host) deliver(b *raftmsg.ResultBatch, ranges []*mvcc.TxnRanges) {
	var rests []raftactor.Rest
	if ranges != nil {
		rests = make([]raftactor.Rest, len(ranges))
	}
	for i, r := range ranges {
		if r != nil {
			rests[i] = r
		}
	}
	h.Replies.Deliver(b, rests)
}

func (h *Host) giveUp(reason error) {
	h.Replies.FailAll(raftmsg.Code_STOPPED)
	if !errors.Is(reason, ErrStopping) {
		h.cfg.Exit(reason)
	}
}

// classify returns a reason to give up at once if a reboot would only repeat the failure.
func (h *Host) classify(f actors.Failure) error {
	var entry *actors.EntryPanic
	switch {
	case errors.Is(f, wal.ErrFailed), errors.Is(f, backend.ErrFailed):
		return f
	case errors.As(f, &entry):
		if h.lastPanic.Swap(entry.Index) == entry.Index {
			return fmt.Errorf("core: applying entry %d failed twice: %w", entry.Index, f)
		}
	}
	return nil
}

// onReboot fails the calls that the failed incarnation has not answered.
func (h *Host) onReboot(epoch uint64, f actors.Failure) {
	if !f.Planned { // the supervisor has logged the reason of one that is
		h.logFailure(epoch, f)
	}
	h.Raft.Reset()
	h.Replies.FailAll(raftmsg.Code_STOPPED)
}

func (h *Host) logFailure(epoch uint64, f actors.Failure) {
	h.cfg.Logger.Error().Str("stage", f.Stage).Uint64("epoch", epoch).Interface("reason", fmt.Sprint(f.Reason)).
		Bytes("stack", f.Stack).Msg("a stage failed; the core reboots from disk")
}
