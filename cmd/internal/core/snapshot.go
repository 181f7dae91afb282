package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// The way of a snapshot, in the order of time:
//
//	MsgSnap    raft of the leader wants a member to have one, or the member itself does; see
//	           repair.go. sendSnapshot passes it to a sender that is idle
//	send       a sender at the edge holds reclaiming, and streams the store
//	status     raft learns once, however the transfer ended, and continues with the log
//	receive    the member writes a store of its own, and asks for a planned reboot
//	install    while the stages are stopped, the log gets the mark, and CURRENT names the
//	           new store; the next boot opens it

// sendersMax bounds the snapshots that a member sends at a time, because each reads the whole
// store.
const sendersMax = 2

// statusRetry is the pause after which a status that raft's mailbox has refused is posted
// again.
const statusRetry = 100 * time.Millisecond

// progressEvery is the interval at which the progress of a transfer is logged.
const progressEvery = 10 * time.Second

// rateWindow is the shortest time over which the rate of a transfer is measured.
const rateWindow = time.Second

// clock is that of transfers.
var clock = snapshot.Clock{Now: actors.Now, Sleep: actors.Sleep}

// Transfer is a snapshot in progress.
type Transfer struct {
	Peer      uint64
	Receiving bool // from the peer; otherwise it is sent to the peer
	// Bytes is what was transferred so far, and Size an estimate of all, 0 until it is known.
	Bytes, Size uint64
	// Rate is the recent rate in bytes per second.
	Rate  float64
	Since time.Time
}

// transfer is a snapshot in progress.
type transfer struct {
	bytes, size uint64 // so far, and an estimate of all
	since       time.Time
	// sampled is when the sample of bytes was taken with which the next rate begins.
	sampled time.Time
	sample  uint64
	rate    float64 // of the last window, in bytes per second
	log     actors.Timer
}

// currentRate returns the rate since the last sample, or that of the window before it if the
// sample is too new.
func (a *transfer) currentRate(now time.Time) float64 {
	window := now.Sub(a.sampled)
	if window < rateWindow {
		return a.rate
	}
	return float64(a.bytes-a.sample) / window.Seconds()
}

// transfers are the snapshots in progress.
type transfers struct {
	mu      sync.Mutex
	active  map[transferKey]*transfer
	senders [sendersMax]*actors.Mailbox // of the senders; nil until they have started
}

type transferKey struct {
	peer      uint64
	receiving bool
}

// begin adds a transfer, and calls progress every progressEvery until it ends. It returns
// false if there is one with this peer, or if it would be the third one that is sent.
func (t *transfers) begin(k transferKey, progress func(Transfer)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	sending := 0
	for other := range t.active {
		if !other.receiving {
			sending++
		}
	}
	if t.active[k] != nil || !k.receiving && sending == sendersMax {
		return false
	}
	if t.active == nil {
		t.active = make(map[transferKey]*transfer)
	}
	now := actors.Wall()
	a := &transfer{since: now, sampled: now}
	t.active[k] = a
	a.log = actors.AfterFunc(progressEvery, func() {
		t.mu.Lock()
		active := t.active[k] == a
		state := a.describe(k)
		if active {
			a.log.Reset(progressEvery)
		}
		t.mu.Unlock()
		if active {
			progress(state)
		}
	})
	return true
}

// describe returns the state of a transfer. The caller holds the lock.
func (a *transfer) describe(k transferKey) Transfer {
	return Transfer{Peer: k.peer, Receiving: k.receiving, Bytes: a.bytes, Size: a.size,
		Rate: a.currentRate(actors.Wall()), Since: a.since}
}

// Transfers returns the snapshots in progress, those that are sent first, by peer.
func (h *Host) Transfers() []Transfer {
	t := &h.transfers
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Transfer
	for k, a := range t.active {
		list = append(list, a.describe(k))
	}
	slices.SortFunc(list, func(a, b Transfer) int {
		switch {
		case a.Receiving == b.Receiving:
			return cmp.Compare(a.Peer, b.Peer)
		case b.Receiving:
			return -1
		}
		return 1
	})
	return list
}

// logProgress logs the state of a transfer.
func (h *Host) logProgress(t Transfer) {
	key, msg := "to", "sending a snapshot"
	if t.Receiving {
		key, msg = "from", "receiving a snapshot"
	}
	h.cfg.Logger.Info().Str(key, fmt.Sprintf("%x", t.Peer)).Uint64("bytes", t.Bytes).Uint64("estimate", t.Size).
		Float64("bytes-per-second", math.Round(t.Rate)).Dur("took", actors.Wall().Sub(t.Since)).Msg(msg)
}

func (t *transfers) progress(k transferKey) func(done, size uint64) {
	return func(done, size uint64) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if a := t.active[k]; a != nil {
			a.bytes, a.size = done, size
			if now := actors.Wall(); now.Sub(a.sampled) >= rateWindow {
				a.rate = a.currentRate(now)
				a.sampled, a.sample = now, done
			}
		}
	}
}

