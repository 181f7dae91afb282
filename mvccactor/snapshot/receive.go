package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// The path of a snapshot at the receiver:
//
//	begin     identities, room, an empty store in a temporary folder
//	packs     each is checked, and committed with others
//	state     all but the entry with the applied index, which gets this member's id and
//	          is committed last
//	end       what arrived, and what the store has, must have the sender's fingerprint
//	complete  close, rename, sync
//
// After any error, and after a panic, the folder is removed.

const (
	// commitBytes is how many bytes of packs one commit has, unless a chunk has more, or the
	// transfer rests after each chunk.
	commitBytes = 4 << 20
	// stateBytes and stateCount bound the state of one commit: it must fit a transaction
	// of the store. A single larger entry did so at the sender.
	stateBytes = 128 << 10
	stateCount = 1000
	// storeFactor is how much room the store takes in the worst case, for each byte of
	// packs: its files are allocated in advance, and memtables are logged as well.
	storeFactor = 1.1
	// storeBytes is what an empty store takes.
	storeBytes = 64 << 20
)

// Errors of Receive.
var (
	// ErrNoRoom: the disk has no room for the snapshot.
	ErrNoRoom = errors.New("snapshot: no room on the disk")
	// ErrStream: the chunks do not follow the format.
	ErrStream = errors.New("snapshot: malformed stream")
	// ErrFingerprint: what was received is not what the sender has.
	ErrFingerprint = errors.New("snapshot: received content differs from the sender's")
	// ErrOtherMember: the snapshot is of another cluster, or for another member.
	ErrOtherMember = errors.New("snapshot: not for this member")
)

// Source yields chunks. Recv returns an error if the sender failed or the stream ended.
type Source interface {
	Recv() (*peerpb.SnapshotChunk, error)
}

// ReceiveConfig is what Receive needs.
type ReceiveConfig struct {
	ClusterID, Member uint64
	From              uint64 // the peer at the other end of the stream
	Stores            *Stores
	// Backend configures the store. Receive sets its folder and its Visit functions.
	Backend backend.Config
	// OpenBackend opens the store: backend.Open, or a replacement in tests.
	OpenBackend func(backend.Config) (backend.Store, error)
	// Room reports whether the disk has room for so many bytes more. Nil means that
	// there is always room.
	Room func(bytes int64) bool
	// Check may refuse the state, before the snapshot is complete: mvccactor.CheckState.
	Check func(*mvccmsg.Durable) error
	// Progress, if set, is called after each chunk with the bytes received and an
	// estimate of all bytes.
	Progress func(received, total uint64)
	// Clock measures the transfer.
	Clock   Clock
	Metrics *Metrics
}

// Received is a snapshot that was received and is durable. Its store waits to be installed,
// or to be removed by Stores.Discard.
type Received struct {
	// Index and Term are those of its last applied entry, ConfState the configuration as
	// of then: what the mark in the log needs.
	Index, Term uint64
	ConfState   *raftpb.ConfState
	Bytes       uint64 // of packs and state
}

// Receive receives one snapshot. Errors: ErrBusy, ErrNoRoom, ErrStream, ErrFingerprint,
// ErrOtherMember, a *backend.CorruptError that names a damaged pack, and those of ctx, of
// the source, of Check, of the store and of the file system.
func Receive(ctx context.Context, cfg ReceiveConfig, source Source) (got *Received, err error) {
	end := cfg.Metrics.receiving(cfg.From)
	r := &receiver{ctx: ctx, cfg: cfg, source: source}
	if r.path, err = cfg.Stores.begin(); err != nil {
		end(err)
		return nil, err
	}
	defer func() {
		if got == nil { // an error, or a panic
			failed := err
			if failed == nil {
				failed = errors.New("snapshot: Receive panicked")
			}
			end(failed)
			err = errors.Join(err, r.closeStore(), cfg.Stores.abort())
			return
		}
		end(nil)
	}()
	got, err = r.run()
	if err != nil {
		return nil, fmt.Errorf("snapshot: receive from %x: %w", cfg.From, err)
	}
	return got, nil
}

type receiver struct {
	ctx    context.Context
	cfg    ReceiveConfig
	source Source
	path   string
	store  backend.Store // nil before begin and after closeStore

	begun, inState bool
	lastPack       backend.PackID
	lastName       string
	total          uint64 // estimate
	bytes          uint64 // received, of values and names
	print          backend.Fingerprint

	batch   backend.Batch // checked and not committed
	pending int64         // bytes of its packs
	stated  int64         // bytes of its state
	largest int64         // pack in batch, in bytes
	durable *mvccmsg.Durable
}

