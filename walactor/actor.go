package walactor

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/raftactor/replica"
	"github.com/troupe-db/troupe/walactor/wal"
)

// The path of an append, in the order of the data:
//
//	gather  the mailbox collects what raft posts while a write is in progress; all
//	        of it, up to gatherBytes, is handled as one batch
//	write   one wal.AppendAll for the batch: one write, and one fsync if raft asked
//	        for it. A batch with a commit index alone is not written; see deferred
//	note    the timeline records when each entry became durable
//	answer  the responses go out: raft's own as one Appended, the others to peers
//	trim    the log removes segments that the batch's last Trim allows
//
// A failed write or fsync calls Fatal, so nothing is answered after it.

// gatherBytes bounds the entries of one batch, although more is queued, so that the
// fsync of a batch does not take arbitrarily long.
const gatherBytes = 4 << 20

// Config configures the WAL actor.
type Config struct {
	Member   uint64 // this member: responses to it go to raft, all others to peers
	Log      *wal.Log
	Limit    actors.Limit
	Raft     *actors.Mailbox
	RaftLane int
	Peers    replica.Peers // get responses
	Disk     *Disk
	Timeline *actors.Timeline
	// Fatal is called when the log has failed. It must end the process.
	Fatal   func(error)
	Metrics *Metrics
	Faults  *actors.Faults
}

// Disk holds measurements of the log's disk. Any goroutine may read them.
type Disk struct {
	actors.Stopwatch // runs during writes, fsyncs and trims of the log

	// fsync is the smoothed duration of an append with fsync, in nanoseconds. Only
	// the actor sets it, after each such append; 0 before the first one.
	fsync atomic.Int64
}

// Fsync returns the smoothed duration of recent appends that had an fsync.
func (d *Disk) Fsync() time.Duration { return time.Duration(d.fsync.Load()) }

// note adds a measurement to the smoothed duration with a weight of one eighth, so
// that a single stall does not make the disk look slow.
func (d *Disk) note(took time.Duration) {
	old := d.fsync.Load()
	d.fsync.Store(old + (int64(took)-old)/8)
}

// Actor owns the log.
type Actor struct {
	cfg Config
	// batches and appends are filled by gather and cleared at the end of a batch:
	// what to write, and the appends to answer after it.
	batches []wal.Batch
	appends []*walmsg.Append
	// deferred is the newest hard state that was answered and is not in the log. It
	// is set when a batch changes the commit index alone. It is written ahead of the
	// next batch that has anything else, or when the actor stops, and is nil from
	// then on. The log always holds all entries up to its commit index.
	deferred *raftpb.HardState
}

// New returns the stage of the WAL actor.
func New(cfg Config) actors.Stage {
	return actors.Stage{
		Name:  actors.CoreWAL,
		Actor: &Actor{cfg: cfg},
		Mailbox: actors.NewMailbox(actors.MailboxConfig{
			Name: actors.CoreWAL, Class: actors.Credit, Limit: cfg.Limit,
			MaxBatch: actors.BatchLimit{Bytes: gatherBytes},
			Yield:    true,
			Faults:   cfg.Faults,
		}),
	}
}

// Receive implements actor.Actor.
func (a *Actor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actors.Batch:
		a.batch(m)
	case *actor.Stopping:
		a.flush()
	}
}

// batch writes all messages of a mailbox batch at once, and then answers them.
func (a *Actor) batch(b *actors.Batch) {
	var trim *walmsg.Trim
	for i := range b.Msgs {
		a.cfg.Faults.Point(actors.CoreWAL, "entry")
		switch m := b.Msgs[i].(type) {
		case *walmsg.Append:
			a.gather(m)
		case *walmsg.Trim:
			trim = m
			a.batches = append(a.batches, wal.Batch{Mark: &wal.Mark{
				Index: m.MarkIndex, Term: m.MarkTerm, ConfState: m.MarkConfState}})
		}
	}
	a.cfg.Faults.Point(actors.CoreWAL, "middle")
	if actors.Planted("acknowledge before fsync") {
		a.answer()
		a.appends = a.appends[:0]
	}
	if actors.Planted("commit-only ack before its entries are durable") {
		for _, m := range a.appends {
			if len(m.Message.Entries) == 0 && !m.MustSync {
				a.cfg.Peers.Send(slices.DeleteFunc(slices.Clone(m.Message.Responses),
					func(r *raftpb.Message) bool { return r.GetTo() == a.cfg.Member }))
			}
		}
	}
	a.write()
	a.cfg.Faults.Point(actors.CoreWAL, "batch")
	a.note(b)
	a.answer()
	if trim != nil {
		a.cfg.Disk.Start()
		_, err := a.cfg.Log.Trim(trim.Index)
		a.cfg.Disk.Stop()
		if err != nil {
			a.cfg.Fatal(err)
		}
	}
	b.Done = len(b.Msgs)
	clear(a.batches)
	clear(a.appends)
	a.batches, a.appends = a.batches[:0], a.appends[:0]
}