func (t *transfers) end(k transferKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.active[k]; a != nil {
		a.log.Stop()
		delete(t.active, k)
	}
}

// Senders returns the actors at the edge that send snapshots.
func (h *Host) Senders() []actors.Child {
	var children []actors.Child
	for i := range sendersMax {
		name := actors.EdgeSnapshot(i)
		children = append(children, actors.Child{Name: name, New: func(uint64) (actors.Stage, error) {
			ctx, cancel := context.WithCancel(context.Background())
			box := actors.NewMailbox(actors.MailboxConfig{Name: name, Class: actors.Refuse,
				Limit: actors.Limit{Requests: 1, Bytes: 1}, Hold: true, Faults: h.cfg.Faults,
				OnReject: func(msg any, _ error) { h.sent(msg.(*sendCall).to, 0) }})
			h.transfers.mu.Lock()
			h.transfers.senders[i] = box
			h.transfers.mu.Unlock()
			return actors.Stage{Name: name, Actor: &sender{h: h, ctx: ctx, box: box}, Mailbox: box,
				Dispatcher: actors.Shared(), Cancel: cancel}, nil
		}})
	}
	return children
}

// sendSnapshot passes a request of raft, or of the member itself, to an idle sender. If there
// is none, it returns false, and raft learns that the transfer failed, and asks again later.
// raft ignores the end of a transfer for which it did not ask.
func (h *Host) sendSnapshot(to uint64) bool {
	k := transferKey{peer: to}
	if !h.transfers.begin(k, h.logProgress) {
		if h.transfers.inProgress(k) {
			actors.Seen("snapshot: requested again during the transfer")
			return true // the transfer in progress will be reported
		}
		actors.Seen("snapshot: too many at once")
		h.report(to, 0)
		return false
	}
	h.transfers.mu.Lock()
	senders := h.transfers.senders
	h.transfers.mu.Unlock()
	for _, box := range senders {
		if box != nil && box.TryPost(0, &sendCall{to}, actors.Cost{Requests: 1}) == nil {
			return true
		}
	}
	h.sent(to, 0)
	return false
}

func (t *transfers) inProgress(k transferKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active[k] != nil
}

// sent ends a transfer and reports to raft at which index the snapshot ends, or 0 if the transfer
// failed.
func (h *Host) sent(to, index uint64) {
	h.transfers.end(transferKey{peer: to})
	h.report(to, index)
}

// report posts the end of a transfer to raft. It must not be lost: raft sends nothing to the
// member until then. If there is no core, the next one does not wait for it.
func (h *Host) report(to, index uint64) {
	err := h.Requests.Receive(&raftmsg.SnapshotStatus{Id: to, Index: index})
	if errors.Is(err, actors.ErrFull) {
		actors.AfterFunc(statusRetry, func() { h.report(to, index) })
	}
}

// sendCall asks a sender for a snapshot to a member.
type sendCall struct{ to uint64 }

// sender sends one snapshot after another.
type sender struct {
	h   *Host
	ctx context.Context // ends when the actor is to stop
	box *actors.Mailbox
}

// Receive implements actor.Actor.
func (s *sender) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	for ; b.Done < len(b.Msgs); b.Done++ {
		s.send(b.Msgs[b.Done].(*sendCall).to)
		s.box.ReleaseLane(0, actors.Cost{Requests: 1})
	}
}

func (s *sender) send(to uint64) {
	h, index := s.h, uint64(0)
	defer func() { h.sent(to, index) }() // also if it panics
	log := h.cfg.Logger.With().Str("to", fmt.Sprintf("%x", to)).Logger()
	log.Info().Msg("sending a snapshot")
	began := actors.Wall()
	got, err := s.stream(to)
	if errors.Is(err, backend.ErrChanged) {
		// The hold was in effect; see stream.
		log.Error().Err(err).Msg("the store has changed during a snapshot, although reclaiming was held")
	}
	if err != nil {
		log.Warn().Err(err).Dur("took", actors.Wall().Sub(began)).Msg("failed to send a snapshot")
		return
	}
	index = got.Index
	log.Info().Uint64("index", got.Index).Uint64("bytes", got.Bytes).Dur("took", actors.Wall().Sub(began)).Msg("sent a snapshot")
}

func (s *sender) stream(to uint64) (*snapshot.Sent, error) {
	h := s.h
	c := h.current.Load()
	if c == nil {
		return nil, actors.ErrClosed
	}
	hold, err := h.Holds.Acquire(s.ctx, c.Core())
	if err != nil {
		return nil, err
	}
	defer hold.Release()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream, err := h.cfg.Network.OpenSnapshot(ctx, to)
	if err != nil {
		return nil, err
	}
	sent, err := snapshot.Send(ctx, snapshot.SendConfig{
		ClusterID: h.cfg.Identity.ClusterID, From: h.cfg.Identity.MemberID, To: to,
		Store: c.Store, Hold: hold, BytesPerSecond: h.cfg.SnapshotSendRate, Busy: busyFunc(h.Applied), Clock: clock,
		Progress: h.transfers.progress(transferKey{peer: to}), Metrics: h.cfg.Metrics.Snapshot,
		ChunkBytes: h.cfg.Storage.SnapshotChunkBytes, LastRoundBytes: h.cfg.Storage.SnapshotLastRoundBytes,
	}, stream)
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if ended := hold.Err(); ended != nil && errors.Is(err, backend.ErrChanged) {
		err = ended // what was held may change again
	}
	_, reason := stream.CloseAndRecv() // what the receiver says about it
	if err := errors.Join(err, reason); err != nil {
		return nil, err
	}
	return sent, nil
}

