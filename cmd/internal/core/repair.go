package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/walactor/wal"
)

// How a member whose store is damaged gets that of another member, in the order of time:
//
//	request   the member asks another one for a snapshot, the leader first. It goes on
//	          meanwhile: it votes, appends and applies. Its log keeps all entries while the
//	          disk has room, because the snapshot may be older than the store that it replaces
//	receive   as of any snapshot; see snapshot.go
//	install   the mark of the log may be below what was applied here: the entries after it are
//	          in the log, and the next incarnation applies them to the new store
//
// If the damage is found at a start, or after a write that depends on it has failed the core,
// there is no core until the snapshot has arrived: boot waits for it.

const (
	// repairRetry is the pause after which boot asks all members again.
	repairRetry = time.Second
	// repairPoll is the interval at which the progress of a transfer is checked.
	repairPoll = 50 * time.Millisecond
	// requestTimeout bounds a request for a snapshot, which is answered at once.
	requestTimeout = time.Second
	// transferBegin bounds the time until a requested transfer begins: the sender waits until
	// its store is durable.
	transferBegin = 10 * time.Second
)

// Errors of Repair.
var (
	// errNoSource: there is no other member that could send a snapshot.
	errNoSource = errors.New("core: no other member can send a snapshot")
	errRefused  = errors.New("core: the request for a snapshot was refused")
	// errTransfer: the sender's log says why.
	errTransfer = errors.New("core: the snapshot that was requested did not arrive")
)

// Replicated reports whether other voters have the data of this member.
func (h *Host) Replicated() bool {
	members := h.cfg.Members
	if known := h.members.Load(); known != nil {
		members = *known
	}
	return slices.ContainsFunc(members, func(m *applymsg.Member) bool {
		return m.Id != h.cfg.Identity.MemberID && !m.IsLearner
	})
}

// Repair replaces the store by that of another member, and returns when the core reboots with
// it. The core goes on meanwhile. Errors: why none of the others has sent a snapshot, and that
// of ctx.
func (h *Host) Repair(ctx context.Context) error {
	h.keepLog.Store(true)
	defer h.keepLog.Store(false)
	before := h.installs.Load()
	return h.fetch(ctx, func() bool { return h.installs.Load() != before })
}

// repairable reports whether a store that cannot be opened may be replaced.
func (h *Host) repairable(err error) bool {
	var file *backend.CorruptError
	var pack *mvcc.CorruptError
	if !errors.As(err, &file) && !errors.As(err, &pack) {
		return false
	}
	if h.members.Load() == nil {
		h.readMembers()
	}
	return h.Replicated()
}

// readMembers takes the members from the damaged store, if it still has them.
func (h *Host) readMembers() {
	dir, err := h.stores.Current()
	if err != nil {
		return
	}
	cfg := h.backendConfig(0)
	cfg.Dir = dir
	if d, err := snapshot.State(cfg, h.cfg.Storage.OpenStore); err == nil && len(d.GetCluster().GetMembers()) > 0 {
		h.membersChanged(d.Cluster)
	}
}

// replaceStore waits until another member has sent a snapshot, and installs it. Errors:
// ErrStopping, and those of the log.
func (h *Host) replaceStore(damage error) error {
	h.cfg.Corrupt(damage)
	h.cfg.Logger.Warn().Err(damage).Msg("the store is damaged: waiting for a snapshot of another member")
	if h.members.Load() == nil {
		h.membersChanged(nil)
	}
	h.repairing.Store(true)
	defer h.repairing.Store(false)
	for {
		err := h.fetch(h.stopping, func() bool { return h.received.Load() != nil })
		if h.isStopping() {
			return ErrStopping
		}
		if err == nil {
			return h.installReceived()
		}
		h.cfg.Logger.Warn().Err(err).Msg("failed to get a snapshot of another member; trying again")
		_ = actors.Sleep(h.stopping, repairRetry)
	}
}

