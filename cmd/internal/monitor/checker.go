package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/peerpb"
)

const (
	// hashTimeout bounds the time in which another member answers with a hash. It computes
	// the hash at a limited rate, so this is longer than the timeout of a request.
	hashTimeout = time.Minute
	// readTimeout bounds a linearizable read.
	readTimeout = 5 * time.Second
	// compactionsChecked bounds the compactions that one run compares. If the newest cannot be
	// compared on all members, an older one is tried; mvcc keeps ten.
	compactionsChecked = 10
)

// CheckerConfig is what a Checker needs.
type CheckerConfig struct {
	MemberID uint64
	Cluster  Cluster
	Keyspace Keyspace
	Peers    Peers
	// Pacer as in ServiceConfig.
	Pacer func(ctx context.Context) func() error
	// Pause waits between two attempts to reach a member. It returns false if ctx ends.
	Pause func(ctx context.Context) bool
	// PeriodicEvery and CompactionEvery are the intervals of Periodic and Compactions. Zero
	// disables them.
	PeriodicEvery, CompactionEvery time.Duration
	Metrics                        *Metrics
	Logger                         zerolog.Logger
}

// Checker compares the keyspace of this member with those of the others. Due may be called
// while Run runs; otherwise it is not safe for concurrent use.
type Checker struct {
	cfg                   CheckerConfig
	periodic, compactions schedule
	// checked is the highest compaction whose hash was equal on all members.
	checked int64
}

// NewChecker returns a checker, whose first checks are due one interval from now.
func NewChecker(cfg CheckerConfig, now time.Time) *Checker {
	return &Checker{cfg: cfg, periodic: schedule{every: cfg.PeriodicEvery, last: now},
		compactions: schedule{every: cfg.CompactionEvery, last: now}}
}

// Enabled reports whether Run ever has anything to do.
func (c *Checker) Enabled() bool { return c.cfg.PeriodicEvery > 0 || c.cfg.CompactionEvery > 0 }

// Every returns the interval at which Due should be called.
func (c *Checker) Every() time.Duration {
	every := time.Second
	for _, d := range []time.Duration{c.cfg.PeriodicEvery, c.cfg.CompactionEvery} {
		if d > 0 {
			every = min(every, d)
		}
	}
	return every
}

// Due reports whether Run has anything to do: this member leads, and it is time for a check.
func (c *Checker) Due(now time.Time) bool {
	return (c.periodicDue(now) || c.compactionsDue(now)) && c.leads()
}

func (c *Checker) leads() bool {
	return c.cfg.Cluster.Status().Role == peerpb.MemberRole_MEMBER_ROLE_LEADER
}

func (c *Checker) periodicDue(now time.Time) bool {
	return c.cfg.PeriodicEvery > 0 && c.periodic.due(now, 0)
}

func (c *Checker) compactionsDue(now time.Time) bool {
	return c.cfg.CompactionEvery > 0 && c.compactions.due(now, 0)
}

// Run makes the checks that are due.
func (c *Checker) Run(ctx context.Context, now time.Time) {
	if _, _, ok := c.cfg.Keyspace.Revisions(); !ok {
		return
	}
	if c.periodicDue(now) {
		c.periodic.began(now, 0)
		if err := c.Periodic(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn().Err(err).Msg("failed to check hash KV")
		}
	}
	if c.compactionsDue(now) && c.leads() {
		c.compactions.began(now, 0)
		c.Compactions(ctx)
	}
}

// others returns the ids of the other members.
func (c *Checker) others() (ids []uint64) {
	for _, id := range c.cfg.Cluster.Members() {
		if id != c.cfg.MemberID {
			ids = append(ids, id)
		}
	}
	return ids
}

// ask asks all other members for the hash at a revision, one after the other.
func (c *Checker) ask(ctx context.Context, rev int64) (peers []PeerHash) {
	for _, id := range c.others() {
		p := c.askOne(ctx, id, rev)
		if p.Err != nil {
			c.cfg.Logger.Warn().Str("local-member-id", hex(c.cfg.MemberID)).Int64("requested-revision", rev).
				Str("remote-peer-id", hex(id)).Err(p.Err).Msg("failed hash kv request")
		}
		peers = append(peers, p)
	}
	return peers
}

func (c *Checker) askOne(ctx context.Context, id uint64, rev int64) PeerHash {
	ctx, cancel := context.WithTimeout(ctx, hashTimeout)
	defer cancel()
	h, err := c.cfg.Peers.HashKV(ctx, id, rev)
	return PeerHash{Member: id, Hash: h, Err: err}
}