func (r *receiver) run() (*Received, error) {
	for {
		if err := r.ctx.Err(); err != nil {
			return nil, err
		}
		c, err := r.source.Recv()
		began := r.cfg.Clock.now()
		if err == io.EOF {
			return nil, fmt.Errorf("%w: it ends before the snapshot", ErrStream)
		}
		if err != nil {
			return nil, err
		}
		if err := r.chunk(c); err != nil {
			return nil, err
		}
		if r.cfg.Progress != nil {
			r.cfg.Progress(r.bytes, max(r.total, r.bytes))
		}
		if c.End != nil {
			return r.end(c.End)
		}
		if c.Rest {
			// Committed now, so that the disk gets little at a time.
			if err := r.commit(); err != nil {
				return nil, err
			}
			if err := r.cfg.Clock.rest(r.ctx, began); err != nil {
				return nil, err
			}
		}
	}
}

// chunk takes everything of a chunk but the end.
func (r *receiver) chunk(c *peerpb.SnapshotChunk) error {
	switch {
	case c == nil || c.Begin == nil && c.End == nil && len(c.Packs)+len(c.State) == 0:
		return fmt.Errorf("%w: empty chunk", ErrStream)
	case (c.Begin != nil) == r.begun:
		return fmt.Errorf("%w: begin is missing or repeated", ErrStream)
	}
	if c.Begin != nil {
		if err := r.begin(c.Begin); err != nil {
			return err
		}
	}
	for _, p := range c.Packs {
		if err := r.pack(p); err != nil {
			return err
		}
	}
	for _, e := range c.State {
		if err := r.state(e); err != nil {
			return err
		}
	}
	if r.pending >= commitBytes {
		return r.commit()
	}
	return nil
}

func (r *receiver) begin(b *peerpb.SnapshotBegin) error {
	switch {
	case b.Format != Format:
		return fmt.Errorf("%w: format %d, this version knows %d", ErrStream, b.Format, Format)
	case b.ClusterId != r.cfg.ClusterID || b.To != r.cfg.Member || b.From != r.cfg.From:
		return fmt.Errorf("%w: from %x to %x in cluster %x; this is %x in cluster %x, connected to %x", ErrOtherMember,
			b.From, b.To, b.ClusterId, r.cfg.Member, r.cfg.ClusterID, r.cfg.From)
	}
	need := storeFactor*float64(b.Bytes) + storeBytes
	if need > math.MaxInt64/2 || !r.room(int64(need)) {
		return fmt.Errorf("%w: it takes %.0f bytes", ErrNoRoom, need)
	}
	r.begun, r.total = true, b.Bytes
	return r.open()
}

func (r *receiver) room(bytes int64) bool { return r.cfg.Room == nil || r.cfg.Room(bytes) }

func (r *receiver) open() (err error) {
	cfg := r.cfg.Backend
	cfg.Dir, cfg.MustExist = r.path, false
	cfg.VisitState, cfg.VisitPack = nil, nil
	cfg.PackBytes = max(cfg.PackBytes, r.largest)
	r.store, err = r.cfg.OpenBackend(cfg)
	return err
}

func (r *receiver) pack(p *peerpb.SnapshotPack) error {
	id := backend.PackID{Main: p.GetMain(), Sub: int32(p.GetSub())}
	switch {
	case p.GetSub() < 0 || p.GetSub() > math.MaxInt32:
		return fmt.Errorf("%w: pack %d.%d", ErrStream, p.GetMain(), p.GetSub())
	case r.inState:
		return fmt.Errorf("%w: pack %s after state", ErrStream, id)
	case id.Compare(r.lastPack) <= 0:
		return fmt.Errorf("%w: pack %s after pack %s", ErrStream, id, r.lastPack)
	}
	content, info, err := backend.OpenPack(id, p.Value)
	if err != nil {
		return err
	}
	r.lastPack = id
	r.print.AddPack(info)
	r.batch.Put = append(r.batch.Put, backend.Pack{ID: id, Parts: [][]byte{content}})
	r.pending += int64(len(p.Value))
	r.bytes += uint64(len(p.Value))
	r.largest = max(r.largest, int64(len(p.Value)))
	return nil
}

