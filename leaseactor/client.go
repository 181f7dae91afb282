package leaseactor

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// ClientConfig is what a client needs.
type ClientConfig struct {
	// Timeout bounds a call; then it is answered with TIMED_OUT.
	Timeout time.Duration
	// ReadIndex waits until all acknowledged writes are applied, as
	// raftactor.Client.ReadIndex does. Alone reports that they always are.
	ReadIndex func(context.Context) (raftmsg.Code, error)
	Alone     func() bool
	// Slow makes each renewal wait for a read index first, as etcd does without its
	// feature gate FastLeaseKeepAlive.
	Slow bool
	// Pause waits between two attempts. It returns false if the member stops or the
	// context ends.
	Pause func(context.Context) bool
}

// Client calls the lease actor. Connect sets the incarnation of the core that it uses. While
// there is none, or the member is not the leader yet, calls are attempted again: after a
// start, a reboot or a change of leader. It is safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	box    atomic.Pointer[actors.Mailbox] // nil while there is no core
	renews sync.Pool                      // of *RenewCall, of which each keep-alive needs one
}

// NewClient returns a client without a core.
func NewClient(cfg ClientConfig) *Client {
	return &Client{cfg: cfg, renews: sync.Pool{New: func() any { return &RenewCall{call: newCall[int64]()} }}}
}

// Connect makes the client use a lease actor that has started.
func (c *Client) Connect(box *actors.Mailbox) { c.box.Store(box) }

// Disconnect removes the actor. It is called when the core stops.
func (c *Client) Disconnect() { c.box.Store(nil) }

// Renew renews a lease and returns its TTL in seconds. Codes: LEASE_NOT_FOUND;
// TIMED_OUT; STOPPED if the member stops; TOO_MANY_REQUESTS; and those of a proposal or
// a read index, if one was needed. The error is that of ctx.
func (c *Client) Renew(ctx context.Context, id int64) (ttl int64, code raftmsg.Code, err error) {
	if c.cfg.Slow {
		if code, err := c.cfg.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
			return 0, code, err
		}
	}
	renew := func(box *actors.Mailbox) (int64, raftmsg.Code, error) { return c.renew(ctx, box, id) }
	ttl, code, err = attempt(ctx, c, renew)
	if err != nil || code != raftmsg.Code_LEASE_NOT_FOUND || c.cfg.Alone() || c.cfg.Slow {
		return ttl, code, err
	}
	// The lease may have been granted by an entry that is not applied here yet.
	if code, err := c.cfg.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
		return 0, code, err
	}
	return attempt(ctx, c, renew)
}

// Left returns the time of a lease. Codes: as Renew.
func (c *Client) Left(ctx context.Context, id int64) (Time, raftmsg.Code, error) {
	return attempt(ctx, c, func(box *actors.Mailbox) (Time, raftmsg.Code, error) {
		m := &TimeCall{call: newCall[Time](), id: id}
		return ask(ctx, box, m, &m.call)
	})
}

// List returns the time of all leases, in no particular order; none unless this member is
// the leader. It makes one attempt. Codes: as Renew, and NO_LEADER.
func (c *Client) List(ctx context.Context) ([]Time, raftmsg.Code, error) {
	box := c.box.Load()
	if box == nil {
		return nil, raftmsg.Code_STOPPED, nil
	}
	m := &ListCall{newCall[[]Time]()}
	return ask(ctx, box, m, &m.call)
}

// renew makes one attempt.
func (c *Client) renew(ctx context.Context, box *actors.Mailbox, id int64) (int64, raftmsg.Code, error) {
	r := c.renews.Get().(*RenewCall)
	r.id, r.deadline = id, actors.Now()+int64(c.cfg.Timeout)
	ttl, code, err := ask(ctx, box, r, &r.call)
	if err == nil { // otherwise the actor still holds r
		c.renews.Put(r)
	}
	return ttl, code, err
}

// ask posts m and waits for the answer to its call c.
func ask[T any](ctx context.Context, box *actors.Mailbox, m any, c *call[T]) (value T, code raftmsg.Code, err error) {
	if code := post(box, m); code != raftmsg.Code_OK {
		return value, code, nil
	}
	return c.wait(ctx)
}

// attempt calls try until there is an actor of a leader, at most for the timeout.
func attempt[T any](ctx context.Context, c *Client, try func(*actors.Mailbox) (T, raftmsg.Code, error)) (value T, code raftmsg.Code, err error) {
	var deadline int64 // as actors.Now; set by the second attempt
	for {
		code = raftmsg.Code_STOPPED
		if box := c.box.Load(); box != nil {
			value, code, err = try(box)
		}
		if err != nil || code != raftmsg.Code_STOPPED && code != raftmsg.Code_NO_LEADER {
			return value, code, err
		}
		now := actors.Now()
		if deadline == 0 {
			deadline = now + int64(c.cfg.Timeout)
		}
		if now >= deadline {
			return value, raftmsg.Code_TIMED_OUT, nil
		}
		if !c.cfg.Pause(ctx) {
			return value, raftmsg.Code_STOPPED, ctx.Err()
		}
	}
}