// busyFor is the time after a write for which clients are assumed to write.
const busyFor = time.Second

// busyFunc returns a function that reports whether clients write: whether an entry was applied
// within busyFor, as far as it has been called meanwhile. What the members propose themselves
// counts too, but is rare.
func busyFunc(applied func() uint64) func() bool {
	index, changed := applied(), actors.Now()
	busy := false // an entry was applied since the first call
	return func() bool {
		now := actors.Now()
		if i := applied(); i != index {
			index, changed, busy = i, now, true
		}
		return busy && now-changed < int64(busyFor)
	}
}

// ReceiveSnapshot receives a snapshot from a member, and begins to install it.
func (h *Host) ReceiveSnapshot(ctx context.Context, from uint64, stream peerpb.Peer_SnapshotServer) error {
	k := transferKey{peer: from, receiving: true}
	if h.current.Load() == nil && !h.repairing.Load() || !h.transfers.begin(k, h.logProgress) {
		actors.Seen("snapshot: refused by a member that is busy")
		return snapshot.ErrBusy // without a core, there is nothing to reboot
	}
	defer h.transfers.end(k)
	log := h.cfg.Logger.With().Str("from", fmt.Sprintf("%x", from)).Logger()
	log.Info().Msg("receiving a snapshot")
	began := actors.Wall()
	got, err := snapshot.Receive(ctx, snapshot.ReceiveConfig{
		ClusterID: h.cfg.Identity.ClusterID, Member: h.cfg.Identity.MemberID, From: from,
		Stores: h.stores, Backend: h.backendConfig(0), OpenBackend: h.cfg.Storage.OpenStore,
		Room: h.cfg.Disk.Room, Check: mvccactor.CheckState,
		Progress: h.transfers.progress(k), Clock: clock, Metrics: h.cfg.Metrics.Snapshot,
	}, stream)
	if err != nil {
		log.Warn().Err(err).Dur("took", actors.Wall().Sub(began)).Msg("failed to receive a snapshot")
		return err
	}
	log.Info().Uint64("index", got.Index).Uint64("bytes", got.Bytes).Dur("took", actors.Wall().Sub(began)).
		Msg("received a snapshot: rebooting the core to install it")
	h.received.Store(got) // there is no other: Stores receives none while one waits
	h.installing.Store(true)
	if !h.repairing.Load() {
		h.cfg.Reboot(fmt.Errorf("core: a snapshot of index %d was received from member %x", got.Index, from))
	}
	return stream.SendAndClose(&peerpb.SnapshotResult{Index: got.Index})
}

// install makes the received snapshot, if there is one, the state of the next incarnation. All
// stages have stopped, and the store is closed; the log is still open.
func (h *Host) install(log *wal.Log) error {
	got := h.received.Load()
	if got == nil {
		return nil
	}
	defer h.received.Store(nil)
	err := h.stores.Check(got.Index)
	if err == nil {
		mark := got.Index
		if actors.Planted("lose the tail of a snapshot") {
			mark++
		}
		err = log.Install(wal.Mark{Index: mark, Term: got.Term, ConfState: got.ConfState})
	}
	if errors.Is(err, wal.ErrStaleMark) {
		actors.Seen("snapshot: older than the log, discarded")
		h.cfg.Logger.Info().Err(err).Msg("the received snapshot is not newer than the log, and is discarded")
		return h.stores.Discard(got.Index)
	}
	if err != nil {
		return err
	}
	h.cfg.Logger.Info().Uint64("index", got.Index).Msg("installed a snapshot")
	if err := h.stores.Switch(got.Index); err != nil {
		return err
	}
	h.installed.Store(true)
	h.installs.Add(1)
	return nil
}

// chooseStore returns the folder of the store to open.
func (h *Host) chooseStore(mark uint64) (string, error) {
	return h.stores.Choose(mark, func(path string) (uint64, error) {
		cfg := h.backendConfig(0)
		cfg.Dir = path
		return snapshot.AppliedIndex(cfg, h.cfg.Storage.OpenStore)
	})
}

func (h *Host) backendConfig(packBytes int64) backend.Config {
	return backend.Config{
		Logger: storeLogger{h.cfg.Logger}, OnFailure: h.cfg.Exit,
		MemTableBytes: h.cfg.Storage.MemTableBytes, ValueLogBytes: h.cfg.Storage.ValueLogBytes,
		PackBytes: packBytes,
	}
}