// gather adds an append to what the next write holds.
func (a *Actor) gather(m *walmsg.Append) {
	b := wal.Batch{Entries: m.Message.Entries, Sync: m.MustSync}
	if m.Message.Term != nil && !(actors.Planted("vote not persisted") && len(m.Message.Entries) == 0) {
		b.HardState = &raftpb.HardState{Term: m.Message.Term, Vote: m.Message.Vote, Commit: m.Message.Commit}
	}
	if s := m.Message.Snapshot; s != nil {
		b.Mark = &wal.Mark{Index: s.Metadata.GetIndex(), Term: s.Metadata.GetTerm(), ConfState: s.Metadata.GetConfState()}
	}
	a.batches = append(a.batches, b)
	a.appends = append(a.appends, m)
}

// write makes a.batches durable. If they hold nothing but a commit index, it defers
// that instead of writing it: recovery uses the larger of the commit index in the log
// and the applied index of the store, and raft finds a later one by itself.
func (a *Actor) write() {
	var hard *raftpb.HardState
	commitOnly := true
	for i := range a.batches {
		b := &a.batches[i]
		commitOnly = commitOnly && !b.Sync && b.Mark == nil && len(b.Entries) == 0
		if b.HardState != nil {
			hard = b.HardState
		}
	}
	if commitOnly {
		if hard != nil {
			a.deferred = hard
		}
		return
	}
	if a.deferred != nil {
		a.batches = slices.Insert(a.batches, 0, wal.Batch{HardState: a.deferred})
		a.deferred = nil
	}
	took := a.append()
	bytes, synced := 0, false
	for _, b := range a.batches {
		synced = synced || b.Sync
		for _, e := range b.Entries {
			bytes += len(e.Data)
		}
	}
	a.cfg.Metrics.write(took, bytes, synced)
	if synced {
		a.cfg.Disk.note(took)
	}
}

// append writes a.batches and returns how long that took.
func (a *Actor) append() time.Duration {
	start := a.cfg.Disk.Start()
	err := a.cfg.Log.AppendAll(a.batches)
	a.cfg.Disk.Stop()
	if err != nil {
		a.cfg.Fatal(err)
		panic(err) // reached in tests only, where Fatal returns
	}
	return time.Duration(actors.Now() - start)
}

// flush writes the deferred commit index. Closing the log makes it durable.
func (a *Actor) flush() {
	if a.deferred == nil {
		return
	}
	a.batches = append(a.batches[:0], wal.Batch{HardState: a.deferred})
	a.deferred = nil
	a.append()
}

// note records in the timeline when the entries of a batch became durable.
func (a *Actor) note(b *actors.Batch) {
	now := actors.Now()
	for i, msg := range b.Msgs {
		if m, ok := msg.(*walmsg.Append); ok {
			for _, e := range m.Message.Entries {
				a.cfg.Timeline.Note(actors.TimelineWAL, e.GetIndex(), b.Enqueued[i], b.Started, now)
			}
		}
	}
}

// answer sends the responses of the appends, which are now durable.
func (a *Actor) answer() {
	if len(a.appends) == 0 {
		return
	}
	done := &raftmsg.Appended{Appends: int64(len(a.appends))}
	var peers []*raftpb.Message
	for _, m := range a.appends {
		for _, resp := range m.Message.Responses {
			if resp.GetTo() == a.cfg.Member {
				done.Responses = append(done.Responses, resp)
			} else {
				peers = append(peers, resp)
			}
		}
	}
	if len(peers) > 0 {
		a.cfg.Peers.Send(peers)
	}
	a.cfg.Raft.MustPost(a.cfg.RaftLane, done, actors.Cost{Requests: 1})
}
