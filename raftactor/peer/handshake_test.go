package peer

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// known is a member that knows member 2 and its data, and that member 3 was removed.
func known(t *testing.T) *member {
	m := start(t, 1, func(c *Config) { c.DataID, c.Bootstrap = 0xd1, 0xb0 })
	m.SetMembers([]Member{m.as(), {ID: 2, DataID: 0xd2}}, []uint64{3})
	return m
}

func goodHello() *peerpb.Hello {
	return &peerpb.Hello{ClusterId: cluster, From: 2, To: 1, ProtocolMin: 1, ProtocolMax: 1, DataId: 0xd2, ToDataId: 0xd1, Bootstrap: 0xb0}
}

func TestHandshake(t *testing.T) {
	noLeak(t)
	m := known(t)
	if err := call(t, m, goodHello()); err != nil {
		t.Fatalf("got %v for a good hello, want none", err)
	}
	for _, c := range []struct {
		name   string
		change func(*peerpb.Hello)
		reason peerpb.RefusalReason
		text   string
	}{
		{"cluster", func(h *peerpb.Hello) { h.ClusterId = 9 }, peerpb.RefusalReason_WRONG_CLUSTER, "member 2 is of cluster 9, and member 1 of cluster c1"},
		{"removed", func(h *peerpb.Hello) { h.From = 3 }, peerpb.RefusalReason_REMOVED, "member 3 was removed"},
		{"not for us", func(h *peerpb.Hello) { h.To = 7 }, peerpb.RefusalReason_WRONG_MEMBER, "expects member 7, and this is member 1"},
		{"reserved", func(h *peerpb.Hello) { h.From = 1<<64 - 1 }, peerpb.RefusalReason_BAD_HELLO, "ffffffffffffffff is not the id of another member"},
		{"from us", func(h *peerpb.Hello) { h.From = 1 }, peerpb.RefusalReason_BAD_HELLO, "1 is not the id of another member"},
		{"its data", func(h *peerpb.Hello) { h.DataId = 0xdd }, peerpb.RefusalReason_DATA_REPLACED, "of member 2 was replaced: it has data id dd instead of d2; remove the member and add it again"},
		{"our data", func(h *peerpb.Hello) { h.ToDataId = 0xdd }, peerpb.RefusalReason_DATA_REPLACED, "of member 1 was replaced: it has data id d1 instead of dd"},
		{"protocol", func(h *peerpb.Hello) { h.ProtocolMin, h.ProtocolMax = 2, 3 }, peerpb.RefusalReason_NO_COMMON_PROTOCOL, "speaks versions 2 to 3"},
		{"bootstrap", func(h *peerpb.Hello) { h.Bootstrap = 1 }, peerpb.RefusalReason_OTHER_BOOTSTRAP, "different --initial-cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := goodHello()
			c.change(h)
			var err error
			for range 3 {
				err = call(t, m, h)
			}
			r, ok := refusalOf(err)
			if !ok || r.reason != c.reason || !strings.Contains(r.text, c.text) {
				t.Fatalf("got error %v, want reason %v with %q", err, c.reason, c.text)
			}
			if n := m.log.count(c.text); n != 1 {
				t.Errorf("got %d lines with %q in the log of the refusing member, want 1", n, c.text)
			}
		})
	}
	err := call(t, m, nil)
	if r, ok := refusalOf(err); !ok || r.reason != peerpb.RefusalReason_BAD_HELLO {
		t.Errorf("got %v for a stream without a hello, want BAD_HELLO", err)
	}
	for _, h := range []*peerpb.Hello{{}, {DataId: 0, ToDataId: 0}} { // ids that are unknown are not compared
		h.ClusterId, h.From, h.To, h.ProtocolMin, h.ProtocolMax = cluster, 2, 1, 0, 9
		if err := call(t, m, h); err != nil {
			t.Errorf("got %v for a hello without ids, want none", err)
		}
	}
}

func TestARefusedMemberLogsTheReason(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, func(c *Config) { c.ClusterID = 0xc2 })
	join(a, b)
	const text = "is of cluster"
	actorstest.Await(t, "the reason on both sides", func() bool { return a.log.count(text) > 0 && b.log.count(text) > 0 && len(a.Status()) == 1 })
	actorstest.Await(t, "the reason in the status", func() bool { return strings.Contains(a.Status()[0].LastError, text) })
	if s := a.Status()[0]; s.DisconnectedSince.IsZero() {
		t.Errorf("got status %+v, want a disconnected peer", s)
	}
}

func TestAStreamWithoutAHelloEnds(t *testing.T) {
	m := start(t, 1, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 12*handshakeTimeout)
	defer cancel()
	cc, _, err := m.dial(m.url())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	stream, err := peerpb.NewPeerClient(cc).Log(ctx)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err = stream.Recv()
	if r, ok := refusalOf(err); !ok || r.reason != peerpb.RefusalReason_BAD_HELLO || time.Since(begin) < handshakeTimeout/2 {
		t.Errorf("got %v after %v, want BAD_HELLO after %v", err, time.Since(begin), handshakeTimeout)
	}
}

func TestBadFramesEndTheStream(t *testing.T) {
	m := known(t)
	for name, bad := range map[string]*raftpb.Message{
		"another sender": heartbeat(5, 1, 1),
		"another member": heartbeat(2, 5, 1),
		"no term":        heartbeat(2, 1, 0),
		"local":          {Type: raftpb.MsgHup.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1))},
		"storage":        {Type: raftpb.MsgStorageAppendResp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1))},
		"snapshot":       {Type: raftpb.MsgSnap.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1))},
		"proposal":       {Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1))},
		"unknown type":   {Type: raftpb.MessageType(99).Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1))},
		"gap":            {Type: raftpb.MsgApp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1)), Index: new(uint64(5)), Entries: []*raftpb.Entry{{Index: new(uint64(7))}}},
	} {
		err := call(t, m, goodHello(), &peerpb.Frame{Messages: []*raftpb.Message{bad}})
		if r, ok := refusalOf(err); !ok || r.reason != peerpb.RefusalReason_BAD_FRAME {
			t.Errorf("%s: got %v, want BAD_FRAME", name, err)
		}
	}
	big := appendOf(2, 1, 1, 0, 1, strings.Repeat("x", FrameBytesMax+frameOverhead))
	if err := call(t, m, goodHello(), &peerpb.Frame{Messages: []*raftpb.Message{big}}); err == nil || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("got %v for an oversized frame, want that it is larger than max", err)
	}
	m.got.mu.Lock()
	defer m.got.mu.Unlock()
	if len(m.got.raft) != 0 {
		t.Errorf("got %d bad messages passed on, want 0", len(m.got.raft))
	}
}
