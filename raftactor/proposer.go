package raftactor

import (
	"errors"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// How a request becomes an entry, in the order of the data:
//
//	backlog     calls wait in the mailbox while an append is in progress, and then in the
//	            backlog, oldest first
//	pack        takes as many of the oldest calls as fit into an entry
//	register    adds the calls to Replies, which answers them when the results arrive, or
//	            when their deadline passes
//	Propose     passes the entry to raft; the batch is outstanding
//	Settled     the batch is durable, and no longer outstanding: the next entry may follow.
//	            If raft dropped the batch instead, its calls return to the backlog

// Lanes of the proposer's mailbox.
const (
	proposerControl = iota
	proposerCalls
)

const (
	// packBytesMax bounds the requests in an entry. A larger request is an entry of its
	// own.
	packBytesMax = 1 << 20
	// windowMax and windowBytes bound the outstanding batches on a slow disk, where
	// several appends share the wait for it.
	windowMax   = 4
	windowBytes = 4 << 20
	// slowFsync is the fsync time from which a disk counts as slow. On a faster disk one
	// outstanding batch is better, because the next batch becomes larger meanwhile.
	slowFsync = 500 * time.Microsecond
	// proposerTick is the interval of checks for overdue calls, while any wait.
	proposerTick = 100 * time.Millisecond
)

// ProposerConfig is what the proposer needs.
type ProposerConfig struct {
	Limit   actors.Limit // of requests that are accepted and not answered
	Replies *Replies
	Raft    *actors.Mailbox
	// NextBatch returns an id that is unique among members and boots.
	NextBatch func() uint64
	// Fsync returns the recent duration of the WAL's fsyncs.
	Fsync   func() time.Duration
	Metrics *Metrics
	Faults  *actors.Faults
}

// Proposer packs requests into raft entries.
type Proposer struct {
	cfg ProposerConfig
	box *actors.Mailbox

	leader      uint64 // 0 for none
	isLeader    bool
	idle        bool           // the last argument of box.Defer: the backlog was empty
	paused      bool           // set when raft drops a proposal, until a tick or a change of role
	backlog     []*Call        // not proposed yet, oldest first
	enqueued    int64          // when the oldest of backlog was posted, at the latest
	outstanding map[uint64]int // bytes of the batches that are proposed and not settled
	bytes       int            // sum over outstanding
	ticker      *actors.Ticker
}

// NewProposer returns the stage and its mailbox.
func NewProposer(cfg ProposerConfig) actors.Stage {
	p := &Proposer{cfg: cfg, outstanding: make(map[uint64]int)}
	p.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreProposer,
		Lanes: []actors.Lane{
			{Name: "control", Class: actors.Credit, Limit: controlLimit},
			{Name: "calls", Class: actors.Refuse, Limit: cfg.Limit, Hold: true},
		},
		MaxBatch: actors.BatchLimit{Messages: 4096, Bytes: packBytesMax},
		Yield:    true,
		OnReject: func(msg any, _ error) {
			if c, ok := msg.(*Call); ok {
				c.Fail(raftmsg.Code_STOPPED)
			}
		},
		Faults: cfg.Faults,
	})
	cfg.Metrics.proposer.Store(p.box)
	p.ticker = actors.NewTicker(p.box, proposerControl, proposerTick)
	return actors.Stage{Name: actors.CoreProposer, Actor: p, Mailbox: p.box}
}

// Receive implements actor.Actor.
func (p *Proposer) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actors.Batch:
		p.batch(m)
	case *actor.Stopping:
		p.stop()
	}
}

func (p *Proposer) batch(b *actors.Batch) {
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *Call:
			p.cfg.Faults.Point(actors.CoreProposer, "entry")
			if len(p.backlog) == 0 {
				p.enqueued = b.Enqueued[b.Done]
			}
			p.backlog = append(p.backlog, m)
		case *raftmsg.Settled:
			p.settled(m)
		case *raftmsg.RoleChanged:
			p.roleChanged(m)
		case *actors.Tick:
			p.tick(m)
		}
	}
	p.cfg.Faults.Point(actors.CoreProposer, "batch")
	p.propose(b.Started)
	if idle := len(p.backlog) == 0; idle != p.idle {
		// Without a backlog, Settled may be deferred: nothing waits for the window.
		p.idle = idle
		p.box.Defer(idle)
	}
	if !p.ticker.Armed() && (len(p.backlog) > 0 || p.cfg.Replies.Waiting()) {
		p.ticker.Arm()
	}
}

