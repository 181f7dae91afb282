package raftactor

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/replica"
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
type clientCore struct{ raft, proposer, readIndex *actors.Mailbox }

// NewClient returns a client without a core.
func NewClient(cfg ClientConfig) *Client { return &Client{cfg: cfg} }

// Connect makes the client use the stages of a core that has started.
func (c *Client) Connect(raft, proposer, readIndex *actors.Mailbox) {
	c.core.Store(&clientCore{raft, proposer, readIndex})
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
	if c.cfg.State.Behind() {
		return c.refused(raftmsg.Code_TOO_MANY_REQUESTS), nil
	}
	if c.cfg.Full(req) {
		return c.refused(raftmsg.Code_NO_SPACE), nil
	}
	return c.propose(ctx, core, newCall(req, c.cfg.Timeout))
}

// ProposeMemberChange proposes a change of the members and waits for the answer, like
// Propose. Its validity is checked where it is applied. It sets nothing in change, whose
// batch id must be 0.
func (c *Client) ProposeMemberChange(ctx context.Context, change *applymsg.MemberChange) (Answer, error) {
	core := c.core.Load()
	if core == nil {
		return c.refused(raftmsg.Code_STOPPED), nil
	}
	return c.propose(ctx, core, newChange(change, c.cfg.Timeout))
}

func (c *Client) propose(ctx context.Context, core *clientCore, call *Call) (Answer, error) {
	if code := postCode(postCall(core.proposer, call)); code != raftmsg.Code_OK {
		return c.refused(code), nil
	}
	answer, err := call.reply.Wait(ctx)
	if err != nil || answer.Index == 0 {
		c.cfg.Metrics.failed.Inc()
	}
	return answer, err
}

// Post proposes a request for a stage, which cannot wait. It returns OK if the proposer has
// accepted the request; done then receives the code of the result, on any goroutine, and must
// not block. Otherwise Post returns the reason, and done is not called.
func (c *Client) Post(req *applymsg.Request, done func(raftmsg.Code)) raftmsg.Code {
	core := c.core.Load()
	switch {
	case core == nil:
		return raftmsg.Code_STOPPED
	case c.cfg.State.Behind():
		return raftmsg.Code_TOO_MANY_REQUESTS
	case c.cfg.Full(req):
		return raftmsg.Code_NO_SPACE
	}
	call := newNotice(req, c.cfg.Timeout, func(a Answer) { done(a.Result.Code) })
	return postCode(postCall(core.proposer, call))
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

// TransferLeadership transfers leadership to a voter and waits until that member leads. It
// returns OK then; otherwise NOT_LEADER, BAD_TRANSFEREE, STOPPED, or
// TRANSFER_TIMED_OUT if raft gave up after an election timeout, another transfer was
// begun, or another member was elected. The error is that of ctx.
func (c *Client) TransferLeadership(ctx context.Context, to uint64) (raftmsg.Code, error) {
	core := c.core.Load()
	if core == nil {
		return raftmsg.Code_STOPPED, nil
	}
	call := &transferCall{to: to, reply: actors.NewReply[raftmsg.Code]()}
	if code := postCode(core.raft.TryPost(raftPeers, call, actors.Cost{Requests: 1})); code != raftmsg.Code_OK {
		return code, nil
	}
	return call.reply.Wait(ctx)
}

// Progress returns what this member, as the leader, knows of its peers; nil if it does not
// lead, or there is no core. Errors: actors.ErrFull, and that of ctx.
func (c *Client) Progress(ctx context.Context) ([]replica.PeerProgress, error) {
	core := c.core.Load()
	if core == nil {
		return nil, nil
	}
	call := &progressCall{reply: actors.NewReply[[]replica.PeerProgress]()}
	switch err := core.raft.TryPost(raftPeers, call, actors.Cost{Requests: 1}); {
	case errors.Is(err, actors.ErrClosed):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return call.reply.Wait(ctx)
}

// Advance lets a number of ticks pass at once while this member knows no leader, so that its
// election timeout ends sooner. If the mailbox is full, or there is no core, nothing happens.
func (c *Client) Advance(ticks int) {
	if core := c.core.Load(); core != nil {
		_ = core.raft.TryPost(raftPeers, &advanceCall{ticks}, actors.Cost{Requests: 1}) // only saves time
	}
}

// Receive passes on what came from another member: a *raftpb.Message, *raftmsg.Forward or
// *raftmsg.Forwarded; or a report on one: *raftmsg.Unreachable, *raftmsg.LeaderRefused or
// *raftmsg.SnapshotStatus. It never blocks. Errors: those of actors.Mailbox.TryPost; the
// message is lost then. A SnapshotStatus that is refused because the mailbox is full must
// be sent again.
func (c *Client) Receive(msg any) error {
	core := c.core.Load()
	if core == nil {
		return actors.ErrClosed
	}
	switch m := msg.(type) {
	case *raftpb.Message:
		return postPeer(core.raft, m)
	case *raftmsg.Forward:
		return core.proposer.TryPost(proposerForwards, m, forwardCost(m))
	case *raftmsg.Forwarded:
		return core.proposer.TryPost(proposerAnswers, m, actors.Cost{Requests: 1})
	case *raftmsg.Unreachable, *raftmsg.LeaderRefused:
		return core.raft.TryPost(raftPeers, m, actors.Cost{Requests: 1})
	case *raftmsg.SnapshotStatus:
		return core.raft.TryPost(raftLocal, m, actors.Cost{Requests: 1})
	}
	panic(fmt.Sprintf("raftactor: message %T from a peer", msg))
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
