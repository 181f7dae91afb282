package raftactor

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// ClientConfig is what a client needs.
type ClientConfig struct {
	// Timeout bounds a request; then it is answered with TIMED_OUT.
	Timeout time.Duration
	State   *State
	// Full reports whether the log has no space for a request.
	Full    func(*applymsg.Request) bool
	Metrics *Metrics
}

// Client proposes requests and requests read indexes. Connect sets the incarnation of the
// core that it uses; while there is none, it answers STOPPED. It is safe for concurrent use.
type Client struct {
	cfg  ClientConfig
	core atomic.Pointer[clientCore]
}

// clientCore has the mailboxes of one incarnation of the core.
type clientCore struct{ proposer, readIndex *actors.Mailbox }

// NewClient returns a client without a core.
func NewClient(cfg ClientConfig) *Client { return &Client{cfg: cfg} }

// Connect makes the client use the stages of a core that has started.
func (c *Client) Connect(proposer, readIndex *actors.Mailbox) {
	c.core.Store(&clientCore{proposer, readIndex})
}

// Disconnect makes the client answer STOPPED. It is called when the core stops.
func (c *Client) Disconnect() { c.core.Store(nil) }

// Propose posts a request to the proposer and waits for the answer. The outcome is the code
// of the result. If ctx ends first, Propose returns its error; the request may still be
// applied.
//
// IMPORTANT: the caller must do or release the Rest of the answer.
func (c *Client) Propose(ctx context.Context, req *applymsg.Request) (Answer, error) {
	core := c.core.Load()
	if core == nil {
		return c.refused(raftmsg.Code_STOPPED), nil
	}
	if c.cfg.Full(req) {
		return c.refused(raftmsg.Code_NO_SPACE), nil
	}
	call := newCall(req, c.cfg.Timeout)
	if code := postCode(postCall(core.proposer, call)); code != raftmsg.Code_OK {
		return c.refused(code), nil
	}
	answer, err := call.reply.Wait(ctx)
	if err != nil || answer.Index == 0 {
		c.cfg.Metrics.failed.Inc()
	}
	return answer, err
}

// Post proposes a request for a stage, which cannot wait. done receives the code of the
// result. It is called on any goroutine and must not block. Post reports whether the
// proposer accepted the request; if not, done is not called.
func (c *Client) Post(req *applymsg.Request, done func(raftmsg.Code)) bool {
	core := c.core.Load()
	if core == nil || c.cfg.Full(req) {
		return false
	}
	call := newNotice(req, c.cfg.Timeout, func(a Answer) { done(a.Result.Code) })
	return postCall(core.proposer, call) == nil
}

// ReadIndex waits until a read of the newest view is linearizable: the view contains every
// write that any member acknowledged before the call. It returns OK then. The error is that
// of ctx.
func (c *Client) ReadIndex(ctx context.Context) (raftmsg.Code, error) {
	if c.cfg.State.Alone() {
		return raftmsg.Code_OK, nil
	}
	core := c.core.Load()
	if core == nil {
		return raftmsg.Code_STOPPED, nil
	}
	call := newReadCall(c.cfg.Timeout)
	if code := postCode(postRead(core.readIndex, call)); code != raftmsg.Code_OK {
		return code, nil
	}
	return call.reply.Wait(ctx)
}

func (c *Client) refused(code raftmsg.Code) Answer {
	c.cfg.Metrics.failed.Inc()
	return Answer{Result: &raftmsg.Result{Code: code}}
}

// postCode returns the code for an error of a post to a mailbox.
func postCode(err error) raftmsg.Code {
	switch {
	case err == nil:
		return raftmsg.Code_OK
	case errors.Is(err, actors.ErrFull):
		return raftmsg.Code_TOO_MANY_REQUESTS
	}
	return raftmsg.Code_STOPPED
}
