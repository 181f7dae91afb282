package mvccactor

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// How changes become durable, in the order of the data:
//
//	Persist      keeps its weight in the mailbox until it is durable: this is what makes
//	             mvcc wait for a slow store
//	take         merges queued Persists: if a pack is in several of them, the last one
//	             counts. It stops before the leases would exceed one transaction
//	flush        runs at a tick, or at once when flushBytes are merged
//	write        packs first, oldest first, in commits of pieceBytes. The last of these
//	             also has the state and the leases, which cover all of these packs. Then
//	             the reclaimed packs, in their order
//	acknowledge  answers mvcc and raft, and releases the weight
//
// If the disk has no room for a commit, write stops there and the next tick continues. A
// crash in between leaves packs above the state in the store; the next start deletes them
// (Opened.clean).

// Lanes of the persister's mailbox.
const (
	persisterPersist = iota
	persisterTicks
)

const (
	// flushInterval is how long changes are gathered before they are written. No client
	// waits for them, and the tail pack is written once instead of many times.
	flushInterval = 50 * time.Millisecond
	// flushBytes is how many gathered bytes are written without waiting for a tick.
	flushBytes = 4 << 20
	// PersistBytesMax is the largest weight of one Persist, and so the smallest limit
	// that the mailbox may have.
	PersistBytesMax = 32 << 20

	// storeFormat is the version of everything that mvccactor writes to the store; see
	// mvcc/FORMAT.md.
	storeFormat = 3
	// storeFormatNoAuth is the format of a store without users and roles: earlier versions can
	// read it, so members can be updated one after another.
	storeFormatNoAuth = 2
	// authName is the name of the users and roles in the store.
	authName = "auth"
	// stateName is the name of Durable in the store.
	stateName = snapshot.StateName
)

// PersisterConfig is what the persister needs.
type PersisterConfig struct {
	Store    backend.Store
	Limit    actors.Limit
	Raft     *actors.Mailbox
	RaftLane int
	// Fatal ends the process. It is called when a commit failed.
	Fatal func(error)
	// Room reports whether the disk has room for a commit of so many bytes. While it
	// does not, the persister writes nothing, and the log keeps the entries. Nil means
	// that there is always room.
	Room func(bytes int) bool
	// Watch runs during each commit. It may be nil.
	Watch   *actors.Stopwatch
	Metrics *Metrics
	Faults  *actors.Faults
}

// Persister writes packs and state to the store.
type Persister struct {
	cfg    PersisterConfig
	box    *actors.Mailbox
	mvcc   *actors.Mailbox
	ticker *actors.Ticker

	waiting []*mvccmsg.Persist // received and not merged; bounded by the mailbox

	// Merged and not yet answered. write removes packs and reclaimed as it commits
	// them, and clears leases and sets stateDurable when it commits durable.
	packs        map[backend.PackID]*mvccmsg.Pack
	reclaimed    []*mvccmsg.Reclaimed // in the order in which they must be committed
	leases       leases
	auth         *applymsg.AuthState // nil if it has not changed
	durable      *mvccmsg.Durable    // of the last Persist merged
	stateDurable bool                // durable is committed
	messages     int
	cost         actors.Cost // weight of the messages in the mailbox
}

// NewPersister returns the persister and its stage.
func NewPersister(cfg PersisterConfig) (*Persister, actors.Stage) {
	p := &Persister{cfg: cfg, packs: make(map[backend.PackID]*mvccmsg.Pack)}
	p.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CorePersister,
		Lanes: []actors.Lane{
			persisterPersist: {Name: "persist", Class: actors.Credit, Limit: cfg.Limit, Hold: true},
			persisterTicks:   {Name: "ticks", Class: actors.Lossy, Limit: actors.Limit{Requests: 1, Bytes: 1}},
		},
		Faults: cfg.Faults,
	})
	p.ticker = actors.NewTicker(p.box, persisterTicks, flushInterval)
	return p, actors.Stage{Name: actors.CorePersister, Actor: p, Mailbox: p.box}
}

// Connect sets the mailbox that the persister answers to. It must be called before the
// stage is spawned.
func (p *Persister) Connect(mvcc *actors.Mailbox) { p.mvcc = mvcc }

// Receive implements actor.Actor.
func (p *Persister) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actors.Batch:
		p.batch(m)
	case *actor.Stopping:
		p.ticker.Stop()
	}
}

// batch merges the Persists it receives. It writes at a tick, and without waiting for one
// if there is much to write.
func (p *Persister) batch(b *actors.Batch) {
	due := false
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *mvccmsg.Persist:
			p.cfg.Faults.Point(actors.CorePersister, "entry")
			p.waiting = append(p.waiting, m)
		case *actors.Tick:
			due = true
		}
	}
	p.take()
	if p.messages > 0 && (due || p.cost.Bytes >= flushBytes || len(p.waiting) > 0) {
		p.cfg.Faults.Point(actors.CorePersister, "batch")
		p.flush()
	}
	if p.messages > 0 {
		p.ticker.Arm()
	}
}

// take merges waiting Persists as far as their leases fit into one transaction.
func (p *Persister) take() {
	for len(p.waiting) > 0 {
		m := p.waiting[0]
		if p.messages > 0 && p.leases.bytes+leaseSize(m.Leases) > leaseFlushBytes {
			return
		}
		p.merge(m)
		p.waiting = p.waiting[1:]
	}
	p.waiting = nil
}

