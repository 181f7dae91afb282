package peertest_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/peer/peertest"
)

type recorder struct {
	mu          sync.Mutex
	terms       []uint64
	at          []time.Time
	first       []uint64
	accepted    []uint64
	unreachable int
	refused     []uint64
	snapshots   int
}

func (r *recorder) locked(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *recorder) Raft(_ uint64, ms []*raftpb.Message) {
	r.locked(func() { r.terms, r.at = append(r.terms, ms[0].GetTerm()), append(r.at, time.Now()) })
}
func (r *recorder) Forward(m *raftmsg.Forward) {
	r.locked(func() { r.first = append(r.first, m.First) })
}
func (r *recorder) Forwarded(m *raftmsg.Forwarded) {
	r.locked(func() { r.accepted = append(r.accepted, m.Accepted) })
}
func (r *recorder) Snapshot(uint64, *raftpb.Message) { r.locked(func() { r.snapshots++ }) }
func (r *recorder) Unreachable(uint64)               { r.locked(func() { r.unreachable++ }) }
func (r *recorder) Refused(id uint64)                { r.locked(func() { r.refused = append(r.refused, id) }) }
func (r *recorder) Removed(string)                   {}

func message(typ raftpb.MessageType, from, to, term uint64) *raftpb.Message {
	return &raftpb.Message{Type: typ.Enum(), From: new(from), To: new(to), Term: new(term)}
}

// in runs a test with two members of a network.
func in(t *testing.T, test func(n *peertest.Network, a *peertest.Endpoint, got [3]*recorder)) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.New(1)
		defer n.Stop()
		got := [3]*recorder{1: {}, 2: {}}
		a := n.Join(1, got[1])
		n.Join(2, got[2])
		test(n, a, got)
	})
}

func TestDelivery(t *testing.T) {
	in(t, func(n *peertest.Network, a *peertest.Endpoint, got [3]*recorder) {
		n.Delay(time.Millisecond, 20*time.Millisecond)
		begin := time.Now()
		for i := range uint64(100) {
			a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, i+1)})
			if !a.Forward(2, &raftmsg.Forward{From: 1, First: i + 1}) {
				t.Fatalf("forward %d was refused", i+1)
			}
		}
		a.Forwarded(2, &raftmsg.Forwarded{From: 1, Accepted: 9})
		a.Send([]*raftpb.Message{message(raftpb.MsgSnap, 1, 2, 1)})
		time.Sleep(time.Second)
		synctest.Wait()
		if len(got[2].terms) != 100 || len(got[2].first) != 100 || len(got[2].accepted) != 1 || got[1].snapshots != 1 {
			t.Fatalf("got %+v and %d snapshots, want 100 messages, 100 forwards, 1 answer and 1 snapshot", got[2], got[1].snapshots)
		}
		for i := range uint64(100) {
			if got[2].terms[i] != i+1 || got[2].first[i] != i+1 {
				t.Fatalf("got term %d and forward %d in place %d", got[2].terms[i], got[2].first[i], i)
			}
		}
		if took := got[2].at[99].Sub(begin); took < time.Millisecond || took > 20*time.Millisecond {
			t.Errorf("got the last message after %v, want 1 to 20ms", took)
		}
	})
}

func TestTrouble(t *testing.T) {
	in(t, func(n *peertest.Network, a *peertest.Endpoint, got [3]*recorder) {
		arrives := func(term uint64) bool {
			a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, term)})
			synctest.Wait()
			return len(got[2].terms) > 0 && got[2].terms[len(got[2].terms)-1] == term
		}
		if !arrives(1) || !a.Connected(2) {
			t.Error("got no message, want one")
		}
		n.Partition([]uint64{1}, []uint64{2})
		if arrives(2) || a.Connected(2) {
			t.Error("got a message through a partition, want none")
		}
		n.Partition([]uint64{1, 2})
		if !arrives(3) {
			t.Error("got no message within a group, want one")
		}
		n.Cut(1, 2)
		if arrives(4) {
			t.Error("got a message in a direction that is cut, want none")
		}
		n.Heal()
		n.Lose(1)
		if arrives(5) {
			t.Error("got a message of which all are lost, want none")
		}
		n.Lose(0)
		n.Filter(func(m *raftpb.Message) bool { return m.GetTerm() != 6 })
		if arrives(6) {
			t.Error("got a message that is filtered, want none")
		}
		if !arrives(7) || got[1].unreachable != 0 {
			t.Errorf("got %d reports, want a message and none", got[1].unreachable)
		}
		n.Leave(2)
		if arrives(8) || got[1].unreachable != 1 || len(got[1].refused) != 1 {
			t.Errorf("got %d reports and refused %v, want 1 and [2]", got[1].unreachable, got[1].refused)
		}
		n.Join(2, got[2])
		if !arrives(9) {
			t.Error("got no message after the member came back, want one")
		}
	})
}

func TestSnapshotStream(t *testing.T) {
	in(t, func(n *peertest.Network, a *peertest.Endpoint, _ [3]*recorder) {
		receive := func(_ context.Context, from uint64, s peerpb.Peer_SnapshotServer) error {
			packs := uint64(0)
			for {
				c, err := s.Recv()
				if errors.Is(err, io.EOF) {
					return s.SendAndClose(&peerpb.SnapshotResult{Index: from*100 + packs})
				}
				if err != nil {
					return err
				}
				packs += uint64(len(c.Packs))
			}
		}
		s, err := a.OpenSnapshot(context.Background(), 2, receive)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := s.Send(&peerpb.SnapshotChunk{Packs: make([]*peerpb.SnapshotPack, 1)}); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := s.CloseAndRecv(); err != nil || r.Index != 110 {
			t.Errorf("got %v, %v, want index 110", r, err)
		}
		failure := errors.New("no room")
		s, err = a.OpenSnapshot(context.Background(), 2, func(context.Context, uint64, peerpb.Peer_SnapshotServer) error { return failure })
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for err == nil {
			err = s.Send(&peerpb.SnapshotChunk{})
		}
		if _, result := s.CloseAndRecv(); !errors.Is(err, io.EOF) || !errors.Is(result, failure) {
			t.Errorf("got %v from Send and %v from CloseAndRecv, want EOF and %v", err, result, failure)
		}
		n.Cut(1, 2)
		if _, err := a.OpenSnapshot(context.Background(), 2, receive); err == nil {
			t.Error("got a stream through a cut, want an error")
		}
	})
}
