package raftactor

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Call is one request from the gateway to the proposer, with its answer. It is not a
// protobuf message, because it never leaves the process.
type Call struct {
	encoded  []byte // the request as a field of a RequestBatch, or the context of change
	posted   int64  // actors.Now at which it was made
	deadline int64  // actors.Now at which it is answered at the latest
	// change is set for a change of the configuration, without the context.
	change *raftpb.ConfChange
	reply  actors.Reply[Answer]
	notify func(Answer) // if set, receives the answer instead of reply
}

// Answer is the outcome of a call.
type Answer struct {
	Result *raftmsg.Result
	Index  uint64 // of the entry with the request; 0 if it was not proposed
	// Rest is work that the caller has to do to complete the response; nil if there is
	// none. IMPORTANT: the caller must do or release it.
	Rest Rest
}

// Rest is work on a response that is left to its receiver.
type Rest interface {
	// Release discards the work and what it holds.
	Release()
}

// Field numbers of applymsg.RequestBatch.
const (
	fieldBatchID  = 1
	fieldRequests = 2
)

// fieldChangeBatch is the field number of applymsg.MemberChange.batch_id.
const fieldChangeBatch = 16

// newCall returns a call for a request, which it encodes. So requests are encoded on the
// goroutines of the callers, and not all on that of the proposer.
func newCall(req *applymsg.Request, timeout time.Duration) *Call {
	size := proto.Size(req)
	buf := make([]byte, 0, size+protowire.SizeTag(fieldRequests)+protowire.SizeVarint(uint64(size)))
	buf = protowire.AppendTag(buf, fieldRequests, protowire.BytesType)
	buf = protowire.AppendVarint(buf, uint64(size))
	buf, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, req)
	if err != nil {
		panic("raftactor: " + err.Error()) // cannot happen: gRPC has checked the strings
	}
	now := actors.Now()
	return &Call{encoded: buf, posted: now, deadline: now + int64(timeout), reply: actors.NewReply[Answer]()}
}

// changeTypes has raft's type of each kind of change. Raft promotes a learner by adding it
// as a voter.
var changeTypes = map[applymsg.MemberChangeKind]raftpb.ConfChangeType{
	applymsg.MemberChangeKind_MEMBER_ADD:         raftpb.ConfChangeAddNode,
	applymsg.MemberChangeKind_MEMBER_ADD_LEARNER: raftpb.ConfChangeAddLearnerNode,
	applymsg.MemberChangeKind_MEMBER_PROMOTE:     raftpb.ConfChangeAddNode,
	applymsg.MemberChangeKind_MEMBER_UPDATE:      raftpb.ConfChangeUpdateNode,
	applymsg.MemberChangeKind_MEMBER_REMOVE:      raftpb.ConfChangeRemoveNode,
}

// newChange returns a call for a change of the members.
func newChange(change *applymsg.MemberChange, timeout time.Duration) *Call {
	kind, ok := changeTypes[change.Kind]
	if !ok {
		panic("raftactor: change of members of kind " + change.Kind.String())
	}
	context, err := proto.Marshal(change)
	if err != nil {
		panic("raftactor: " + err.Error()) // cannot happen: gRPC has checked the strings
	}
	if change.Kind == applymsg.MemberChangeKind_MEMBER_ADD_LEARNER && actors.Planted("count a learner's vote") {
		kind = raftpb.ConfChangeAddNode
	}
	now := actors.Now()
	return &Call{encoded: context, posted: now, deadline: now + int64(timeout), reply: actors.NewReply[Answer](),
		change: &raftpb.ConfChange{Type: kind.Enum(), NodeId: new(change.Member.GetId())}}
}

// newNotice returns a call for a request of a stage, which cannot wait. notify receives the
// answer. It is called on any goroutine and must not block.
func newNotice(req *applymsg.Request, timeout time.Duration, notify func(Answer)) *Call {
	c := newCall(req, timeout)
	c.notify = notify
	return c
}

// Cost returns the cost of the call in the proposer's mailbox.
func (c *Call) Cost() actors.Cost { return actors.Cost{Requests: 1, Bytes: len(c.encoded)} }

// resolve answers the call. If the caller does not receive the answer, its Rest is
// released.
func (c *Call) resolve(a Answer) {
	rest, received := a.Rest, false
	if c.notify != nil {
		a.Rest = nil
		c.notify(a)
	} else {
		received = c.reply.Resolve(a)
	}
	if rest != nil && !received {
		rest.Release()
	}
}

// Fail answers a call with a code: it was not executed, or it is unknown whether it was.
func (c *Call) Fail(code raftmsg.Code) {
	c.resolve(Answer{Result: &raftmsg.Result{Code: code}})
}

// postCall posts a call to the proposer. Errors: those of actors.Mailbox.TryPost.
func postCall(box *actors.Mailbox, c *Call) error {
	return box.TryPost(proposerCalls, c, c.Cost())
}