// Periodic compares the hashes at the current revision, and raises alarms. It is for the
// leader. An error means that there was nothing to compare with.
func (c *Checker) Periodic(ctx context.Context) error {
	// The revision is named, because the hash of a compaction at revision 0 would be
	// returned otherwise.
	rev, _, _ := c.cfg.Keyspace.Revisions()
	own, err := c.cfg.Keyspace.HashKV(rev, c.cfg.Pacer(ctx))
	if err != nil {
		return err
	}
	peers := c.ask(ctx, rev)
	if err := c.linearize(ctx); err != nil {
		return err
	}
	var after revisions
	after.current, after.compacted, _ = c.cfg.Keyspace.Revisions()
	var again *mvcc.HashKV
	if after.current == rev && after.compacted == own.CompactRevision {
		h, err := c.cfg.Keyspace.HashKV(rev, c.cfg.Pacer(ctx))
		if err != nil {
			return err
		}
		again = &h
	}
	found, blamed := comparePeriodic(c.cfg.MemberID, own, again, after, peers)
	for _, f := range found {
		event := c.event(c.cfg.Logger.Warn(), own).Str("member-id", hex(f.member)).
			Int64("leader-revision", after.current).Int64("leader-compact-revision", after.compacted)
		if again != nil {
			event = event.Uint32("hash-2", again.Hash)
		}
		for _, p := range peers {
			if p.Member == f.member {
				event = remote(event, p)
			}
		}
		event.Msg(f.text)
	}
	c.raise(ctx, blamed)
	answered := 0
	for _, p := range peers {
		if p.Err == nil {
			answered++
		}
		c.cfg.Metrics.compared(checkPeriodic, own, p)
	}
	c.cfg.Logger.Info().Int("number-of-peers-checked", answered).Msg("finished peer corruption check")
	return nil
}

func (c *Checker) linearize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return c.cfg.Cluster.Linearize(ctx)
}

// Compactions compares the hashes of the newest compaction that all members have, and raises
// alarms. It is for the leader. A compaction is not compared again once the hashes of all
// members were equal.
func (c *Checker) Compactions(ctx context.Context) {
	hashes := unchecked(c.cfg.Keyspace.CompactionHashes(), c.checked)
	hashes = hashes[:min(len(hashes), compactionsChecked)]
	if len(hashes) == 0 || len(c.others()) == 0 {
		return
	}
	c.cfg.Logger.Info().Str("local-member-id", hex(c.cfg.MemberID)).Msg("starting compact hash check")
	n := 0
	for _, own := range hashes {
		n++
		if ctx.Err() != nil || c.compaction(ctx, own) {
			break
		}
	}
	c.cfg.Logger.Info().Int("number-of-hashes-checked", n).Msg("finished compaction hash check")
}

// compaction compares the hash of a compaction. It reports whether no older one needs to be
// compared: all members were, or some differ.
func (c *Checker) compaction(ctx context.Context, own mvcc.HashKV) (done bool) {
	peers := c.ask(ctx, own.HashRevision)
	for _, p := range peers {
		c.cfg.Metrics.compared(checkCompaction, own, p)
		if reason := incomparable(own, p); reason != "" {
			c.cfg.Logger.Warn().Str("leader-id", hex(c.cfg.MemberID)).Str("peer-id", hex(p.Member)).
				Int64("leader-revision", own.HashRevision).Str("reason", reason).Msg("skipped peer's hash")
		}
	}
	r := compareCompaction(c.cfg.MemberID, own, peers)
	if len(r.differ) == 0 {
		event := c.cfg.Logger.Info()
		text := "successfully checked hash on whole cluster"
		if done = r.checked == len(peers); !done {
			event, text = c.cfg.Logger.Warn(), "skipped revision in compaction hash check; was not able to check all peers"
		} else {
			c.checked = max(c.checked, own.HashRevision)
		}
		event.Int("number-of-peers-checked", r.checked).Int("number-of-peers", len(peers)).
			Int64("revision", own.HashRevision).Int64("compactRevision", own.CompactRevision).Msg(text)
		return done
	}
	if !r.quorum {
		c.event(c.cfg.Logger.Error(), own).
			Msg("Detected compaction hash mismatch but cannot identify the corrupted members, so intentionally set the memberID as 0")
	}
	for _, g := range r.differ {
		ids := make([]string, len(g.members))
		for i, id := range g.members {
			ids[i] = hex(id)
		}
		c.event(c.cfg.Logger.Error(), own).Uint32("peer-hash", g.hash).Strs("peer-ids", ids).
			Bool("quorum-exist", r.quorum).Msg("Detected compaction hash mismatch")
	}
	c.raise(ctx, r.blamed)
	return true
}

