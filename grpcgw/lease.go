package grpcgw

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// leaseCost is etcd's estimate of the bytes that a lease takes.
const leaseCost = 64

// leases is the Lease service.
type leases struct {
	*Gateway
	pb.UnimplementedLeaseServer
}

// LeaseGrant grants a lease. If the request has no id, it chooses one. It also raises the
// TTL to the minimum: that is a setting of this member, which the result of applying a
// request must not depend on.
func (l *leases) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := l.checkQuota(ctx, leaseCost); err != nil {
		return nil, err
	}
	if err := l.checkSpace(ctx, leaseCost); err != nil {
		return nil, err
	}
	if _, _, err := l.requireUser(ctx); err != nil {
		return nil, err
	}
	grant := &pb.LeaseGrantRequest{ID: r.ID, TTL: max(r.TTL, l.cfg.MinLeaseTTL)}
	for grant.ID == 0 {
		grant.ID = rand.Int64() // positive, as in etcd
	}
	res, err := l.propose(ctx, &applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: grant}})
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetLeaseGrant())
	resp.Header = l.fill(resp.Header)
	return resp, nil
}

// LeaseRevoke revokes a lease and deletes its keys, if the user may write all of them.
func (l *leases) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	id, _, err := l.requireUser(ctx)
	if err != nil {
		return nil, err
	}
	res, err := l.propose(ctx, &applymsg.Request{User: id.User, AuthRevision: id.Revision, Op: &applymsg.Request_LeaseRevoke{
		LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{r.ID}}}})
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetLeaseRevoke())
	resp.Header = l.fill(resp.Header)
	return resp, nil
}

// LeaseTimeToLive returns the remaining TTL of a lease and, if requested, its keys in
// order, all of which the user must have the right to read. If the lease does not exist, the TTL is
// -1.
func (l *leases) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if _, _, err := l.requireUser(ctx); err != nil {
		return nil, err
	}
	if err := l.linearize(ctx); err != nil {
		// Etcd makes no linearizable read here, but waits for a leader.
		return nil, timeoutError(l.member, err, rpctypes.ErrGRPCNoLeader)
	}
	view := l.keyspace.View()
	var checked *auth.State
	if r.Keys {
		var err error
		if checked, err = l.checkKeys(ctx, view.LeaseKeys(r.ID)); err != nil {
			return nil, err
		}
	}
	t, code, err := l.member.Leases().Left(ctx, r.ID)
	if err != nil {
		return nil, proposalError(err)
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: l.fill(&pb.ResponseHeader{Revision: view.Revision}), ID: r.ID}
	switch _, there := view.Lease(r.ID); {
	case code == raftmsg.Code_LEASE_NOT_FOUND, code == raftmsg.Code_OK && !there:
		resp.TTL = -1
	case code != raftmsg.Code_OK:
		return nil, codeError(code)
	default:
		resp.TTL, resp.GrantedTTL = int64(t.Left/time.Second), t.TTL
		if r.Keys {
			resp.Keys = view.LeaseKeys(r.ID)
		}
	}
	if now := l.authState(); r.Keys && now != nil && now.Enabled() && now != checked {
		return nil, rpctypes.ErrGRPCAuthOldRevision // what was checked may not hold any more
	}
	return resp, nil
}

// checkKeys checks that the user of a call may read all keys that are attached to a lease. As in
// etcd, root may whatever the revision of its token. It returns the users and roles that it checked
// against; nil if there never were any.
func (l *leases) checkKeys(ctx context.Context, keys [][]byte) (*auth.State, error) {
	id, st, err := l.requireUser(ctx)
	if err != nil || st == nil || st.Admin(id) == raftmsg.Code_OK {
		return st, err
	}
	return st, codeError(allKeys(keys, st.Access(id).Read))
}

// allKeys returns the first code with which a check refuses a key.
func allKeys(keys [][]byte, check func(key, end []byte) raftmsg.Code) raftmsg.Code {
	for _, key := range keys {
		if code := check(key, nil); code != raftmsg.Code_OK {
			return code
		}
	}
	return raftmsg.Code_OK
}

// LeaseLeases lists all leases in the order of expiry. As in etcd, the list is what this
// member knows, and not a linearizable read.
func (l *leases) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	view := l.keyspace.View()
	if err := l.checkLeases(ctx, view); err != nil {
		return nil, err
	}
	resp := &pb.LeaseLeasesResponse{Header: l.fill(&pb.ResponseHeader{Revision: view.Revision})}
	times, _, _ := l.member.Leases().List(ctx) // empty unless this member is the leader
	for _, t := range leasesByEnd(view, times) {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: t.ID})
	}
	return resp, nil
}

