package node

import (
	"context"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
)

// minLeaseTTL is the shortest time of a lease in seconds: one and a half times
// the election timeout, reckoned in heartbeats as etcd does, and rounded up.
func (c *Config) minLeaseTTL() int64 {
	ticks := c.Election / c.Heartbeat
	shortest := 3 * ticks / 2 * c.Heartbeat
	return int64((shortest + time.Second - 1) / time.Second)
}

func (n *Node) newLeaseStage(epoch uint64) actors.Stage {
	return leaseactor.New(leaseactor.Config{
		Epoch: epoch, Limit: n.cfg.Mailboxes.Lease,
		MinTTL: n.cfg.minLeaseTTL(), Election: n.cfg.Election, Checkpoint: n.cfg.LeaseCheckpoint,
		Term: n.raft.Leads, View: n.published.View, Propose: n.proposeLeases, Now: n.cfg.LeaseClock,
		Observe: n.metrics, Faults: n.cfg.Faults,
	})
}

// proposeLeases hands a request of leaseactor to the proposer.
func (n *Node) proposeLeases(req *applymsg.Request, done func(raftmsg.Code)) bool {
	c := n.current.Load()
	if c == nil {
		return false
	}
	call := raftactor.NewNotice(req, n.cfg.requestTimeout(), func(a raftactor.Answer) { done(a.Result.Code) })
	return raftactor.PostCall(c.proposer, call) == nil
}

// RenewLease implements grpcgw.Member.
func (n *Node) RenewLease(ctx context.Context, id int64) (ttl int64, code raftmsg.Code, err error) {
	if n.cfg.SlowKeepAlive {
		if code, err := n.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
			return 0, code, err
		}
	}
	renew := func(leases *leaseactor.Client) (raftmsg.Code, error) {
		ttl, code, err = leases.Renew(ctx, id, n.cfg.requestTimeout())
		return code, err
	}
	code, err = n.askLeases(ctx, renew)
	if err != nil || code != raftmsg.Code_LEASE_NOT_FOUND || n.raft.Alone() || n.cfg.SlowKeepAlive {
		return ttl, code, err
	}
	// It may have been granted by an entry that is not applied here yet.
	if code, err := n.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
		return 0, code, err
	}
	code, err = n.askLeases(ctx, renew)
	return ttl, code, err
}

// LeaseTime implements grpcgw.Member.
func (n *Node) LeaseTime(ctx context.Context, id int64) (t grpcgw.LeaseTime, code raftmsg.Code, err error) {
	code, err = n.askLeases(ctx, func(leases *leaseactor.Client) (raftmsg.Code, error) {
		time, code, err := leases.Left(ctx, id)
		t = grpcgw.LeaseTime{TTL: time.TTL, Left: time.Left}
		return code, err
	})
	return t, code, err
}

// LeaseTimes implements grpcgw.Member.
func (n *Node) LeaseTimes(ctx context.Context) map[int64]time.Duration {
	c := n.current.Load()
	if c == nil {
		return nil
	}
	all, _, _ := c.lease.List(ctx) // none is what there is to say otherwise
	left := make(map[int64]time.Duration, len(all))
	for _, t := range all {
		left[t.ID] = t.Left
	}
	return left
}

// askLeases asks leaseactor, again each heartbeat while there is none or it does
// not lead yet: after a start, a reboot or a change of leader. In the end etcd's
// clients hear of a timeout.
func (n *Node) askLeases(ctx context.Context, ask func(*leaseactor.Client) (raftmsg.Code, error)) (raftmsg.Code, error) {
	var timeout <-chan time.Time // of a member that leads none is needed
	for {
		code, err := raftmsg.Code_STOPPED, error(nil)
		if c := n.current.Load(); c != nil {
			code, err = ask(c.lease)
		}
		if err != nil || code != raftmsg.Code_STOPPED && code != raftmsg.Code_NO_LEADER {
			return code, err
		}
		if timeout == nil {
			timeout = time.After(n.cfg.requestTimeout())
		}
		select {
		case <-timeout:
			return raftmsg.Code_TIMED_OUT, nil
		default:
		}
		if !n.wait(ctx) {
			return raftmsg.Code_STOPPED, ctx.Err()
		}
	}
}