// propose sends entries while the window is open.
func (p *Proposer) propose(started int64) {
	for len(p.backlog) > 0 && p.leader != 0 && !p.paused && p.open() {
		n, size := p.pack()
		id := p.cfg.NextBatch()
		data := encodeBatch(id, p.backlog[:n], size)
		calls := append([]*Call(nil), p.backlog[:n]...)
		clear(p.backlog[:n])
		p.backlog = p.backlog[n:]
		p.outstanding[id] = len(data)
		p.bytes += len(data)
		p.cfg.Replies.register(id, calls, p.release)
		p.cfg.Faults.Point(actors.CoreProposer, "middle")
		p.cfg.Raft.MustPost(raftProposals, &raftmsg.Propose{
			Data: data, BatchId: id, Requests: int64(n),
			Enqueued: p.enqueued, Started: started, Ended: actors.Now(),
		}, actors.Cost{Requests: n, Bytes: len(data)})
		p.enqueued = started // the rest of the backlog was posted before
	}
	if len(p.backlog) == 0 {
		p.backlog = nil
	}
}

func (p *Proposer) release(c actors.Cost) { p.box.ReleaseLane(proposerCalls, c) }

// open reports whether one more batch may be outstanding.
func (p *Proposer) open() bool {
	if len(p.outstanding) == 0 {
		return true
	}
	return p.cfg.Fsync() >= slowFsync && len(p.outstanding) < windowMax && p.bytes < windowBytes
}

// pack returns the number of the oldest calls that fit into the next entry, and their size.
func (p *Proposer) pack() (n, size int) {
	for n < len(p.backlog) {
		next := size + len(p.backlog[n].encoded)
		if n > 0 && next > packBytesMax {
			break
		}
		n, size = n+1, next
	}
	return n, size
}

// encodeBatch returns an applymsg.RequestBatch of the encoded calls.
func encodeBatch(id uint64, calls []*Call, size int) []byte {
	data := make([]byte, 0, size+protowire.SizeTag(fieldBatchID)+protowire.SizeVarint(id))
	data = protowire.AppendTag(data, fieldBatchID, protowire.VarintType)
	data = protowire.AppendVarint(data, id)
	for _, c := range calls {
		data = append(data, c.encoded...)
	}
	return data
}

var errBatchID = errors.New("raftactor: entry without a batch id")

// batchID reads the id from an encoded RequestBatch without decoding the rest.
func batchID(data []byte) (uint64, error) {
	field, typ, n := protowire.ConsumeTag(data)
	if n < 0 || field != fieldBatchID || typ != protowire.VarintType {
		return 0, errBatchID
	}
	id, n := protowire.ConsumeVarint(data[n:])
	if n < 0 {
		return 0, errBatchID
	}
	return id, nil
}

func (p *Proposer) settled(m *raftmsg.Settled) {
	for _, id := range m.Batches {
		p.forget(id)
	}
	for _, id := range m.Dropped {
		p.paused = true
		p.forget(id)
		// The calls are in no log. They go first in the next entry, and keep their room in
		// the mailbox.
		p.backlog = append(p.cfg.Replies.recall(id), p.backlog...)
	}
}

func (p *Proposer) forget(id uint64) {
	p.bytes -= p.outstanding[id]
	delete(p.outstanding, id)
}

// roleChanged clears the window: batches of an earlier term may be lost, and raft does not
// report which of them are.
func (p *Proposer) roleChanged(m *raftmsg.RoleChanged) {
	p.leader, p.isLeader, p.paused = m.Leader, m.IsLeader, false
	clear(p.outstanding)
	p.bytes = 0
}

func (p *Proposer) tick(t *actors.Tick) {
	p.paused = false
	for _, id := range p.cfg.Replies.expire(t.At, raftmsg.Code_TIMED_OUT) {
		if !p.isLeader {
			// The batch was forwarded to the leader. If it was lost, it never settles.
			p.forget(id)
		}
	}
	n := 0
	for n < len(p.backlog) && p.backlog[n].deadline <= t.At {
		n++
	}
	p.failBacklog(n, raftmsg.Code_TIMED_OUT)
}

func (p *Proposer) failBacklog(n int, code raftmsg.Code) {
	for _, c := range p.backlog[:n] {
		p.release(c.Cost())
		c.Fail(code)
	}
	p.backlog = p.backlog[n:]
}

func (p *Proposer) stop() {
	p.ticker.Stop()
	p.failBacklog(len(p.backlog), raftmsg.Code_STOPPED)
}
