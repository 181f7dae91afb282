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

// gatherBytes is where a batch is written although more is queued: what a disk
// takes a few milliseconds for.
const gatherBytes = 4 << 20

// Config is what the WAL actor needs.
type Config struct {
	Epoch    uint64
	Member   uint64 // responses to it go to raft, all others to peers
	Log      *wal.Log
	Limit    actors.Limit
	Raft     *actors.Mailbox
	RaftLane int
	Peers    replica.Peers // get responses
	Disk     *Disk
	Timeline *actors.Timeline
	// Fatal ends the process. It is called when the log failed.
	Fatal   func(error)
	Metrics *Metrics
	Faults  *actors.Faults
}

// Disk is what other goroutines may know of the log's disk.
type Disk struct {
	actors.Stopwatch // runs while the log is written to

	fsync atomic.Int64 // smoothed duration of an append with fsync, ns
}

// Fsync returns how long appends take lately, with their fsync.
func (d *Disk) Fsync() time.Duration { return time.Duration(d.fsync.Load()) }

// note takes one measurement into the average: an eighth of the difference, so
// that a single stall is no slow disk.
func (d *Disk) note(took time.Duration) {
	old := d.fsync.Load()
	d.fsync.Store(old + (int64(took)-old)/8)
}

// Actor owns the log.
type Actor struct {
	cfg     Config
	batches []wal.Batch
	appends []*walmsg.Append
	// deferred is the newest commit index that was answered and is not in the
	// log. It is set when a batch changes the commit index alone, and written
	// ahead of the next batch that has anything else, or when the actor stops.
	// All entries that it covers are in the log.
	deferred *raftpb.HardState
}

// New returns the stage.
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

// batch writes everything that is queued at once, and then answers.
func (a *Actor) batch(b *actors.Batch) {
	var trim *walmsg.Trim
	for i := range b.Msgs {
		a.cfg.Faults.Point(actors.CoreWAL, "entry")
		switch m := b.Msgs[i].(type) {
		case *walmsg.Append:
			a.gather(m)
		case *walmsg.Trim:
			if m.Epoch == a.cfg.Epoch {
				trim = m
				a.batches = append(a.batches, wal.Batch{Mark: &wal.Mark{
					Index: m.MarkIndex, Term: m.MarkTerm, ConfState: m.MarkConfState}})
			}
		}
	}
	a.cfg.Faults.Point(actors.CoreWAL, "middle")
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

func (a *Actor) gather(m *walmsg.Append) {
	if m.Epoch != a.cfg.Epoch {
		return
	}
	b := wal.Batch{Entries: m.Message.Entries, Sync: m.MustSync}
	if m.Message.Term != nil {
		b.HardState = &raftpb.HardState{Term: m.Message.Term, Vote: m.Message.Vote, Commit: m.Message.Commit}
	}
	if s := m.Message.Snapshot; s != nil {
		b.Mark = &wal.Mark{Index: s.Metadata.GetIndex(), Term: s.Metadata.GetTerm(), ConfState: s.Metadata.GetConfState()}
	}
	a.batches = append(a.batches, b)
	a.appends = append(a.appends, m)
}

// write makes what was gathered durable. A commit index alone is not worth a
// write: recovery takes the larger of it and the applied index of the store, and
// raft finds the rest by itself.
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
		panic(err) // Fatal of a test comes back
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

// answer delivers the responses, which are now allowed to be known.
func (a *Actor) answer() {
	if len(a.appends) == 0 {
		return
	}
	done := &raftmsg.Appended{Epoch: a.cfg.Epoch, Appends: int64(len(a.appends))}
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
