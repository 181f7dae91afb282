package raftactor

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// timeout is that of the calls in these tests.
const timeout = 5 * time.Second

var one = actors.Cost{Requests: 1}

// newRaftProbe returns a probe in the place of raft, with its lanes.
func newRaftProbe(t *testing.T, sys *actor.ActorSystem) *actorstest.Probe {
	lane := func(name string) actors.Lane {
		return actors.Lane{Name: name, Class: actors.Credit, Limit: actors.Limit{Requests: 1 << 20, Bytes: 1 << 30}}
	}
	return actorstest.NewProbeWith(t, sys, actors.MailboxConfig{Name: actors.CoreRaft, Lanes: []actors.Lane{
		raftLocal: lane("local"), raftPeers: lane("peers"),
		raftAppends: lane("appends"), raftTicks: lane("ticks"), raftProposals: lane("proposals")}})
}

// news returns the new messages of a type.
type news[M any] struct {
	probe *actorstest.Probe
	read  int
}

func (n *news[M]) next() (found []M) {
	synctest.Wait()
	all := n.probe.Messages()
	for _, m := range all[n.read:] {
		if m, ok := m.(M); ok {
			found = append(found, m)
		}
	}
	n.read = len(all)
	return found
}

// put returns a request whose encoding has about n bytes.
func put(key string, n int) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{
		Key: []byte(key), Value: bytes.Repeat([]byte{'v'}, n)}}}
}

// keys returns the keys of the puts in a proposal.
func keys(t *testing.T, p *raftmsg.Batch) []string {
	t.Helper()
	batch := new(applymsg.RequestBatch)
	if err := proto.Unmarshal(p.GetData(), batch); err != nil {
		t.Fatal(err)
	}
	if batch.Id != p.Id || int(p.Requests) != len(batch.Requests) {
		t.Fatalf("got batch %d with %d requests, want batch %d with %d", batch.Id, len(batch.Requests), p.Id, p.Requests)
	}
	if id, err := BatchID(newEntry(p)); err != nil || id != p.Id {
		t.Fatalf("got id %d (%v) in the entry, want %d", id, err, p.Id)
	}
	var found []string
	for _, r := range batch.Requests {
		found = append(found, string(r.GetPut().Key))
	}
	return found
}

// outcome returns the answer of a call; ok is false if there is none.
func outcome(t *testing.T, c *Call) (Answer, bool) {
	t.Helper()
	synctest.Wait()
	return c.reply.Poll()
}

func wantCode(t *testing.T, c *Call, code raftmsg.Code) {
	t.Helper()
	a, ok := outcome(t, c)
	if !ok {
		t.Fatalf("no answer, want %v", code)
	}
	if a.Result.Code != code {
		t.Fatalf("got %v, want %v", a.Result.Code, code)
	}
}

func wantNone(t *testing.T, c *Call) {
	t.Helper()
	if a, ok := outcome(t, c); ok {
		t.Fatalf("got %+v, want no answer yet", a)
	}
}

// requests returns the number of requests that are proposed and not answered.
func (r *Replies) requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, p := range r.batches {
		n += p.cost.Requests
	}
	return n
}
