package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// The path of a snapshot at the sender:
//
//	begin   sizes for the receiver's check of room
//	round   lists the packs from the last one of the round before on, and sends all but
//	        the last one, which may still change. Everything written meanwhile is left
//	        for the next round
//	last    when little is left, the rest of the packs and the state are copied between
//	        two commits, and sent
//	hold    if the hold on reclaiming is still in effect, nothing that was sent has changed
//	end     index, configuration and fingerprint of that moment
//
// So each pack is sent once, in order. If writers outrun the transfer, the last part grows
// from round to round; it is taken when it is small or after roundsMax rounds.

const (
	// Format is the version of the chunks.
	Format = 1
	// chunkBytes bounds a chunk; a single larger value has one of its own.
	chunkBytes = 1 << 20
	// chunkOverhead is what a value takes in a chunk beside its bytes, at most, without
	// its name.
	chunkOverhead = 48
	// lastRoundBytes is from how many bytes of packs on another round is made. The last round is
	// copied to memory while commits to the store wait.
	lastRoundBytes = 8 << 20
	// roundsMax bounds the rounds, and lateRoundBytes what is copied after so many: the
	// transfer fails if more than that is written during a round.
	roundsMax      = 64
	lateRoundBytes = 64 << 20
)

// Errors of Send.
var (
	// ErrOutrun: more is written to the store than can be sent.
	ErrOutrun = errors.New("snapshot: the store is written faster than it can be sent")
	// ErrNoState: nothing was ever applied to the store.
	ErrNoState = errors.New("snapshot: the store has no state")
)

// Stream takes chunks. Send blocks while the receiver is slow. It must not keep the chunk:
// the next one has its memory.
type Stream interface {
	Send(*peerpb.SnapshotChunk) error
}

// SendConfig is what Send needs.
type SendConfig struct {
	ClusterID, From, To uint64
	Store               backend.Store
	// Hold is the hold on reclaiming, acquired before Send and released after it. Its
	// Err returns an error if it has ended.
	Hold interface{ Err() error }
	// BytesPerSecond bounds the rate; 0 means no bound.
	BytesPerSecond int64
	// Busy reports whether clients write, so that the transfer must leave them room; see
	// pace.go. nil means that they do not.
	Busy func() bool
	// Progress, if set, is called after each chunk with the bytes sent and an estimate
	// of all bytes.
	Progress func(sent, total uint64)
	Metrics  *Metrics

	// Clock measures the transfer.
	Clock Clock
	// ChunkBytes and LastRoundBytes are the size of a chunk, and from how many bytes of
	// packs on another round is made; 0 means 1 MiB and 8 MiB. Tests use less.
	ChunkBytes, LastRoundBytes int
}

// Sent is what Send sent.
type Sent struct {
	// Index and Term are those of the last applied entry.
	Index, Term uint64
	ConfState   *raftpb.ConfState
	Bytes       uint64 // of packs and state
}

// Send sends a store as one snapshot. When it returns nil, the stream has taken everything;
// only the receiver knows whether it is installed. Errors: that of ctx, of the stream, of the
// hold and of the store; ErrOutrun, ErrNoState; backend.ErrChanged if a pack was rewritten in
// spite of the hold.
func Send(ctx context.Context, cfg SendConfig, stream Stream) (sent *Sent, err error) {
	end := cfg.Metrics.sending(cfg.To)
	done := false
	defer func() {
		if !done && err == nil {
			err = errors.New("snapshot: Send panicked") // counts as a failure
		}
		end(err)
	}()
	if cfg.ChunkBytes == 0 {
		cfg.ChunkBytes = chunkBytes
	}
	if cfg.LastRoundBytes == 0 {
		cfg.LastRoundBytes = lastRoundBytes
	}
	now := cfg.Clock.now()
	s := &sender{ctx: ctx, cfg: cfg, stream: stream, start: now, worked: now}
	sent, err = s.run()
	done = true
	if err != nil {
		return nil, fmt.Errorf("snapshot: send to %x: %w", cfg.To, err)
	}
	return sent, nil
}

type sender struct {
	ctx    context.Context
	cfg    SendConfig
	stream Stream
	start  int64 // of the transfer, by the clock

	chunk *peerpb.SnapshotChunk // being filled
	size  int                   // of its values and names, in bytes
	// used are the buffers of the packs in the chunk that were read for it, and free those of
	// earlier chunks. A transfer needs no more memory than a chunk.
	used, free [][]byte
	// worked is when the work on the chunk began.
	worked int64
	// hurried is set while a round is more than half as large as the one before it: with
	// rests, the writers might outrun the transfer.
	hurried bool
	sent    uint64              // bytes of values and names
	total   uint64              // estimate
	print   backend.Fingerprint // of what was sent
}

func (s *sender) run() (*Sent, error) {
	s.chunk = new(peerpb.SnapshotChunk)
	var next backend.PackID
	var before int64 // bytes of the round before
	limit := int64(s.cfg.LastRoundBytes)
	for round := 0; ; round++ {
		snap, err := s.cfg.Store.Snapshot(next, limit)
		if err != nil {
			return nil, err
		}
		s.total = max(snap.PackBytes, s.sent)
		if round == 0 {
			s.chunk.Begin = &peerpb.SnapshotBegin{ClusterId: s.cfg.ClusterID, From: s.cfg.From, To: s.cfg.To,
				Bytes: snap.PackBytes, Format: Format}
			if err := s.flush(); err != nil { // at once: the receiver may have no room
				return nil, err
			}
		}
		if snap.Complete {
			return s.last(snap)
		}
		if len(snap.Packs) == 1 { // larger than the limit by itself
			limit = max(limit, int64(snap.Packs[0].Size)+1)
			continue
		}
		bytes := snap.Bytes()
		s.hurried = round > 0 && bytes > before/2
		before = bytes
		if next, err = s.round(snap); err != nil {
			return nil, err
		}
		switch round {
		case roundsMax:
			limit = max(limit, lateRoundBytes)
		case roundsMax + 1:
			return nil, ErrOutrun
		}
	}
}