// installReceived installs the snapshot that was received, while no core runs.
func (h *Host) installReceived() error {
	log, _, err := h.openLog()
	if errors.Is(err, wal.ErrNoSpace) {
		err = h.cfg.Disk.Full(err)
	}
	if err != nil {
		return err
	}
	return errors.Join(h.install(log), log.Close())
}

// fetch requests a snapshot from one member after another, until done reports that one has
// arrived.
func (h *Host) fetch(ctx context.Context, done func() bool) error {
	failed := errNoSource
	for _, from := range h.sources() {
		err := h.request(ctx, from)
		if err == nil {
			err = h.awaitTransfer(ctx, from, done)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		failed = errors.Join(failed, fmt.Errorf("member %x: %w", from, err))
	}
	return failed
}

// sources returns the other members, the leader first.
func (h *Host) sources() []uint64 {
	var ids []uint64
	leader := h.Raft.Status().Leader
	for _, id := range h.others() {
		if id == leader {
			ids = slices.Insert(ids, 0, id)
		} else {
			ids = append(ids, id)
		}
	}
	return ids
}

func (h *Host) request(ctx context.Context, from uint64) error {
	conn, ok := h.cfg.Network.Conn(from)
	if !ok {
		return fmt.Errorf("%w: not connected", errRefused)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer actors.AfterFunc(requestTimeout, cancel).Stop()
	resp, err := peerpb.NewRepairClient(conn).RequestSnapshot(ctx, &peerpb.SnapshotRequest{
		ClusterId: h.cfg.Identity.ClusterID, From: h.cfg.Identity.MemberID, To: from})
	if err != nil {
		return err
	}
	if resp.Refused != "" {
		return fmt.Errorf("%w: %s", errRefused, resp.Refused)
	}
	return nil
}

// awaitTransfer waits until done, or until the transfer from a member has ended without.
func (h *Host) awaitTransfer(ctx context.Context, from uint64, done func() bool) error {
	k := transferKey{peer: from, receiving: true}
	requested, seen := actors.Now(), false
	for {
		active := h.transfers.inProgress(k) || h.received.Load() != nil // or is being installed
		if done() {
			return nil
		}
		if seen = seen || active; !active && (seen || actors.Now()-requested > int64(transferBegin)) {
			return errTransfer
		}
		if err := actors.Sleep(ctx, repairPoll); err != nil {
			return err
		}
		h.boundLog()
	}
}

// boundLog ends the keeping of the log when the disk has no room for it: the alarm for that
// refuses puts on all members. If the log is then trimmed beyond the snapshot, the snapshot is
// discarded, and the next attempt requests another one.
func (h *Host) boundLog() {
	if h.keepLog.Load() && !h.cfg.Disk.Room(0) {
		h.keepLog.Store(false)
		h.cfg.Logger.Warn().Msg("no room to keep the log until the snapshot arrives")
	}
}

// RepairServer returns what answers the members whose stores are damaged.
func (h *Host) RepairServer() peerpb.RepairServer { return repairServer{h: h} }

type repairServer struct {
	peerpb.UnimplementedRepairServer
	h *Host
}

// RequestSnapshot implements peerpb.RepairServer.
func (s repairServer) RequestSnapshot(_ context.Context, req *peerpb.SnapshotRequest) (*peerpb.SnapshotRequested, error) {
	h := s.h
	known := func(id uint64) bool {
		members := h.members.Load()
		return members != nil && slices.ContainsFunc(*members, func(m *applymsg.Member) bool { return m.Id == id })
	}
	resp := new(peerpb.SnapshotRequested)
	switch {
	case req.ClusterId != h.cfg.Identity.ClusterID || req.To != h.cfg.Identity.MemberID:
		resp.Refused = "the request is for another member"
	case req.From == h.cfg.Identity.MemberID || !known(req.From):
		resp.Refused = "the sender is not a member"
	case h.cfg.Damaged():
		resp.Refused = "the store is damaged here as well"
	case h.current.Load() == nil:
		resp.Refused = "the core is not running"
	case !h.sendSnapshot(req.From):
		resp.Refused = "too many snapshots are being sent"
	}
	return resp, nil
}
