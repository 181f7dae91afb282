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
	// Self is the id of this member.
	Self uint64
	// Leader returns the member that leads, and its term, as far as this member knows; 0
	// if there is none. Nil means that no other member exists.
	Leader func() (id, term uint64)
	// Forwarder returns the mailbox of the forwarder (NewForwarder), to which calls go
	// while another member leads; nil while there is none. It may be nil if Leader is.
	Forwarder func() *actors.Mailbox
	// Pause waits between two attempts. It returns false if the member stops or the
	// context ends.
	Pause func(context.Context) bool
}

// Client calls the lease actor of the leader: its own, or through the forwarder that of
// another member. Connect sets the incarnation of the core that it uses. While there is none,
// and while the leader is unknown, out of reach or not ready, calls are attempted again: after
// a start, a reboot or a change of leader. It is safe for concurrent use.
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

// Renew renews a lease and returns its TTL in seconds. Codes: LEASE_NOT_FOUND; NO_LEADER if
// no member leads until the timeout; TIMED_OUT; STOPPED if the member stops;
// TOO_MANY_REQUESTS; and those of a proposal or a read index, if one was needed. The error is
// that of ctx.
func (c *Client) Renew(ctx context.Context, id int64) (ttl int64, code raftmsg.Code, err error) {
	if c.cfg.Slow {
		if code, err := c.cfg.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
			return 0, code, err
		}
	}
	deadline := c.deadline()
	forwarded := false // the latest attempt
	renew := func(to target) (int64, raftmsg.Code, error) {
		forwarded = to.lane == laneForward
		return c.renew(ctx, to, id, deadline)
	}
	ttl, code, err = attempt(ctx, c, deadline, renew)
	if err != nil || code != raftmsg.Code_LEASE_NOT_FOUND || forwarded || c.cfg.Alone() || c.cfg.Slow {
		return ttl, code, err
	}
	// The lease may have been granted by an entry that is not applied here yet. If the
	// call was forwarded, the leader has done this.
	if code, err := c.cfg.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
		return 0, code, err
	}
	return attempt(ctx, c, deadline, renew)
}

// Left returns the time of a lease. Codes: as Renew.
func (c *Client) Left(ctx context.Context, id int64) (Time, raftmsg.Code, error) {
	return attempt(ctx, c, c.deadline(), func(to target) (Time, raftmsg.Code, error) {
		m := newTimeCall(id)
		return ask(ctx, to, m, &m.call)
	})
}

// List returns the time of all leases, in no particular order; none unless this member is
// the leader, for in etcd a follower does not ask the leader either. It makes one attempt.
// Codes: as Renew.
func (c *Client) List(ctx context.Context) ([]Time, raftmsg.Code, error) {
	to := c.local()
	if to.box == nil {
		return nil, raftmsg.Code_STOPPED, nil
	}
	m := &ListCall{newCall[[]Time]()}
	return ask(ctx, to, m, &m.call)
}

// renew makes one attempt.
func (c *Client) renew(ctx context.Context, to target, id, deadline int64) (int64, raftmsg.Code, error) {
	r := c.renews.Get().(*RenewCall)
	r.id, r.deadline = id, deadline
	ttl, code, err := ask(ctx, to, r, &r.call)
	if err == nil { // otherwise the actor still holds r
		c.renews.Put(r)
	}
	return ttl, code, err
}

// deadline returns the time of actors.Now at which a call that begins now times out.
func (c *Client) deadline() int64 { return actors.Now() + int64(c.cfg.Timeout) }

// local returns the lease actor of this member.
func (c *Client) local() target { return target{c.box.Load(), laneCalls} }

// target returns the actor of the leader, or the forwarder. If there is none, box is nil,
// and code says why.
func (c *Client) target() (to target, code raftmsg.Code) {
	if c.cfg.Leader != nil {
		switch leader, _ := c.cfg.Leader(); leader {
		case 0:
			return target{}, raftmsg.Code_NO_LEADER
		case c.cfg.Self:
		default:
			return target{c.cfg.Forwarder(), laneForward}, raftmsg.Code_STOPPED
		}
	}
	return c.local(), raftmsg.Code_STOPPED
}

// attempt calls try until the actor of a leader answers, and at least once. After the deadline
// the code is the one of etcd: NO_LEADER if no member leads, otherwise TIMED_OUT.
func attempt[T any](ctx context.Context, c *Client, deadline int64, try func(target) (T, raftmsg.Code, error)) (value T, code raftmsg.Code, err error) {
	for {
		to, reason := c.target()
		code = reason
		if to.box != nil {
			value, code, err = try(to)
		}
		if err != nil || code != raftmsg.Code_STOPPED && code != raftmsg.Code_NO_LEADER {
			return value, code, err
		}
		if actors.Now() >= deadline {
			if reason == raftmsg.Code_NO_LEADER {
				return value, reason, nil
			}
			return value, raftmsg.Code_TIMED_OUT, nil
		}
		if !c.cfg.Pause(ctx) {
			return value, raftmsg.Code_STOPPED, ctx.Err()
		}
	}
}