func (p *Persister) merge(m *mvccmsg.Persist) {
	for _, pack := range m.Packs {
		p.packs[backendID(mvcc.RevisionOf(pack.Id))] = pack
	}
	p.reclaimed = append(p.reclaimed, m.Reclaimed...)
	p.leases.merge(m.Leases)
	if m.Auth != nil {
		p.auth = m.Auth
	}
	p.durable, p.stateDurable = m.Durable, false
	p.messages++
	p.cost.Requests++
	p.cost.Bytes += int(m.Bytes)
}

// flush writes and answers what was merged, until nothing waits. If the disk has no room,
// the rest waits for the next tick.
func (p *Persister) flush() {
	for p.messages > 0 && p.write() {
		p.acknowledge()
		p.take()
	}
}

// write commits what was merged, in several commits. Packs come first, and the last of them
// with the state that covers them all: a start deletes records above its state. Reclaimed
// packs follow, because they depend on that state being durable, and each of these commits
// depends on those before it. It returns false if the disk had no room for a commit; a later
// call continues there.
func (p *Persister) write() bool {
	for !p.stateDurable {
		batch, bytes, last := p.nextPacks()
		if !p.room(bytes) {
			actors.Seen("persister: waits for room on the disk")
			return false
		}
		p.commit(batch)
		for _, pack := range batch.Put {
			delete(p.packs, pack.ID)
		}
		if p.stateDurable = last; last {
			p.leases, p.auth = leases{}, nil
		}
		p.cfg.Faults.Point(actors.CorePersister, "middle")
	}
	for len(p.reclaimed) > 0 {
		batch, n, bytes := reclaimBatch(p.reclaimed)
		if !p.room(bytes) {
			return false
		}
		p.commit(batch)
		p.reclaimed = p.reclaimed[n:]
	}
	return true
}

func (p *Persister) room(bytes int) bool { return p.cfg.Room == nil || p.cfg.Room(bytes) }

// nextPacks returns a batch of the oldest packs and its bytes. If it has the last ones, last
// is true and it has the state and the leases too.
func (p *Persister) nextPacks() (batch backend.Batch, bytes int, last bool) {
	ids := slices.SortedFunc(maps.Keys(p.packs), backend.PackID.Compare)
	for i, id := range ids {
		pack := p.packs[id]
		size := len(pack.Table) + len(pack.Data)
		if i > 0 && bytes+size > pieceBytes {
			return batch, bytes, false
		}
		batch.Put = append(batch.Put, backendPack(pack))
		bytes += size
	}
	state, err := proto.Marshal(p.durable)
	if err != nil {
		panic(fmt.Errorf("mvccactor: encode the state: %w", err))
	}
	batch.Set = []backend.Entry{{Key: stateName, Value: state}}
	p.leases.addTo(&batch)
	if p.auth != nil {
		users, err := proto.Marshal(p.auth)
		if err != nil {
			panic(fmt.Errorf("mvccactor: encode the users and roles: %w", err))
		}
		batch.Set = append(batch.Set, backend.Entry{Key: authName, Value: users})
		bytes += len(users)
	}
	return batch, bytes + p.leases.bytes, true
}

// acknowledge sends Persisted for everything that was merged, and releases its weight.
func (p *Persister) acknowledge() {
	d := p.durable
	p.mvcc.MustPost(mvccControl, &mvccmsg.Persisted{
		AppliedIndex: d.AppliedIndex, Revision: d.Revision, Messages: int64(p.messages)}, actors.Cost{Requests: 1})
	p.cfg.Raft.MustPost(p.cfg.RaftLane, &raftmsg.Persisted{
		AppliedIndex: d.AppliedIndex, AppliedTerm: d.AppliedTerm, ConfState: d.ConfState}, actors.Cost{Requests: 1})
	p.box.ReleaseLane(persisterPersist, p.cost)
	p.reclaimed, p.durable, p.messages, p.cost = nil, nil, 0, actors.Cost{}
}

func (p *Persister) commit(batch backend.Batch) {
	start := p.cfg.Watch.Start()
	err := p.cfg.Store.Commit(batch)
	p.cfg.Watch.Stop()
	if err != nil {
		err = fmt.Errorf("mvccactor: commit to the store: %w", err)
		p.cfg.Fatal(err)
		panic(err) // only in tests does Fatal return
	}
	p.cfg.Metrics.commits.Observe(time.Duration(actors.Now() - start).Seconds())
}

func backendPack(p *mvccmsg.Pack) backend.Pack {
	return backend.Pack{ID: backendID(mvcc.RevisionOf(p.Id)), Parts: [][]byte{p.Header, p.Table, p.Data}}
}

const (
	// pieceBytes bounds the packs of one commit, which must find room on the disk. It
	// exceeds flushBytes, so that normally one commit is enough.
	pieceBytes = 6 << 20
	// reclaimBatchPacks and reclaimBatchBytes bound the reclaimed packs of one commit to
	// what the store writes in a single transaction. IMPORTANT: if it were split, a
	// crash could leave an older record of a key without the tombstone that hides it.
	reclaimBatchPacks = 512
	reclaimBatchBytes = 4 << 20
)

// reclaimBatch returns a batch of the first reclaimed packs, how many of them it has, and
// their bytes.
func reclaimBatch(reclaimed []*mvccmsg.Reclaimed) (b backend.Batch, n, bytes int) {
	for _, r := range reclaimed {
		size := len(r.Pack.GetTable()) + len(r.Pack.GetData())
		if n > 0 && (n == reclaimBatchPacks || bytes+size > reclaimBatchBytes) {
			break
		}
		if r.Pack != nil {
			b.Put = append(b.Put, backendPack(r.Pack))
		} else {
			b.Delete = append(b.Delete, backendID(mvcc.RevisionOf(r.Id)))
		}
		n, bytes = n+1, bytes+size
	}
	return b, n, bytes
}