func (r *receiver) state(e *peerpb.SnapshotState) error {
	name := e.GetName()
	if name <= r.lastName {
		return fmt.Errorf("%w: state %q after state %q", ErrStream, name, r.lastName)
	}
	content, err := backend.OpenState(name, e.Value)
	if err != nil {
		return err
	}
	r.inState, r.lastName = true, name
	r.print.AddState(name, e.Value)
	size := int64(len(name) + len(e.Value))
	r.bytes += uint64(size)
	if name == StateName {
		r.durable = new(mvccmsg.Durable)
		if err := proto.Unmarshal(content, r.durable); err != nil {
			return fmt.Errorf("%w: decode the state: %w", ErrStream, err)
		}
		return nil
	}
	if len(r.batch.Set) == stateCount || len(r.batch.Set) > 0 && r.stated+size > stateBytes {
		if err := r.commit(); err != nil {
			return err
		}
	}
	r.batch.Set = append(r.batch.Set, backend.Entry{Key: name, Value: content})
	r.stated += size
	return nil
}

// commit makes the batch durable, if there is something in it.
func (r *receiver) commit() error {
	if len(r.batch.Put)+len(r.batch.Set) == 0 {
		return nil
	}
	if !r.room(2 * (r.pending + r.stated)) {
		return ErrNoRoom
	}
	err := r.store.Commit(r.batch)
	if errors.Is(err, backend.ErrBatch) && r.largest > 0 {
		// A pack is too large for the files of this store: it was written where they
		// are larger. They are chosen when the store is opened.
		if err := errors.Join(r.closeStore(), r.open()); err != nil {
			return err
		}
		err = r.store.Commit(r.batch)
	}
	if err != nil {
		return err
	}
	r.batch, r.pending, r.stated = backend.Batch{}, 0, 0
	return nil
}

func (r *receiver) end(e *peerpb.SnapshotEnd) (*Received, error) {
	d := r.durable
	want, err := backend.ParseFingerprint(e.Fingerprint)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrStream, err)
	case want != r.print:
		return nil, fmt.Errorf("%w: received %v, the sender has %v", ErrFingerprint, r.print, want)
	case d == nil:
		return nil, fmt.Errorf("%w: there is no state", ErrStream)
	case d.ClusterId != r.cfg.ClusterID:
		return nil, fmt.Errorf("%w: the state is of cluster %x", ErrOtherMember, d.ClusterId)
	case d.AppliedIndex != e.Index || d.AppliedTerm != e.Term || e.Index == 0:
		return nil, fmt.Errorf("%w: state of index %d and term %d, end of index %d and term %d", ErrStream,
			d.AppliedIndex, d.AppliedTerm, e.Index, e.Term)
	case !proto.Equal(confOf(d.ConfState), confOf(e.ConfState)):
		return nil, fmt.Errorf("%w: configuration %v in the state, %v in the end", ErrStream, d.ConfState, e.ConfState)
	}
	if r.cfg.Check != nil {
		if err := r.cfg.Check(d); err != nil {
			return nil, err
		}
	}
	if err := r.complete(); err != nil {
		return nil, err
	}
	return &Received{Index: d.AppliedIndex, Term: d.AppliedTerm, ConfState: d.ConfState, Bytes: r.bytes}, nil
}

func confOf(c *raftpb.ConfState) *raftpb.ConfState {
	if c == nil {
		return new(raftpb.ConfState)
	}
	return c
}

// complete commits the rest, compares the store with what was received, and gives it its
// name.
func (r *receiver) complete() error {
	if err := r.commit(); err != nil {
		return err
	}
	own := proto.CloneOf(r.durable)
	own.MemberId = r.cfg.Member
	state, err := proto.Marshal(own)
	if err != nil {
		return fmt.Errorf("encode the state: %w", err)
	}
	if err := r.store.Commit(backend.Batch{Set: []backend.Entry{{Key: StateName, Value: state}}}); err != nil {
		return err
	}
	written, err := r.store.Snapshot(backend.PackID{Main: math.MaxInt64, Sub: math.MaxInt32}, 0)
	if err != nil {
		return err
	}
	if !written.Fingerprint.SamePacks(r.print) {
		return fmt.Errorf("%w: wrote %v, received %v", ErrFingerprint, written.Fingerprint, r.print)
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	start := time.Now()
	if err := r.closeStore(); err != nil {
		return err
	}
	if err := r.cfg.Stores.finish(own.AppliedIndex); err != nil {
		return err
	}
	r.cfg.Metrics.synced(time.Since(start))
	return nil
}

// closeStore closes the store, if it is open.
func (r *receiver) closeStore() error {
	if r.store == nil {
		return nil
	}
	s := r.store
	r.store = nil
	return s.Close()
}
