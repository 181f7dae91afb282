package monitor

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// hashesWaiting bounds the requests for a hash that wait for another one: those of a leader,
// and of members that start.
const hashesWaiting = 16

// Keyspace is the monitors' interface to the keyspace; see mvcc.Published. All methods are
// safe for concurrent use.
type Keyspace interface {
	// Revisions returns the current revision and the compact revision; ok is false before
	// the core has booted first.
	Revisions() (current, compacted int64, ok bool)
	// HashKV returns the hash at a revision, and reports damage that it finds to the member.
	// It is not called before Revisions returns ok.
	HashKV(rev int64, pause func() error) (mvcc.HashKV, error)
	// CompactionHashes returns the hashes of the last compactions, newest first.
	CompactionHashes() []mvcc.HashKV
}

// ServiceConfig is what a Service needs.
type ServiceConfig struct {
	ClusterID, MemberID uint64
	Status              func() *peerpb.MemberStatus
	Keyspace            Keyspace
	// Pacer returns a function that pauses the computation of a hash, so that it does not
	// slow down requests. That function returns the error of ctx.
	Pacer func(ctx context.Context) func() error
}

// Service answers other members. It computes one hash at a time.
type Service struct {
	peerpb.UnimplementedMonitorServer
	cfg     ServiceConfig
	waiting chan struct{} // a token for each request that waits or computes
	turn    chan struct{} // a token while a hash is computed
}

// NewService returns a service, which the caller registers on the peer port.
func NewService(cfg ServiceConfig) *Service {
	return &Service{cfg: cfg, waiting: make(chan struct{}, 1+hashesWaiting), turn: make(chan struct{}, 1)}
}

// Status implements peerpb.MonitorServer.
func (s *Service) Status(_ context.Context, r *peerpb.MemberStatusRequest) (*peerpb.MemberStatus, error) {
	if err := s.addressed(r.ClusterId, r.MemberId); err != nil {
		return nil, err
	}
	return s.cfg.Status(), nil
}

// addressed refuses a request for another member.
func (s *Service) addressed(cluster, member uint64) error {
	switch {
	case cluster != s.cfg.ClusterID:
		return status.Errorf(codes.FailedPrecondition, "cluster ID mismatch: this is a member of cluster %x, not %x", s.cfg.ClusterID, cluster)
	case member != s.cfg.MemberID:
		return status.Errorf(codes.FailedPrecondition, "this is member %x, not %x", s.cfg.MemberID, member)
	}
	return nil
}

// HashKV implements peerpb.MonitorServer. If too many requests wait, it refuses with
// ResourceExhausted.
func (s *Service) HashKV(ctx context.Context, r *peerpb.HashKVRequest) (*peerpb.HashKVReply, error) {
	if err := s.addressed(r.ClusterId, r.MemberId); err != nil {
		return nil, err
	}
	if r.Revision <= 0 {
		return nil, status.Errorf(codes.InvalidArgument, "revision %d of a hash is not above 0", r.Revision)
	}
	select {
	case s.waiting <- struct{}{}:
		defer func() { <-s.waiting }()
	default:
		return nil, status.Error(codes.ResourceExhausted, "too many requests wait for a hash")
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return s.hash(ctx, r.Revision)
}

func (s *Service) hash(ctx context.Context, rev int64) (*peerpb.HashKVReply, error) {
	if _, _, ok := s.cfg.Keyspace.Revisions(); !ok {
		return &peerpb.HashKVReply{Code: raftmsg.Code_STOPPED}, nil
	}
	h, err := s.cfg.Keyspace.HashKV(rev, s.cfg.Pacer(ctx))
	current, _, _ := s.cfg.Keyspace.Revisions()
	refused := func(code raftmsg.Code) (*peerpb.HashKVReply, error) {
		return &peerpb.HashKVReply{Code: code, CurrentRevision: current}, nil
	}
	var damage *mvcc.CorruptError
	switch {
	case err == nil:
		return &peerpb.HashKVReply{Hash: h.Hash, Revision: h.HashRevision, CompactRevision: h.CompactRevision,
			OfCompaction: h.OfCompaction, CurrentRevision: h.Revision}, nil
	case errors.Is(err, mvcc.ErrCompacted):
		return refused(raftmsg.Code_COMPACTED)
	case errors.Is(err, mvcc.ErrFutureRevision):
		return refused(raftmsg.Code_FUTURE_REVISION)
	case errors.Is(err, mvcc.ErrClosed):
		return refused(raftmsg.Code_STOPPED)
	case errors.As(err, &damage):
		return refused(raftmsg.Code_CORRUPT)
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return nil, status.Error(codes.Unknown, err.Error())
}
