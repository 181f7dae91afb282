package raftactor

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// rest counts the calls of Release.
type rest struct{ released int }

func (r *rest) Release() { r.released++ }

// TestRest: the Rest of an answer goes to the caller if it waits, and is released in every
// other case.
func TestRest(t *testing.T) {
	replies := NewReplies()
	put := func(notify func(Answer)) *Call {
		req := &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte("k")}}}
		if notify != nil {
			return newNotice(req, time.Minute, notify)
		}
		return newCall(req, time.Minute)
	}
	var noticed Answer
	waiting, left, notice := put(nil), put(nil), put(func(a Answer) { noticed = a })
	replies.register(1, 1, []*Call{waiting, left, notice, nil}, func(actors.Cost) {})
	if !replies.Awaited(1) || replies.Awaited(2) {
		t.Fatalf("awaited: got %v and %v, want true and false", replies.Awaited(1), replies.Awaited(2))
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := left.reply.Wait(ended); err == nil {
		t.Fatal("got an answer after the end of the context, want an error")
	}
	rests := []*rest{{}, {}, {}, {}}
	batch := &raftmsg.ResultBatch{BatchId: 1, Results: []*raftmsg.Result{{}, {}, {}, {}}}
	replies.Deliver(batch, []Rest{rests[0], rests[1], rests[2], rests[3]})
	answer, err := waiting.reply.Wait(context.Background())
	if err != nil || answer.Rest != rests[0] || rests[0].released != 0 {
		t.Fatalf("waiting caller: got %+v (%v), released %d times", answer, err, rests[0].released)
	}
	for i, r := range rests[1:] {
		if r.released != 1 {
			t.Errorf("rest %d: got released %d times, want once", i+1, r.released)
		}
	}
	if noticed.Result == nil || noticed.Rest != nil {
		t.Errorf("notice: got %+v", noticed)
	}

	unknown := &rest{}
	replies.Deliver(&raftmsg.ResultBatch{BatchId: 9, Results: []*raftmsg.Result{{}}}, []Rest{unknown})
	if unknown.released != 1 {
		t.Errorf("unknown batch: got released %d times, want once", unknown.released)
	}

	// An answer that arrives before the context ends, and is not received.
	late, lateRest := put(nil), &rest{}
	late.resolve(Answer{Result: &raftmsg.Result{}, Rest: lateRest})
	if a, err := late.reply.Wait(ended); err != nil || a.Rest != lateRest || lateRest.released != 0 {
		t.Fatalf("got %+v (%v), released %d times", a, err, lateRest.released)
	}
}