// checkLeases checks that the user of a call may read the keys of all leases, as etcd does.
func (l *leases) checkLeases(ctx context.Context, view *mvcc.View) error {
	id, st, err := l.requireUser(ctx)
	if err != nil || st == nil || st.Admin(id) == raftmsg.Code_OK {
		return err
	}
	access := st.Access(id)
	for lease := range view.Leases() {
		if err := codeError(allKeys(view.LeaseKeys(lease.ID), access.Read)); err != nil {
			return err
		}
	}
	return nil
}

// checkRenewal checks that the user of a call may write the keys of a lease.
func (l *leases) checkRenewal(ctx context.Context, lease int64) error {
	id, st, err := l.requireUser(ctx)
	if err != nil || st == nil || st.Admin(id) == raftmsg.Code_OK {
		return err
	}
	return codeError(allKeys(l.keyspace.View().LeaseKeys(lease), st.Access(id).Write))
}

// leaseLine is a lease with its remaining time.
type leaseLine struct {
	mvcc.Lease
	left time.Duration
}

// leasesByEnd returns the leases of a view in the order of expiry. Leases that expire at
// the same time are in the order in which they were granted, or in the order of their ids
// if one log entry granted them. A lease that is not in times has its whole TTL left.
func leasesByEnd(view *mvcc.View, times []leaseactor.Time) []leaseLine {
	left := make(map[int64]time.Duration, len(times))
	for _, t := range times {
		left[t.ID] = t.Left
	}
	lines := make([]leaseLine, 0, view.Sizes.Leases)
	for l := range view.Leases() {
		line := leaseLine{Lease: l, left: time.Duration(l.TTL) * time.Second}
		if t, ok := left[l.ID]; ok {
			line.left = t
		}
		lines = append(lines, line)
	}
	slices.SortFunc(lines, func(a, b leaseLine) int {
		return cmp.Or(cmp.Compare(a.left, b.left), cmp.Compare(a.Granted, b.Granted), cmp.Compare(a.ID, b.ID))
	})
	return lines
}

// LeaseKeepAlive renews a lease for each message that it receives. It returns when the
// client closes the stream, or when the gateway stops.
func (l *leases) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	done := make(chan error, 1)
	go func() { // ends with the stream, at the latest when this method returns
		done <- l.guard(pb.Lease_LeaseKeepAlive_FullMethodName, func() error { return l.keepAlive(stream) })
	}()
	select {
	case err := <-done:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-l.stopping:
		return rpctypes.ErrGRPCStopped
	}
}

func (l *leases) keepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	var req pb.LeaseKeepAliveRequest // overwritten by each message
	for {
		if err := stream.RecvMsg(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		// The revision is taken before the renewal, so that a lease that is revoked at
		// revision 3 is never reported alive at revision 4.
		answer := &keepAliveAnswer{header: l.header(l.keyspace.View().Revision), id: req.ID}
		if err := l.checkRenewal(stream.Context(), req.ID); err != nil {
			return err
		}
		ttl, code, err := l.member.Leases().Renew(stream.Context(), req.ID)
		switch {
		case err != nil:
			return plainError(err)
		case code == raftmsg.Code_LEASE_NOT_FOUND: // not an error: the TTL is 0
		case code != raftmsg.Code_OK:
			return codeError(code)
		default:
			answer.ttl = ttl
		}
		if err := stream.SendMsg(answer); err != nil {
			return err
		}
	}
}

// keepAliveAnswer is a LeaseKeepAliveResponse.
type keepAliveAnswer struct {
	header  header
	id, ttl int64
}

// Field numbers of etcd's LeaseKeepAliveResponse.
const (
	fieldKeepAliveHeader = 1
	fieldKeepAliveID     = 2
	fieldKeepAliveTTL    = 3
)

func (a *keepAliveAnswer) size() int { return maxHeaderField + 2*(1+maxVarint) }

func (a *keepAliveAnswer) splice(dst []byte) []byte {
	dst = protowire.AppendTag(dst, fieldKeepAliveHeader, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(a.header.size()))
	dst = a.header.append(dst)
	dst = appendField(dst, fieldKeepAliveID, uint64(a.id))
	return appendField(dst, fieldKeepAliveTTL, uint64(a.ttl))
}
