package replica

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The cluster test runs three replicas. The network loses and reorders messages, logs and
// stores lag behind, and crashes lose what was not synced. All randomness is from one seed.
// All members must always apply the same entries in the same order; and when the faults
// end, they must make progress.

type member struct {
	id   uint64
	rep  *Replica
	down bool

	appends []Append
	applies []*raftpb.Message

	// What survives a crash.
	log       []*raftpb.Entry
	hard      *raftpb.HardState // with the commit index as last written
	unsynced  *raftpb.HardState // written, may be lost
	mark      uint64            // the log begins after it; 0 before an installation
	markTerm  uint64
	applied   uint64
	appliedAt uint64 // term
	conf      *raftpb.ConfState
}

type cluster struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	members []*member
	network []*raftpb.Message
	lossy   bool

	committed []*raftpb.Entry // by index-1, as the first member applied it
	seen      map[string]uint64
	proposed  int
	proposals map[string]uint64 // the term of each accepted one
	changes   int               // applied
	terms     map[uint64]uint64 // leader by term
	reads     map[uint64]uint64 // lowest index a read may return, by id

	peers []raft.Peer // that the cluster began with
	tail  int         // Config.TailBytes of all members
	// note records what a transcript shows; see transcript_test.go.
	note func(format string, args ...any)
}

func newCluster(t *testing.T, seed uint64, size, tail int) *cluster {
	c := &cluster{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), lossy: true, tail: tail,
		seen: map[string]uint64{}, proposals: map[string]uint64{}, terms: map[uint64]uint64{}, reads: map[uint64]uint64{},
		note: func(string, ...any) {}}
	for id := range uint64(size) {
		c.peers = append(c.peers, raft.Peer{ID: id + 1})
	}
	for _, p := range c.peers {
		cfg := config(p.ID)
		cfg.Bootstrap, cfg.TailBytes = c.peers, tail
		c.members = append(c.members, &member{id: p.ID, rep: mustNew(t, cfg)})
	}
	return c
}

func (c *cluster) fatalf(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("seed %d: %s", c.seed, fmt.Sprintf(format, args...))
}

func (c *cluster) ready(m *member) {
	for {
		out, ok := m.rep.Ready()
		if !ok {
			break
		}
		m.appends = append(m.appends, out.Appends...)
		m.applies = append(m.applies, out.Applies...)
		c.noteOutput(m, out)
		c.send(out.Peers)
		for _, rs := range out.Reads {
			if low := c.reads[rs.ID]; rs.Index < low {
				c.fatalf("read %d got index %d, committed was %d when it was asked for", rs.ID, rs.Index, low)
			}
		}
	}
	s := m.rep.Status()
	if s.IsLeader {
		if other, ok := c.terms[s.Term]; ok && other != m.id {
			c.fatalf("%d and %d lead in term %d", other, m.id, s.Term)
		}
		c.terms[s.Term] = m.id
	}
}

func (c *cluster) send(ms []*raftpb.Message) {
	for _, m := range ms {
		durable := c.members[m.GetFrom()-1].hard.GetCommit()
		for i := durable + 1; i <= min(m.GetCommit(), uint64(len(c.committed))); i++ {
			if e := c.committed[i-1]; e.GetType() != raftpb.EntryNormal {
				c.fatalf("%d tells %d of a configuration change at %d, and its log has the commit index %d", m.GetFrom(), m.GetTo(), i, durable)
			}
		}
		c.network = append(c.network, proto.CloneOf(m))
	}
}

// durable completes some of the pending appends.
func (c *cluster) durable(m *member, n int) {
	must(c.t, m.rep.Appended(n, c.write(m, n)))
	c.ready(m)
}

// write writes some of the pending appends, and sends their responses to the other members. It
// returns those to the member itself.
func (c *cluster) write(m *member, n int) (own []*raftpb.Message) {
	for _, a := range m.appends[:n] {
		m.log = write(m.log, a.Message)
		if a.Message.Term != nil {
			hard := &raftpb.HardState{Term: a.Message.Term, Vote: a.Message.Vote, Commit: a.Message.Commit}
			if m.unsynced = hard; a.MustSync {
				m.hard = hard
			}
		}
		if a.MustSync && m.unsynced != nil {
			m.hard = m.unsynced
		}
		c.noteDurable(m, a)
		for _, resp := range a.Message.Responses {
			if resp.GetTo() == m.id {
				own = append(own, resp)
			} else {
				c.send([]*raftpb.Message{resp})
			}
		}
	}
	m.appends = m.appends[n:]
	return own
}

