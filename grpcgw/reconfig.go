package grpcgw

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// A change of the members passes these steps:
//
//	Reconfig  checks the request as etcd does: its URLs, and unless the strict check is off,
//	          whether enough voters are running and connected that the cluster keeps its
//	          quorum. This is advice from the state that this member sees at the moment.
//	raft      appends one change at a time
//	apply     decides whether the change is valid, from replicated state, and answers
//
// Only the leader knows how far a learner is. A promotion on another member is passed on to
// the leader, over the HTTP of the peer port (peer_http.go).

const (
	// healthInterval is how long a peer must have been connected without interruption to
	// count in the strict check, as in etcd.
	healthInterval = 5 * time.Second
	// A learner may be promoted when its log has readyPercent percent of the entries of
	// the leader's, as in etcd.
	readyPercent = 90
	// versionPoll is the interval at which an addition looks for the version of the cluster.
	versionPoll = 10 * time.Millisecond
	// promoteRetry is the interval at which a promotion looks for the leader.
	promoteRetry = 100 * time.Millisecond
)

// ReconfigConfig configures a Reconfig.
type ReconfigConfig struct {
	Member  Member
	Peers   Peers
	Metrics *Metrics
	// Strict refuses changes after which the cluster might have no quorum.
	Strict bool
	// MaxLearners bounds the learners of the cluster.
	MaxLearners int
	// Timeout bounds a promotion that is passed on to the leader, and the wait of an addition
	// for the version of the cluster.
	Timeout time.Duration
	// Client sends HTTP requests to peers. It must not follow redirects.
	Client *http.Client
	Logger zerolog.Logger
}

// Reconfig changes the members of the cluster. It is safe for concurrent use.
type Reconfig struct{ cfg ReconfigConfig }

// NewReconfig returns a Reconfig. Nil Metrics export nothing.
func NewReconfig(cfg ReconfigConfig) *Reconfig {
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(MetricsConfig{})
	}
	return &Reconfig{cfg}
}