// round sends the listed packs but the last one, whose id it returns.
func (s *sender) round(snap *backend.Snapshot) (last backend.PackID, err error) {
	for _, p := range snap.Packs[:len(snap.Packs)-1] {
		if err := s.check(); err != nil {
			return last, err
		}
		value, err := s.cfg.Store.LoadStored(p, s.buffer())
		if err != nil {
			return last, err
		}
		if err := s.pack(p, value); err != nil {
			return last, err
		}
		s.used = append(s.used, value)
	}
	return snap.Packs[len(snap.Packs)-1].ID, nil
}

// buffer returns a buffer for a pack; nil if there is none.
func (s *sender) buffer() []byte {
	n := len(s.free)
	if n == 0 {
		return nil
	}
	b := s.free[n-1]
	s.free = s.free[:n-1]
	return b
}

// last sends what was copied, and the end.
func (s *sender) last(snap *backend.Snapshot) (*Sent, error) {
	var d *mvccmsg.Durable
	for i, p := range snap.Packs {
		if err := s.pack(p, snap.Values[i]); err != nil {
			return nil, err
		}
	}
	for _, e := range snap.State {
		content, err := backend.OpenState(e.Key, e.Value)
		if err != nil {
			return nil, err
		}
		if e.Key == StateName {
			d = new(mvccmsg.Durable)
			if err := proto.Unmarshal(content, d); err != nil {
				return nil, fmt.Errorf("decode the state: %w", err)
			}
		}
		if err := s.state(e); err != nil {
			return nil, err
		}
	}
	if d == nil {
		return nil, ErrNoState
	}
	if s.print != snap.Fingerprint {
		return nil, fmt.Errorf("%w: sent %v, the store has %v", backend.ErrChanged, s.print, snap.Fingerprint)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	s.chunk.End = &peerpb.SnapshotEnd{Index: d.AppliedIndex, Term: d.AppliedTerm, ConfState: d.ConfState,
		Fingerprint: snap.Fingerprint.Encode()}
	if err := s.flush(); err != nil {
		return nil, err
	}
	return &Sent{Index: d.AppliedIndex, Term: d.AppliedTerm, ConfState: d.ConfState, Bytes: s.sent}, nil
}

// check returns an error if the transfer must end.
func (s *sender) check() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	return s.cfg.Hold.Err()
}

func (s *sender) pack(p backend.PackInfo, value []byte) error {
	if err := s.room(len(value)); err != nil {
		return err
	}
	s.print.AddPack(p)
	s.chunk.Packs = append(s.chunk.Packs, &peerpb.SnapshotPack{Main: p.ID.Main, Sub: int64(p.ID.Sub), Value: value})
	return nil
}

func (s *sender) state(e backend.Entry) error {
	if err := s.room(len(e.Key) + len(e.Value)); err != nil {
		return err
	}
	s.print.AddState(e.Key, e.Value)
	s.chunk.State = append(s.chunk.State, &peerpb.SnapshotState{Name: e.Key, Value: e.Value})
	return nil
}

// room sends the chunk if n bytes more do not fit it.
func (s *sender) room(n int) error {
	if s.size > 0 && s.size+n+chunkOverhead > s.cfg.ChunkBytes-chunkOverhead {
		if err := s.flush(); err != nil {
			return err
		}
	}
	s.size += n + chunkOverhead
	s.sent += uint64(n)
	return nil
}

// flush sends the chunk, and waits if clients write or the rate is bounded.
func (s *sender) flush() error {
	if err := s.check(); err != nil {
		return err
	}
	s.chunk.Rest = s.resting()
	if err := s.stream.Send(s.chunk); err != nil {
		return err
	}
	if s.chunk.Rest {
		if err := s.cfg.Clock.rest(s.ctx, s.worked); err != nil {
			return err
		}
	}
	s.reuse()
	if s.cfg.Progress != nil {
		s.cfg.Progress(s.sent, max(s.total, s.sent))
	}
	if s.cfg.BytesPerSecond > 0 {
		due := time.Duration(float64(s.sent) / float64(s.cfg.BytesPerSecond) * float64(time.Second))
		if err := s.cfg.Clock.sleep(s.ctx, due-s.cfg.Clock.since(s.start)); err != nil {
			return err
		}
	}
	s.worked = s.cfg.Clock.now()
	return nil
}

// resting reports whether the transfer must rest after this chunk.
func (s *sender) resting() bool {
	return s.cfg.Busy != nil && s.chunk.End == nil && !s.hurried && s.cfg.Clock.since(s.start) < restingMax && s.cfg.Busy()
}

// reuse begins the next chunk with the memory of the one that was sent.
func (s *sender) reuse() {
	for _, b := range s.used {
		if cap(b) <= s.cfg.ChunkBytes { // not the rare larger one
			s.free = append(s.free, b)
		}
	}
	clear(s.used)
	s.used = s.used[:0]
	s.chunk, s.size = new(peerpb.SnapshotChunk), 0
}
