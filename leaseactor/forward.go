package leaseactor

import (
	"context"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// A call of a client of a follower, in the order of the data:
//
//	Client     posts it to the forwarder, because another member leads
//	forwarder  sends all queued calls as one LeaseRequest, and waits for the response:
//	           the next calls gather meanwhile
//	Server     at the leader, posts each to the lease actor and collects the answers. If a
//	           lease is missing, it asks once more after a read index, since its member
//	           may not have applied yet what another one has acknowledged
//	forwarder  answers the calls. Those that the leader could not answer are attempted
//	           again by the Client, until their deadline

const (
	// forwardMax bounds the calls of a LeaseRequest: at some microseconds each, the
	// leader answers within a few milliseconds. A message of them has 40 KB.
	forwardMax = 4096
	// forwardHold bounds how long the leader waits for its answers. Those for leases that
	// are being revoked or reset take longest; the other calls of the message wait for
	// them.
	forwardHold = 100 * time.Millisecond
)

// ForwarderConfig is what a forwarder needs.
type ForwarderConfig struct {
	// Limit bounds the calls accepted and not yet answered.
	Limit actors.Limit
	// Election is the election timeout. The leader has a little longer to respond; then
	// there may be another one.
	Election time.Duration
	// Self and Leader are those of ClientConfig; Leader must not be nil.
	Self   uint64
	Leader func() (id, term uint64)
	// Conn returns the control connection to a member, if there is one.
	Conn    func(id uint64) (grpc.ClientConnInterface, bool)
	Metrics *Metrics
	Faults  *actors.Faults
}

// forwarder passes the calls of this member's clients to the leader.
type forwarder struct {
	cfg ForwarderConfig
	box *actors.Mailbox
	ctx context.Context // ends when the actor is to stop
}

// NewForwarder returns the forwarder, as an edge actor: a new incarnation can replace it at
// any time, since the client attempts lost calls again.
func NewForwarder(cfg ForwarderConfig) actors.Stage {
	ctx, cancel := context.WithCancel(context.Background())
	f := &forwarder{cfg: cfg, ctx: ctx}
	f.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.EdgeLeases, Class: actors.Refuse, Limit: cfg.Limit, Hold: true,
		MaxBatch: actors.BatchLimit{Messages: forwardMax, Bytes: int64(forwardMax * callCost.Bytes)},
		OnReject: rejectCall, Faults: cfg.Faults,
	})
	return actors.Stage{Name: actors.EdgeLeases, Actor: f, Mailbox: f.box, Cancel: cancel}
}

// Receive implements actor.Actor.
func (f *forwarder) Receive(ctx actor.Context) {
	if b, ok := ctx.Message().(*actors.Batch); ok {
		f.batch(b)
	}
}

// batch sends all calls of a batch as one message and answers them.
func (f *forwarder) batch(b *actors.Batch) {
	f.cfg.Faults.Point(actors.EdgeLeases, "batch")
	req := new(peerpb.LeaseRequest)
	for _, m := range b.Msgs {
		switch c := m.(type) {
		case *RenewCall:
			req.Renew = append(req.Renew, c.id)
		case *TimeCall:
			req.Time = append(req.Time, c.id)
		}
	}
	resp := f.forward(req)
	f.cfg.Faults.Point(actors.EdgeLeases, "answer")
	renewed, times := resp.GetRenewed(), resp.GetTimes() // empty without a response
	var released actors.Cost
	for ; b.Done < len(b.Msgs); b.Done++ {
		var answer *peerpb.LeaseAnswer
		switch c := b.Msgs[b.Done].(type) {
		case *RenewCall:
			answer, renewed = first(renewed)
			c.resolve(answer.GetTtl(), codeOf(answer.GetStatus()))
		case *TimeCall:
			answer, times = first(times)
			c.resolve(Time{ID: c.id, TTL: answer.GetTtl(), Left: time.Duration(answer.GetLeft())}, codeOf(answer.GetStatus()))
		}
		released.Requests += callCost.Requests
		released.Bytes += callCost.Bytes
	}
	f.box.ReleaseLane(laneForward, released)
}

// first splits off the first answer; nil, which means retry, if there is none. The leader
// may be of a version that leaves some out.
func first(answers []*peerpb.LeaseAnswer) (*peerpb.LeaseAnswer, []*peerpb.LeaseAnswer) {
	if len(answers) == 0 {
		return nil, nil
	}
	return answers[0], answers[1:]
}

// forward returns the response of the leader, or nil if there is none.
func (f *forwarder) forward(req *peerpb.LeaseRequest) *peerpb.LeaseResponse {
	leader, term := f.cfg.Leader()
	if leader == 0 || leader == f.cfg.Self {
		return nil
	}
	conn, ok := f.cfg.Conn(leader)
	if !ok {
		return nil
	}
	req.To, req.Term = leader, term
	f.cfg.Metrics.forwarded.Add(float64(len(req.Renew)))
	ctx, cancel := withTimeout(f.ctx, f.cfg.Election+2*forwardHold)
	defer cancel()
	resp, err := peerpb.NewLeasesClient(conn).Forward(ctx, req)
	if err != nil || resp.NotLeader {
		return nil
	}
	return resp
}

// withTimeout returns a context that ends after d, by the clock of the kit.
func withTimeout(ctx context.Context, d time.Duration) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	timer := actors.AfterFunc(d, cancel)
	return ctx, func() {
		timer.Stop()
		cancel()
	}
}

// codeOf returns the code for a status. NO_LEADER makes the client try again.
func codeOf(s peerpb.LeaseStatus) raftmsg.Code {
	switch s {
	case peerpb.LeaseStatus_LEASE_OK:
		return raftmsg.Code_OK
	case peerpb.LeaseStatus_LEASE_MISSING:
		return raftmsg.Code_LEASE_NOT_FOUND
	case peerpb.LeaseStatus_LEASE_BUSY:
		return raftmsg.Code_TOO_MANY_REQUESTS
	}
	return raftmsg.Code_NO_LEADER
}

// statusOf is the inverse of codeOf. The sender retries what failed for any other reason.
func statusOf(code raftmsg.Code) peerpb.LeaseStatus {
	switch code {
	case raftmsg.Code_OK:
		return peerpb.LeaseStatus_LEASE_OK
	case raftmsg.Code_LEASE_NOT_FOUND:
		return peerpb.LeaseStatus_LEASE_MISSING
	case raftmsg.Code_TOO_MANY_REQUESTS:
		return peerpb.LeaseStatus_LEASE_BUSY
	}
	return peerpb.LeaseStatus_LEASE_RETRY
}
