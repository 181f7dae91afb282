package leaseactor

import (
	"context"
	"fmt"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Server answers what the forwarders of other members send while this member leads. It
// implements peerpb.LeasesServer, and is registered with the server of the peer URLs. At most
// one request of each member is in progress.
type Server struct {
	peerpb.UnimplementedLeasesServer
	client *Client
}

// NewServer returns a server that asks the lease actor of a client. ClientConfig.Leader must
// not be nil.
func NewServer(c *Client) *Server { return &Server{client: c} }

// Forward implements peerpb.LeasesServer.
func (s *Server) Forward(ctx context.Context, req *peerpb.LeaseRequest) (*peerpb.LeaseResponse, error) {
	if n := len(req.Renew) + len(req.Time); n > forwardMax {
		return nil, fmt.Errorf("leaseactor: %d calls in a request, more than %d", n, forwardMax)
	}
	leader, term := s.client.cfg.Leader()
	to := s.client.local()
	if self := s.client.cfg.Self; req.To != self || leader != self || term != req.Term || to.box == nil {
		return &peerpb.LeaseResponse{NotLeader: true}, nil
	}
	resp := &peerpb.LeaseResponse{
		Renewed: make([]*peerpb.LeaseAnswer, len(req.Renew)),
		Times:   make([]*peerpb.LeaseAnswer, len(req.Time)),
	}
	s.ask(ctx, to, req, resp)
	if !missing(resp.Renewed) && !missing(resp.Times) || s.client.cfg.Alone() {
		return resp, nil
	}
	// Another member may have acknowledged a grant that is not applied here yet.
	ctx, cancel := withTimeout(ctx, forwardHold)
	defer cancel()
	if code, err := s.client.cfg.ReadIndex(ctx); err == nil && code == raftmsg.Code_OK {
		s.ask(ctx, to, req, resp)
		return resp, nil
	}
	for _, answers := range [][]*peerpb.LeaseAnswer{resp.Renewed, resp.Times} {
		for _, a := range answers {
			if a.Status == peerpb.LeaseStatus_LEASE_MISSING {
				a.Status = peerpb.LeaseStatus_LEASE_RETRY
			}
		}
	}
	return resp, nil
}

// ask sets the answers that are nil or missing. It posts all calls before it waits for the
// first, so that the actor handles them together.
func (s *Server) ask(ctx context.Context, to target, req *peerpb.LeaseRequest, resp *peerpb.LeaseResponse) {
	renews := make([]*RenewCall, len(req.Renew))
	deadline := actors.Now() + int64(forwardHold)
	for i, id := range req.Renew {
		if !wanted(resp.Renewed[i]) {
			continue
		}
		r := s.client.renews.Get().(*RenewCall)
		r.id, r.deadline = id, deadline
		if code := to.post(r); code != raftmsg.Code_OK {
			resp.Renewed[i] = &peerpb.LeaseAnswer{Status: statusOf(code)}
			s.client.renews.Put(r)
			continue
		}
		renews[i] = r
	}
	times := make([]*TimeCall, len(req.Time))
	for i, id := range req.Time {
		if !wanted(resp.Times[i]) {
			continue
		}
		m := newTimeCall(id)
		if code := to.post(m); code != raftmsg.Code_OK {
			resp.Times[i] = &peerpb.LeaseAnswer{Status: statusOf(code)}
			continue
		}
		times[i] = m
	}
	for i, r := range renews {
		if r == nil {
			continue
		}
		ttl, code, err := r.wait(ctx)
		if err != nil { // the sender has gone, and the actor still holds r
			resp.Renewed[i] = new(peerpb.LeaseAnswer)
			continue
		}
		s.client.renews.Put(r)
		resp.Renewed[i] = &peerpb.LeaseAnswer{Status: statusOf(code), Ttl: ttl}
	}
	for i, m := range times {
		if m == nil {
			continue
		}
		t, code, err := m.wait(ctx)
		if err != nil {
			code = raftmsg.Code_NO_LEADER
		}
		resp.Times[i] = &peerpb.LeaseAnswer{Status: statusOf(code), Ttl: t.TTL, Left: int64(t.Left)}
	}
}

// wanted reports whether a is to be set.
func wanted(a *peerpb.LeaseAnswer) bool {
	return a == nil || a.Status == peerpb.LeaseStatus_LEASE_MISSING
}

// missing reports whether a lease of the answers is missing.
func missing(answers []*peerpb.LeaseAnswer) bool {
	for _, a := range answers {
		if a.Status == peerpb.LeaseStatus_LEASE_MISSING {
			return true
		}
	}
	return false
}
