package leaseactor

import (
	"context"
	"sync"
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
	deadline    int64 // actors.Now by which it is answered
}

// Client calls a lease actor. It is safe for concurrent use.
type Client struct {
	box    *actors.Mailbox
	renews sync.Pool // of *RenewCall, of which each keep-alive needs one
}

// NewClient returns a client of the actor behind a mailbox.
func NewClient(box *actors.Mailbox) *Client {
	return &Client{box: box, renews: sync.Pool{New: func() any { return &RenewCall{call: newCall[int64]()} }}}
}

// Renew renews a lease and returns its TTL in seconds. Codes: LEASE_NOT_FOUND;
// NO_LEADER if this member is not the leader, or has not applied an entry of its term
// yet; and those of a proposal, if one was needed. The error is that of the context.
func (c *Client) Renew(ctx context.Context, id int64, timeout time.Duration) (ttl int64, code raftmsg.Code, err error) {
	r := c.renews.Get().(*RenewCall)
	r.id, r.deadline = id, actors.Now()+int64(timeout)
	if code := c.post(r); code != raftmsg.Code_OK {
		c.renews.Put(r)
		return 0, code, nil
	}
	if ttl, code, err = r.wait(ctx); err == nil {
		c.renews.Put(r)
	}
	return ttl, code, err
}

// TimeCall requests the remaining time of a lease.
type TimeCall struct {
	call[Time]
	id int64
}

// Time is the time of a lease.
type Time struct {
	ID int64
	// TTL in seconds. List does not set it.
	TTL int64
	// Left is the remaining time. It is negative while an expired lease is being
	// revoked.
	Left time.Duration
}

// Left returns the time of a lease. Codes: as Renew.
func (c *Client) Left(ctx context.Context, id int64) (t Time, code raftmsg.Code, err error) {
	m := &TimeCall{call: newCall[Time](), id: id}
	if code := c.post(m); code != raftmsg.Code_OK {
		return t, code, nil
	}
	return m.wait(ctx)
}

// ListCall requests the remaining time of all leases.
type ListCall struct{ call[[]Time] }

// List returns the time of all leases, in no particular order. Codes: as Renew.
func (c *Client) List(ctx context.Context) (all []Time, code raftmsg.Code, err error) {
	m := &ListCall{newCall[[]Time]()}
	if code := c.post(m); code != raftmsg.Code_OK {
		return nil, code, nil
	}
	return m.wait(ctx)
}

// callCost is the cost of a call in the mailbox.
var callCost = actors.Cost{Requests: 1, Bytes: 64}

func (c *Client) post(m any) raftmsg.Code {
	switch err := c.box.TryPost(laneCalls, m, callCost); err {
	case nil:
		return raftmsg.Code_OK
	case actors.ErrClosed:
		return raftmsg.Code_STOPPED
	default:
		return raftmsg.Code_TOO_MANY_REQUESTS
	}
}