// apply completes some of the pending applies, all at once.
func (c *cluster) apply(m *member, n int) {
	var changes []*raftpb.ConfChangeV2
	for _, msg := range m.applies[:n] {
		for _, e := range msg.Entries {
			c.check(m, e)
			c.note("%d applies %s", m.id, describeEntry(e))
			m.applied, m.appliedAt = e.GetIndex(), e.GetTerm()
			if cc := confChange(c.t, e); cc != nil {
				changes = append(changes, cc)
				if durable := m.hard.GetCommit(); durable < m.applied {
					c.fatalf("%d applies a configuration change at %d, and its log has the commit index %d", m.id, m.applied, durable)
				}
			}
		}
	}
	m.applies = m.applies[n:]
	must(c.t, m.rep.Applied(m.applied, changes))
	if m.applied >= uint64(len(c.peers)) { // their entries are the first of the log
		m.conf = &raftpb.ConfState{Voters: slices.Sorted(maps.Keys(m.rep.voters))}
	}
	c.ready(m)
}

func (c *cluster) check(m *member, e *raftpb.Entry) {
	i := e.GetIndex()
	if i != m.applied+1 {
		c.fatalf("%d applies %d after %d", m.id, i, m.applied)
	}
	if i <= uint64(len(c.committed)) {
		if was := c.committed[i-1]; was.GetTerm() != e.GetTerm() || string(was.Data) != string(e.Data) {
			c.fatalf("%d applies %v at %d, another member applied %v", m.id, e, i, was)
		}
		return
	}
	switch data := string(e.Data); {
	case data != "" && i > uint64(len(c.peers)) && c.proposals[data] != e.GetTerm():
		c.fatalf("%q, proposed in term %d, is an entry of term %d", data, c.proposals[data], e.GetTerm())
	case data == "" && c.committed[i-2].GetTerm() == e.GetTerm():
		c.fatalf("entry %d is empty, and not the first of its term: raft has replaced a change", i)
	}
	if e.GetType() == raftpb.EntryConfChange {
		c.changes++
	}
	c.committed = append(c.committed, e)
	if e.GetType() == raftpb.EntryNormal && len(e.Data) > 0 {
		if at, twice := c.seen[string(e.Data)]; twice {
			c.fatalf("%q is at %d and at %d", e.Data, at, i)
		}
		c.seen[string(e.Data)] = i
	}
}

func (c *cluster) propose(m *member) (data string, ok bool) {
	data = fmt.Sprintf("%d of %d", c.proposed, m.id)
	c.proposed++
	return data, c.accept(m, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Data: []byte(data)})
}

// change proposes a change that has no effect on the configuration.
func (c *cluster) change(m *member) {
	data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeUpdateNode.Enum(), NodeId: new(uint64(1)),
		Context: fmt.Append(nil, c.proposed)})
	must(c.t, err)
	c.proposed++
	c.accept(m, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data})
}

// accept reports whether an entry was proposed.
func (c *cluster) accept(m *member, e *raftpb.Entry) bool {
	term := m.rep.Status().Term
	held, err := m.rep.Propose(term, []*raftpb.Entry{e})
	if err != nil || len(held) > 0 {
		return false
	}
	c.proposals[string(e.Data)] = term
	c.ready(m)
	return true
}

func (c *cluster) read(m *member) {
	id := uint64(len(c.reads) + 1)
	c.reads[id] = uint64(len(c.committed))
	m.rep.ReadIndex(id)
	c.ready(m)
}

// crash stops a member. What was not synced may be lost.
func (c *cluster) crash(m *member) {
	m.down, m.appends, m.applies = true, nil, nil
	if m.unsynced != nil && c.rng.IntN(2) == 0 {
		m.hard = m.unsynced
	}
}

func (c *cluster) start(m *member) {
	cfg := config(m.id)
	cfg.TailBytes, cfg.MarkIndex, cfg.MarkTerm = c.tail, m.mark, m.markTerm
	cfg.Entries, cfg.HardState = m.log, m.hard
	// The store may be behind what was applied; what it has is in the log.
	cfg.Applied, cfg.AppliedTerm, cfg.ConfState = m.applied, m.appliedAt, m.conf
	if m.applied < uint64(len(c.peers)) || c.lossy && c.rng.IntN(3) == 0 {
		cfg.Applied, cfg.AppliedTerm, cfg.ConfState = 0, 0, nil
		m.applied, m.appliedAt, m.conf = 0, 0, nil
	}
	if len(m.log) == 0 && m.mark == 0 {
		cfg.HardState = nil
		cfg.Bootstrap = c.peers
	}
	m.down, m.unsynced, m.rep = false, nil, mustNew(c.t, cfg)
	c.ready(m)
}

