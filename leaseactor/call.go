package leaseactor

import (
	"context"
	"sync"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// call is one request of the gateway, which is answered once. It is no protobuf message,
// because it never leaves the process.
type call struct {
	code raftmsg.Code
	done chan struct{} // capacity 1; gets one token with the answer
}

func newCall() call { return call{done: make(chan struct{}, 1)} }

func (c *call) resolve(code raftmsg.Code) {
	c.code = code
	c.done <- struct{}{}
}

func (c *call) fail(code raftmsg.Code) { c.resolve(code) }

func (c *call) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// RenewCall is one keep-alive.
type RenewCall struct {
	call
	id       int64
	deadline int64 // actors.Now by which it is answered
	ttl      int64
}

// Client calls a lease actor. It is safe for concurrent use.
type Client struct {
	box    *actors.Mailbox
	renews sync.Pool // of *RenewCall, of which each keep-alive needs one
}

// NewClient returns a client of the actor behind a mailbox.
func NewClient(box *actors.Mailbox) *Client {
	return &Client{box: box, renews: sync.Pool{New: func() any { return &RenewCall{call: newCall()} }}}
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
	if err := r.wait(ctx); err != nil {
		return 0, 0, err // the actor still holds r, so it must not be reused
	}
	ttl, code = r.ttl, r.code
	r.ttl = 0
	c.renews.Put(r)
	return ttl, code, nil
}

// TimeCall requests the remaining time of a lease.
type TimeCall struct {
	call
	id   int64
	time Time
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
	m := &TimeCall{call: newCall(), id: id}
	if code := c.post(m); code != raftmsg.Code_OK {
		return t, code, nil
	}
	if err := m.wait(ctx); err != nil {
		return t, 0, err
	}
	return m.time, m.code, nil
}

// ListCall requests the remaining time of all leases.
type ListCall struct {
	call
	times []Time
}

// List returns the time of all leases, in no particular order. Codes: as Renew.
func (c *Client) List(ctx context.Context) (all []Time, code raftmsg.Code, err error) {
	m := &ListCall{call: newCall()}
	if code := c.post(m); code != raftmsg.Code_OK {
		return nil, code, nil
	}
	if err := m.wait(ctx); err != nil {
		return nil, 0, err
	}
	return m.times, m.code, nil
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