func (c *Checker) event(e *zerolog.Event, own mvcc.HashKV) *zerolog.Event {
	return e.Str("local-member-id", hex(c.cfg.MemberID)).Int64("local-member-revision", own.HashRevision).
		Int64("local-member-compact-revision", own.CompactRevision).Uint32("local-member-hash", own.Hash)
}

func remote(e *zerolog.Event, p PeerHash) *zerolog.Event {
	return e.Str("remote-peer-id", hex(p.Member)).Int64("remote-peer-revision", p.Hash.Revision).
		Int64("remote-peer-compact-revision", p.Hash.CompactRevision).Uint32("remote-peer-hash", p.Hash.Hash)
}

// raise proposes the alarm for members. What fails is proposed again by the next run, which
// finds the same.
func (c *Checker) raise(ctx context.Context, members []uint64) {
	for _, id := range members {
		proposal, cancel := context.WithTimeout(ctx, proposeTimeout)
		err := c.cfg.Cluster.RaiseCorrupt(proposal, id)
		cancel()
		if err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn().Str("member-id", hex(id)).Err(err).Msg("failed to propose the alarm CORRUPT")
		}
	}
}

// Initial compares this member, which has started and serves no clients yet, with the others.
// It waits up to connect for their connections. It returns an error if the hash of
// another member differs at the highest revision that both have, or if the own one cannot be
// computed. A member that cannot be compared is skipped.
func (c *Checker) Initial(ctx context.Context, connect time.Duration) error {
	c.cfg.Logger.Info().Str("local-member-id", hex(c.cfg.MemberID)).Msg("starting initial corruption check")
	rev, _, ok := c.cfg.Keyspace.Revisions()
	if !ok {
		return fmt.Errorf("%s failed to fetch hash (%w)", hex(c.cfg.MemberID), mvcc.ErrClosed)
	}
	own, err := c.cfg.Keyspace.HashKV(rev, ctx.Err)
	if err != nil {
		return fmt.Errorf("%s failed to fetch hash (%w)", hex(c.cfg.MemberID), err)
	}
	connecting, cancel := context.WithTimeout(ctx, connect)
	defer cancel()
	mismatches := 0
	for _, id := range c.others() {
		different, err := c.initial(ctx, connecting, id, own)
		if err != nil {
			return err
		}
		if different {
			mismatches++
		}
	}
	if mismatches > 0 {
		return fmt.Errorf("%s found data inconsistency with peers", hex(c.cfg.MemberID))
	}
	c.cfg.Logger.Info().Str("local-member-id", hex(c.cfg.MemberID)).
		Msg("initial corruption checking passed; no corruption")
	return nil
}

// initial compares this member with another one. If that has not reached the revision of own,
// it compares at the other's revision, once. etcd skips such a member.
func (c *Checker) initial(ctx, connecting context.Context, id uint64, own mvcc.HashKV) (different bool, err error) {
	p := c.askOne(ctx, id, own.HashRevision)
	for errors.Is(p.Err, ErrUnreachable) && c.cfg.Pause(connecting) {
		p = c.askOne(ctx, id, own.HashRevision)
	}
	result := compareInitial(own, p)
	if lower := p.Hash.Revision; result == initialSlow && lower > 0 && lower < own.HashRevision {
		switch at, err := c.cfg.Keyspace.HashKV(lower, ctx.Err); {
		case err == nil:
			own, p = at, c.askOne(ctx, id, lower)
			result = compareInitial(own, p)
		case !errors.Is(err, mvcc.ErrCompacted):
			return false, fmt.Errorf("%s failed to fetch hash (%w)", hex(c.cfg.MemberID), err)
		}
	}
	c.cfg.Metrics.compared(checkInitial, own, p)
	if text := initialTexts[result]; text != "" {
		remote(c.event(c.cfg.Logger.Warn(), own), p).AnErr("error", p.Err).Msg(text)
	}
	return result == initialDifferent, nil
}

// initialTexts has what is logged for each result.
var initialTexts = map[initial]string{
	initialDifferent: "found different hash values from remote peer",
	initialSkipped:   "found different compact revision values from remote peer",
	initialSlow:      "cannot fetch hash from slow remote peer",
	initialBehind:    "cannot fetch hash from remote peer; local member is behind",
	initialFailed:    "cannot fetch hash from remote peer",
}
