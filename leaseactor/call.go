package leaseactor

import (
	"context"
	"sync"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// A call is one question of the gateway, answered once. It is not a protobuf
// message: it stays in the process.
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

// Client asks a lease actor. It is safe for concurrent use.
type Client struct {
	box    *actors.Mailbox
	renews sync.Pool // of *RenewCall: there is one for each keep-alive
}

// NewClient returns a client of the actor behind a mailbox.
func NewClient(box *actors.Mailbox) *Client {
	return &Client{box: box, renews: sync.Pool{New: func() any { return &RenewCall{call: newCall()} }}}
}

// Renew renews a lease and returns its time in seconds. Codes: LEASE_NOT_FOUND;
// NO_LEADER when this member does not lead or does not know all yet; and those
// of a proposal, where one was needed. The error is that of the context.
func (c *Client) Renew(ctx context.Context, id int64, timeout time.Duration) (ttl int64, code raftmsg.Code, err error) {
	r := c.renews.Get().(*RenewCall)
	r.id, r.deadline = id, actors.Now()+int64(timeout)
	if code := c.post(r); code != raftmsg.Code_OK {
		c.renews.Put(r)
		return 0, code, nil
	}
	if err := r.wait(ctx); err != nil {
		return 0, 0, err // the actor has the call still: it is not used again
	}
	ttl, code = r.ttl, r.code
	r.ttl = 0
	c.renews.Put(r)
	return ttl, code, nil
}

// TimeCall asks for the time that a lease has left.
type TimeCall struct {
	call
	id   int64
	time Time
}

// Time is what a lease has left.
type Time struct {
	ID int64
	// TTL is what it gets with each renewal, in seconds. List leaves it out.
	TTL int64
	// Left is below zero if it has ended and is not gone yet.
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

// ListCall asks for the time that all leases have left.
type ListCall struct {
	call
	times []Time
}

// List returns the time of all leases, in no order. Codes: as Renew.
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

// callCost is what a call weighs in the mailbox.
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
