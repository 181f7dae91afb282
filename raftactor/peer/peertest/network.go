// Package peertest is a network in memory between members of one process, for tests. It
// carries encoded frames, and can lose, delay and cut off messages.
package peertest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// queueMax bounds the frames on their way on one lane between two members; more are lost.
const queueMax = 4096

// The lanes between two members.
const (
	laneControl = iota
	laneLog
	laneForward
)

// Network joins members. Its methods are safe for concurrent use. It works within a
// synctest bubble if it is made and stopped there.
type Network struct {
	wg   sync.WaitGroup
	done chan struct{} // closed by Stop

	mu       sync.Mutex
	rand     *rand.Rand
	stopped  bool
	members  map[uint64]*Endpoint
	pipes    map[pipeKey]*pipe
	cut      map[[2]uint64]bool // from, to
	loss     float64
	min, max time.Duration
	filter   func(*raftpb.Message) bool
}

type pipeKey struct {
	from, to uint64
	lane     int
}

// pipe carries frames in order, on a goroutine of its own.
type pipe struct {
	pipeKey
	frames chan frame
}

type frame struct {
	data []byte
	due  time.Time
}

// New returns a network without members. Losses and delays follow from the seed.
func New(seed uint64) *Network {
	return &Network{
		done: make(chan struct{}), rand: rand.New(rand.NewPCG(seed, 0)),
		members: map[uint64]*Endpoint{}, pipes: map[pipeKey]*pipe{}, cut: map[[2]uint64]bool{},
	}
}

// Stop ends all deliveries and waits for them.
func (n *Network) Stop() {
	n.mu.Lock()
	if !n.stopped {
		n.stopped = true
		close(n.done)
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// Join connects a member, in place of an earlier one with its id.
func (n *Network) Join(id uint64, r peer.Receiver) *Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := &Endpoint{net: n, id: id, receiver: r}
	n.members[id] = e
	return e
}

// Leave disconnects a member as if its process had died: what is on its way to it is lost,
// and the others see that it refuses connections.
func (n *Network) Leave(id uint64) {
	n.mu.Lock()
	delete(n.members, id)
	var others []*Endpoint
	for other, e := range n.members {
		if !n.cut[[2]uint64{other, id}] && !n.cut[[2]uint64{id, other}] {
			others = append(others, e)
		}
	}
	n.mu.Unlock()
	slices.SortFunc(others, func(a, b *Endpoint) int { return cmp.Compare(a.id, b.id) })
	for _, e := range others {
		e.receiver.Refused(id)
	}
}

// Partition lets messages pass within each group alone. Members in no group are cut off.
func (n *Network) Partition(groups ...[]uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	group := map[uint64]int{}
	for i, g := range groups {
		for _, id := range g {
			group[id] = i + 1
		}
	}
	n.cut = map[[2]uint64]bool{}
	for a := range n.members {
		for b := range n.members {
			if a != b && (group[a] == 0 || group[a] != group[b]) {
				n.cut[[2]uint64{a, b}] = true
			}
		}
	}
}

// Cut loses all messages in one direction, until Heal or Partition.
func (n *Network) Cut(from, to uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]uint64{from, to}] = true
}

// Heal ends Partition and Cut.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = map[[2]uint64]bool{}
}

// Lose loses a share of all frames, from 0 to 1.
func (n *Network) Lose(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// Delay delays each frame by a random time in a range. The order on a lane stays.
func (n *Network) Delay(min, max time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max = min, max
}

// Filter loses the messages of raft for which pass returns false; nil passes all.
func (n *Network) Filter(pass func(*raftpb.Message) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filter = pass
}

// Endpoint is a member's access to the network.
type Endpoint struct {
	net      *Network
	id       uint64
	receiver peer.Receiver
}

var _ replica.Peers = (*Endpoint)(nil)

// Send implements replica.Peers, with the rules of peer.Transport.
func (e *Endpoint) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		switch m.GetType() {
		case raftpb.MsgSnap:
			e.receiver.Snapshot(m.GetTo(), m)
		case raftpb.MsgApp:
			e.send(m.GetTo(), laneLog, &peerpb.Frame{Messages: []*raftpb.Message{m}})
		default:
			e.send(m.GetTo(), laneControl, &peerpb.Frame{Messages: []*raftpb.Message{m}})
		}
	}
}

