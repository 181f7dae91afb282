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
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Lanes of the persister's mailbox.
const (
	persisterPersist = iota
	persisterTicks
)

const (
	// flushInterval is how long changes gather before they are written: nobody
	// waits for them, and the tail pack is written once instead of many times.
	flushInterval = 50 * time.Millisecond
	// flushBytes is where they are written at once.
	flushBytes = 4 << 20
	// PersistBytesMax is the largest weight of one Persist: the smallest
	// limit that may be set for the mailbox.
	PersistBytesMax = 32 << 20

	// storeFormat is the version of all that mvccactor writes to the store.
	// Version 2 has leases.
	storeFormat = 2
	// stateName is the name under which Durable is kept.
	stateName = "state"
)

// PersisterConfig is what the persister needs.
type PersisterConfig struct {
	Epoch    uint64
	Store    backend.Store
	Limit    actors.Limit
	Raft     *actors.Mailbox
	RaftLane int
	// Fatal ends the process. It is called when a commit failed.
	Fatal func(error)
	// Room tells whether the disk has room for a commit of so many bytes. While
	// it has not, nothing more is written: the log keeps the entries. Nil is
	// always.
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

	waiting   []*mvccmsg.Persist // not merged yet, as many as the mailbox holds
	packs     map[backend.PackID]*mvccmsg.Pack
	reclaimed []*mvccmsg.Reclaimed
	leases    leases
	durable   *mvccmsg.Durable
	stated    bool // durable is in the store
	messages  int
	cost      actors.Cost
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
	p.ticker = actors.NewTicker(p.box, persisterTicks, flushInterval, cfg.Epoch)
	return p, actors.Stage{Name: actors.CorePersister, Actor: p, Mailbox: p.box}
}

// Connect tells the persister whom to answer.
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

// batch merges what it hears. It writes when a tick says that enough time has
// passed, or at once when there is much.
func (p *Persister) batch(b *actors.Batch) {
	due := false
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *mvccmsg.Persist:
			p.cfg.Faults.Point(actors.CorePersister, "entry")
			if m.Epoch == p.cfg.Epoch {
				p.waiting = append(p.waiting, m)
			}
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

// take merges what waits, as far as its leases fit into one commit.
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
		p.packs[packID(pack.Id)] = pack
	}
	p.reclaimed = append(p.reclaimed, m.Reclaimed...)
	p.leases.merge(m.Leases)
	p.durable, p.stated = m.Durable, false
	p.messages++
	p.cost.Requests++
	p.cost.Bytes += int(m.Bytes)
}

func packID(id *mvccmsg.PackID) backend.PackID { return backend.PackID{Main: id.Main, Sub: id.Sub} }

// flush writes what was merged, and tells who waits for it, as long as there is
// room; what is left waits for the next tick.
func (p *Persister) flush() {
	for p.messages > 0 && p.write() {
		p.tell()
		p.take()
	}
}

// write does so in pieces. Packs go first, the last of them with the state that
// covers them all: a start drops what lies above its state. Then what was
// reclaimed: it rests on that state being durable, and each piece on those before
// it. It is false when there was no room for a piece.
func (p *Persister) write() bool {
	for !p.stated {
		batch, bytes, last := p.nextPacks()
		if !p.room(bytes) {
			return false
		}
		p.commit(batch)
		for _, pack := range batch.Put {
			delete(p.packs, pack.ID)
		}
		if p.stated = last; last {
			p.leases = leases{}
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

// nextPacks takes the oldest packs, and with the last of them state and leases.
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
		panic(fmt.Errorf("mvccactor: state: %w", err))
	}
	batch.Set = []backend.Entry{{Key: stateName, Value: state}}
	p.leases.addTo(&batch)
	return batch, bytes + p.leases.bytes, true
}

// tell answers for everything that was merged.
func (p *Persister) tell() {
	d := p.durable
	p.mvcc.MustPost(mvccControl, &mvccmsg.Persisted{Epoch: p.cfg.Epoch,
		AppliedIndex: d.AppliedIndex, Revision: d.Revision, Messages: int64(p.messages)}, actors.Cost{Requests: 1})
	p.cfg.Raft.MustPost(p.cfg.RaftLane, &raftmsg.Persisted{Epoch: p.cfg.Epoch,
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
		panic(err) // Fatal of a test comes back
	}
	p.cfg.Metrics.commits.Observe(time.Duration(actors.Now() - start).Seconds())
}

func backendPack(p *mvccmsg.Pack) backend.Pack {
	return backend.Pack{ID: packID(p.Id), Parts: [][]byte{p.Header, p.Table, p.Data}}
}

const (
	// pieceBytes is what is written at a time, and has to find room: in one piece
	// whatever a tick finds under load.
	pieceBytes = 6 << 20
	// reclaimBatchPacks and reclaimBatchBytes keep what was reclaimed within one
	// transaction of the store: the tombstone of a key must not go while an older
	// record of it stays.
	reclaimBatchPacks = 512
	reclaimBatchBytes = 4 << 20
)

// reclaimBatch makes the next transaction of what was reclaimed, in order. It
// returns how many pieces it took, and their bytes.
func reclaimBatch(reclaimed []*mvccmsg.Reclaimed) (b backend.Batch, n, bytes int) {
	for _, r := range reclaimed {
		size := len(r.Pack.GetTable()) + len(r.Pack.GetData())
		if n > 0 && (n == reclaimBatchPacks || bytes+size > reclaimBatchBytes) {
			break
		}
		if r.Pack != nil {
			b.Put = append(b.Put, backendPack(r.Pack))
		} else {
			b.Delete = append(b.Delete, packID(r.Id))
		}
		n, bytes = n+1, bytes+size
	}
	return b, n, bytes
}