// deliver delivers a random message of the network.
func (c *cluster) deliver() {
	if len(c.network) == 0 {
		return
	}
	i := c.rng.IntN(len(c.network))
	m := c.network[i]
	last := len(c.network) - 1
	c.network[i] = c.network[last]
	c.network = c.network[:last]
	if c.lossy && c.rng.IntN(10) == 0 {
		return
	}
	c.receive(m)
}

// receive passes a message of the network to its receiver.
func (c *cluster) receive(m *raftpb.Message) {
	to := c.members[m.GetTo()-1]
	if to.down {
		return
	}
	if err := to.rep.Step(m); err != nil { // a message that is refused is lost
		c.note("%d refuses it: %v", to.id, err)
	}
	c.ready(to)
}

func (c *cluster) step() {
	m := c.members[c.rng.IntN(len(c.members))]
	n := c.rng.IntN(1000)
	if m.down {
		if n < 100 {
			c.start(m)
		}
		return
	}
	switch {
	case n < 40:
		m.rep.Tick()
		c.ready(m)
	case n < 500:
		c.deliver()
	case n < 700:
		if k := len(m.appends); k > 0 {
			c.durable(m, 1+c.rng.IntN(k))
		}
	case n < 900:
		if k := len(m.applies); k > 0 {
			c.apply(m, 1+c.rng.IntN(k))
		}
	case n < 970:
		c.propose(m)
	case n < 980:
		c.change(m)
	case n < 995:
		c.read(m)
	case n < 996:
		_ = m.rep.Campaign()
		c.ready(m)
	case n < 998:
		must(c.t, m.rep.Persisted(m.applied, m.appliedAt, m.conf))
	default:
		c.crash(m)
	}
}

// heal ends all faults, and carries everything out.
func (c *cluster) heal(done func() bool) {
	c.lossy = false
	for _, m := range c.members {
		if m.down {
			c.start(m)
		}
	}
	for round := 0; !done(); round++ {
		if round > 2000 {
			for _, m := range c.members {
				c.t.Logf("%d: %+v", m.id, m.rep.Status())
			}
			c.fatalf("no progress without trouble")
		}
		for _, m := range c.members {
			m.rep.Tick()
			c.ready(m)
		}
		for c.busy() {
			c.deliver()
			for _, m := range c.members {
				if k := len(m.appends); k > 0 {
					c.durable(m, k)
				}
				if k := len(m.applies); k > 0 {
					c.apply(m, k)
				}
			}
		}
	}
}

func (c *cluster) busy() bool {
	n := len(c.network)
	for _, m := range c.members {
		n += len(m.appends) + len(m.applies)
	}
	return n > 0
}

// agreed reports whether all members know the leader of the newest term.
func (c *cluster) agreed() bool {
	first := c.members[0].rep.Status()
	for _, m := range c.members {
		if s := m.rep.Status(); s.Leader == 0 || s.Leader != first.Leader || s.Term != first.Term {
			return false
		}
	}
	return true
}

func TestCluster(t *testing.T) {
	leaders, committed, changes := 0, 0, 0
	for seed := range uint64(60) {
		c := newCluster(t, seed, 3, 0)
		for range 6000 {
			c.step()
		}
		// A proposal that a member takes now is committed, and applied by all.
		want := map[string]bool{}
		c.heal(func() bool {
			if len(want) < 10 {
				if !c.agreed() {
					return false
				}
				leader := c.members[c.members[0].rep.Status().Leader-1]
				if data, ok := c.propose(leader); ok {
					want[data] = true
				}
				return false
			}
			for data := range want {
				if c.seen[data] == 0 {
					return false
				}
			}
			for _, m := range c.members {
				if m.applied != uint64(len(c.committed)) {
					return false
				}
			}
			return true
		})
		leaders += len(c.terms)
		committed += len(c.seen)
		changes += c.changes
	}
	t.Logf("%d leaders, %d proposals and %d changes committed", leaders, committed, changes)
	if leaders < 100 || committed < 1000 || changes < 300 {
		t.Errorf("the test is too tame: %d leaders, %d proposals and %d changes committed", leaders, committed, changes)
	}
}
