package leaseactor

import (
	"context"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// call is one request of the gateway. It is no protobuf message, because it never leaves
// the process.
type call[T any] struct{ reply actors.Reply[answer[T]] }

// answer is the answer to a call: a value if the code is OK.
type answer[T any] struct {
	value T
	code  raftmsg.Code
}

func newCall[T any]() call[T] { return call[T]{actors.NewReply[answer[T]]()} }

func (c *call[T]) resolve(value T, code raftmsg.Code) {
	c.reply.Resolve(answer[T]{value, code})
}

func (c *call[T]) fail(code raftmsg.Code) { c.reply.Resolve(answer[T]{code: code}) }

// wait returns the answer, or the error of ctx. In that case the actor still holds the
// call, so it must not be reused.
func (c *call[T]) wait(ctx context.Context) (T, raftmsg.Code, error) {
	a, err := c.reply.Wait(ctx)
	return a.value, a.code, err
}

// RenewCall is one keep-alive.
type RenewCall struct {
	call[int64] // the TTL in seconds
	id          int64
	deadline    int64 // actors.Now at which it is answered at the latest
}

// TimeCall requests the remaining time of a lease.
type TimeCall struct {
	call[Time]
	id int64
}

func newTimeCall(id int64) *TimeCall { return &TimeCall{call: newCall[Time](), id: id} }

// Time is the time of a lease.
type Time struct {
	ID int64
	// TTL in seconds. List does not set it.
	TTL int64
	// Left is the remaining time. It is negative while an expired lease is being
	// revoked.
	Left time.Duration
}

// ListCall requests the remaining time of all leases.
type ListCall struct{ call[[]Time] }

// callCost is the cost of a call in the mailbox.
var callCost = actors.Cost{Requests: 1, Bytes: 64}

// rejectCall fails a call that its actor will not handle.
func rejectCall(msg any, _ error) {
	if c, ok := msg.(interface{ fail(raftmsg.Code) }); ok {
		c.fail(raftmsg.Code_STOPPED)
	}
}

// target is the actor that a call goes to.
type target struct {
	box  *actors.Mailbox // nil if there is none
	lane int             // laneForward or laneCalls
}

func (t target) post(m any) raftmsg.Code {
	switch err := t.box.TryPost(t.lane, m, callCost); err {
	case nil:
		return raftmsg.Code_OK
	case actors.ErrClosed:
		return raftmsg.Code_STOPPED
	default:
		return raftmsg.Code_TOO_MANY_REQUESTS
	}
}

// ask posts m to an actor and waits for the answer to its call c.
func ask[T any](ctx context.Context, to target, m any, c *call[T]) (value T, code raftmsg.Code, err error) {
	if code := to.post(m); code != raftmsg.Code_OK {
		return value, code, nil
	}
	return c.wait(ctx)
}