// Forward sends batches to the proposer of another member; see peer.Transport.
func (e *Endpoint) Forward(to uint64, m *raftmsg.Forward) bool {
	return e.send(to, laneForward, &peerpb.Frame{Forward: m})
}

// Forwarded sends the answer to a Forward.
func (e *Endpoint) Forwarded(to uint64, m *raftmsg.Forwarded) bool {
	return e.send(to, laneForward, &peerpb.Frame{Forwarded: m})
}

// Connected reports whether messages pass between the two in both directions.
func (e *Endpoint) Connected(to uint64) bool {
	n := e.net
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.members[e.id] == e && n.members[to] != nil && !n.cut[[2]uint64{e.id, to}] && !n.cut[[2]uint64{to, e.id}]
}

// send puts a frame on its way. It reports whether the frame was accepted: what a partition
// loses was accepted too.
func (e *Endpoint) send(to uint64, lane int, f *peerpb.Frame) bool {
	data, err := proto.Marshal(f)
	if err != nil {
		panic(fmt.Sprintf("peertest: encode a frame: %v", err)) // every message can be encoded
	}
	n := e.net
	n.mu.Lock()
	accepted := n.enqueue(e, to, lane, f, data)
	n.mu.Unlock()
	if !accepted {
		e.receiver.Unreachable(to)
	}
	return accepted
}

// enqueue is called with mu held.
func (n *Network) enqueue(e *Endpoint, to uint64, lane int, f *peerpb.Frame, data []byte) bool {
	if n.stopped || n.members[e.id] != e || n.members[to] == nil {
		return false
	}
	if n.cut[[2]uint64{e.id, to}] || n.rand.Float64() < n.loss || n.filter != nil && len(f.Messages) > 0 && !n.filter(f.Messages[0]) {
		return true
	}
	key := pipeKey{e.id, to, lane}
	p := n.pipes[key]
	if p == nil {
		p = &pipe{pipeKey: key, frames: make(chan frame, queueMax)}
		n.pipes[key] = p
		n.wg.Go(func() { n.deliver(p) })
	}
	due := time.Now().Add(n.min)
	if n.max > n.min {
		due = due.Add(time.Duration(n.rand.Int64N(int64(n.max - n.min))))
	}
	select {
	case p.frames <- frame{data, due}:
		return true
	default:
		return false
	}
}

// deliver passes the frames of a pipe on, in order.
func (n *Network) deliver(p *pipe) {
	for {
		var f frame
		select {
		case f = <-p.frames:
		case <-n.done:
			return
		}
		if wait := time.Until(f.due); wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-n.done:
				timer.Stop()
				return
			}
		}
		n.mu.Lock()
		to, lost := n.members[p.to], n.cut[[2]uint64{p.from, p.to}]
		n.mu.Unlock()
		if to != nil && !lost {
			to.receive(p.from, f.data)
		}
	}
}

func (e *Endpoint) receive(from uint64, data []byte) {
	f := &peerpb.Frame{}
	if err := proto.Unmarshal(data, f); err != nil {
		panic(fmt.Sprintf("peertest: decode a frame: %v", err)) // it was encoded here
	}
	for _, m := range f.Messages {
		if m.GetFrom() != from || m.GetTo() != e.id {
			panic(fmt.Sprintf("peertest: member %x got from %x a %v from %x to %x", e.id, from, m.GetType(), m.GetFrom(), m.GetTo()))
		}
	}
	switch {
	case len(f.Messages) > 0:
		e.receiver.Raft(from, f.Messages)
	case f.Forward != nil:
		e.receiver.Forward(f.Forward)
	case f.Forwarded != nil:
		e.receiver.Forwarded(f.Forwarded)
	}
}