// add adds a member with these peer URLs. It returns the member, and all members after it.
func (r *Reconfig) add(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, []*pb.Member, error) {
	parsed, err := membership.ParseURLs(peerURLs)
	if err != nil {
		return nil, nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := r.mayAdd(learner); err != nil {
		r.cfg.Logger.Warn().Strs("peer-urls", peerURLs).Bool("learner", learner).Err(err).Msg("rejecting member add request")
		return nil, nil, err
	}
	if err := r.awaitVersion(ctx); err != nil {
		return nil, nil, err
	}
	urls := membership.URLStrings(parsed)
	change := &applymsg.MemberChange{
		Kind:        applymsg.MemberChangeKind_MEMBER_ADD,
		Member:      &applymsg.Member{Id: r.newID(urls), PeerUrls: urls},
		MaxLearners: uint32(max(r.cfg.MaxLearners, 0)),
	}
	if learner {
		change.Kind = applymsg.MemberChangeKind_MEMBER_ADD_LEARNER
	}
	members, err := r.propose(ctx, change)
	if err != nil {
		return nil, nil, err
	}
	return &pb.Member{ID: change.Member.Id, PeerURLs: urls, IsLearner: learner}, members, nil
}

// awaitVersion waits until the version of the cluster is set, which the leader does soon after its
// election. A member that joins refuses a cluster without one; and if the quorum depends on that
// member, as in a cluster of one voter that gets a second one, it could never be set afterwards.
func (r *Reconfig) awaitVersion(ctx context.Context) error {
	late := time.NewTimer(r.cfg.Timeout)
	defer late.Stop()
	for r.cfg.Member.Keyspace().View().Cluster.GetVersion() == nil {
		select {
		case <-ctx.Done():
			return proposalError(ctx.Err())
		case <-late.C:
			return errNotProposed
		case <-time.After(versionPoll):
		}
	}
	return nil
}

// newID returns the id of a member that is added now. If a member with these URLs was added
// and removed within this second, its id must not return, so a later second is used.
func (r *Reconfig) newID(urls []string) uint64 {
	removed := r.cfg.Member.Keyspace().View().Cluster.GetRemoved()
	for now := time.Now(); ; now = now.Add(time.Second) {
		if id := membership.AddedMemberID(urls, now); id != 0 && !slices.Contains(removed, id) {
			return id
		}
	}
}

func (r *Reconfig) remove(ctx context.Context, id uint64) ([]*pb.Member, error) {
	if err := r.mayRemove(id); err != nil {
		r.cfg.Logger.Warn().Str("requested-member-remove-id", hexID(id)).Err(err).Msg("rejecting member remove request")
		return nil, err
	}
	return r.propose(ctx, &applymsg.MemberChange{
		Kind: applymsg.MemberChangeKind_MEMBER_REMOVE, Member: &applymsg.Member{Id: id}})
}

// update replaces the peer URLs of a member. Unlike etcd's, it checks them: members could not
// connect to a URL that cannot be parsed.
func (r *Reconfig) update(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error) {
	if _, err := membership.ParseURLs(peerURLs); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	return r.propose(ctx, &applymsg.MemberChange{
		Kind: applymsg.MemberChangeKind_MEMBER_UPDATE, Member: &applymsg.Member{Id: id, PeerUrls: peerURLs}})
}

// promote makes a learner a voter, by the leader if this member is not the leader.
func (r *Reconfig) promote(ctx context.Context, id uint64) ([]*pb.Member, error) {
	members, err := r.promoteHere(ctx, id)
	if !errors.Is(err, rpctypes.ErrGRPCNotLeader) {
		return members, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	for {
		if r.cfg.Member.Raft().Leader == r.self() {
			members, err = r.promoteHere(ctx, id)
		} else {
			members, err = r.promoteOnLeader(ctx, id)
		}
		if err == nil || final(err) {
			return members, err
		}
		select {
		case <-ctx.Done():
			return nil, timeoutError(r.cfg.Member, proposalError(ctx.Err()), rpctypes.ErrGRPCNoLeader)
		case <-time.After(promoteRetry):
		}
	}
}

// finalErrors end a promotion; after any other error it is tried again.
var finalErrors = []error{rpctypes.ErrGRPCMemberNotFound, rpctypes.ErrGRPCMemberNotLearner, rpctypes.ErrGRPCLearnerNotReady,
	rpctypes.ErrMemberNotEnoughStarted, rpctypes.ErrGRPCUnhealthy}

func final(err error) bool {
	return slices.ContainsFunc(finalErrors, func(f error) bool { return errors.Is(err, f) })
}

// promoteHere makes a learner a voter if this member is the leader. Otherwise the error is
// rpctypes.ErrGRPCNotLeader.
func (r *Reconfig) promoteHere(ctx context.Context, id uint64) ([]*pb.Member, error) {
	if r.cfg.Peers.Match() == nil {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	members, err := r.promoteReady(ctx, id)
	r.cfg.Metrics.countPromotion(err)
	return members, err
}

func (r *Reconfig) promoteReady(ctx context.Context, id uint64) ([]*pb.Member, error) {
	if err := r.mayPromote(id); err != nil {
		r.cfg.Logger.Warn().Str("requested-member-promote-id", hexID(id)).Err(err).Msg("rejecting member promote request")
		return nil, err
	}
	return r.propose(ctx, &applymsg.MemberChange{
		Kind: applymsg.MemberChangeKind_MEMBER_PROMOTE, Member: &applymsg.Member{Id: id}})
}

// propose proposes a change and returns the members after it.
func (r *Reconfig) propose(ctx context.Context, change *applymsg.MemberChange) ([]*pb.Member, error) {
	answer, err := r.cfg.Peers.ProposeMemberChange(ctx, change)
	if c, ok := ctx.(*call); ok {
		c.index = answer.Index
	}
	if err != nil {
		return nil, proposalError(err)
	}
	if err := codeError(answer.Result.GetCode()); err != nil {
		return nil, err
	}
	return mustAnswer(answer.Result, answer.Result.GetMembers()).Members, nil
}

// moveLeader makes another voter the leader.
func (r *Reconfig) moveLeader(ctx context.Context, target uint64) error {
	if r.cfg.Member.Raft().Leader != r.self() {
		return rpctypes.ErrGRPCNotLeader
	}
	if m := r.find(target); m == nil || m.IsLearner {
		return rpctypes.ErrGRPCBadLeaderTransferee
	}
	if target == r.self() {
		return nil
	}
	code, err := r.cfg.Peers.MoveLeader(ctx, target)
	if err != nil {
		return errTransferTimeout // as in etcd, however the context ended
	}
	return codeError(code)
}

func (r *Reconfig) self() uint64 { return r.cfg.Member.Identity().MemberID }

func (r *Reconfig) members() []*applymsg.Member {
	return r.cfg.Member.Keyspace().View().Cluster.GetMembers()
}

// find returns a member; nil if there is none with this id.
func (r *Reconfig) find(id uint64) *applymsg.Member {
	members := r.members()
	if i := slices.IndexFunc(members, func(m *applymsg.Member) bool { return m.Id == id }); i >= 0 {
		return members[i]
	}
	return nil
}

// voters returns the voters except one, and how many of them have started: a member publishes
// its name when it begins to serve.
func (r *Reconfig) voters(except uint64) (voters []*applymsg.Member, started int) {
	for _, m := range r.members() {
		if m.IsLearner || m.Id == except {
			continue
		}
		voters = append(voters, m)
		if m.Name != "" {
			started++
		}
	}
	return voters, started
}

// connected counts the voters that this member is one of, or has been connected to for the
// health interval.
func (r *Reconfig) connected(voters []*applymsg.Member) (n int) {
	before := time.Now().Add(-healthInterval)
	for _, m := range voters {
		since, ok := r.cfg.Peers.ActiveSince(m.Id)
		if m.Id == r.self() || ok && since.Before(before) {
			n++
		}
	}
	return n
}

func quorum(voters int) int { return voters/2 + 1 }

// mayAdd checks whether the cluster keeps its quorum if a member is added that does not
// start. As in etcd, the connections are checked for a learner too.
func (r *Reconfig) mayAdd(learner bool) error {
	if !r.cfg.Strict {
		return nil
	}
	voters, started := r.voters(0)
	// A lone voter may always get a second one: so a cluster grows, and is restored.
	alone := len(voters) == 1 && started == 1
	if !learner && !alone && started < quorum(len(voters)+1) {
		return codeError(raftmsg.Code_TOO_FEW_STARTED)
	}
	if len(voters) != 1 && r.connected(voters) < quorum(len(voters)+1) {
		return rpctypes.ErrGRPCUnhealthy
	}
	return nil
}

// mayRemove checks whether the other voters have a quorum without a member.
func (r *Reconfig) mayRemove(id uint64) error {
	if !r.cfg.Strict {
		return nil
	}
	if m := r.find(id); m != nil && m.IsLearner {
		return nil
	}
	others, started := r.voters(id)
	if started < quorum(len(others)) {
		return codeError(raftmsg.Code_TOO_FEW_STARTED)
	}
	if _, ok := r.cfg.Peers.ActiveSince(id); !ok && id != r.self() {
		return nil // it is down, so the active quorum does not lose it
	}
	voters, _ := r.voters(0)
	if r.connected(voters)-1 < quorum(len(voters)-1) {
		return rpctypes.ErrGRPCUnhealthy
	}
	return nil
}

// mayPromote checks whether a learner has most of the leader's log, and whether the voters
// have a quorum with it.
func (r *Reconfig) mayPromote(id uint64) error {
	match := r.cfg.Peers.Match()
	if match == nil {
		return rpctypes.ErrGRPCNotLeader
	}
	learner, ok := match[id]
	if !ok {
		return rpctypes.ErrGRPCMemberNotFound
	}
	if learner*100 < match[r.self()]*readyPercent {
		return rpctypes.ErrGRPCLearnerNotReady
	}
	if !r.cfg.Strict {
		return nil
	}
	if voters, started := r.voters(0); started+1 < quorum(len(voters)+1) {
		return codeError(raftmsg.Code_TOO_FEW_STARTED)
	}
	return nil
}
