package node

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/raftactor"
)

// Troubles of a member, as named by the checks of /readyz and the label of the metric
// troupe_member_trouble.
const (
	troubleFsync      = "fsync"
	troubleApply      = "apply"
	troubleStore      = "store"
	troubleSpares     = "log"
	troubleSpace      = "space"
	troubleCorruption = "corruption"
)

// troubleChecks has all of them.
var troubleChecks = []string{troubleFsync, troubleApply, troubleStore, troubleSpares, troubleSpace, troubleCorruption}

// trouble is the state of Health that no other part has.
type trouble struct {
	noSpares atomic.Bool
	reported atomic.Bool // the watchdog has logged a trouble that has not ended
}

// Health implements grpcgw.Member.
func (n *Node) Health() []grpcgw.Trouble {
	var found []grpcgw.Trouble
	add := func(check, reason string) { found = append(found, grpcgw.Trouble{Check: check, Reason: reason}) }
	// In a longer time, the other members would have elected a new leader if they had
	// noticed.
	late := 2 * n.cfg.Election
	if n.host.Replicated() {
		late = min(late, raftactor.StallMax) // a leader then transfers its leadership
	}
	if d := n.host.Fsync.Outstanding(); d > late {
		add(troubleFsync, "an fsync of the log has been under way for "+d.Round(time.Millisecond).String())
	}
	if _, since := n.host.Raft.Waiting(); since != 0 && actors.Now()-since > int64(late) {
		add(troubleApply, "no entry has been applied for "+time.Duration(actors.Now()-since).Round(time.Millisecond).String())
	}
	if d := n.host.Commit.Outstanding(); d > late {
		add(troubleStore, "a commit to the store has been under way for "+d.Round(time.Millisecond).String())
	}
	if n.trouble.noSpares.Load() {
		add(troubleSpares, "no space for the next segment of the log")
	}
	if n.space.held.Load() {
		add(troubleSpace, "the disk is full: changes stay in memory and in the log")
	}
	if first := n.integrity.first(); first != "" {
		add(troubleCorruption, first)
	}
	return found
}

// watchdogLoop logs when a trouble begins and ends: an operation on a disk that hangs does
// not return an error.
func (n *Node) watchdogLoop(uint64) (actors.Stage, error) {
	since := map[string]time.Time{}
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeWatchdog, Every: n.cfg.Heartbeat, Faults: n.cfg.Faults,
		Due: func() bool { return n.trouble.reported.Load() || len(n.Health()) > 0 },
		Do:  func(context.Context, actors.Tick) { n.watch(since, n.Health()) },
	}), nil
}

func (n *Node) watch(since map[string]time.Time, found []grpcgw.Trouble) {
	now := map[string]bool{}
	for _, t := range found {
		now[t.Check] = true
		if since[t.Check].IsZero() {
			since[t.Check] = time.Now()
			n.cfg.Logger.Error().Str("check", t.Check).Str("reason", t.Reason).Msg("health check failed")
		}
	}
	for check, began := range since {
		if !now[check] {
			delete(since, check)
			n.cfg.Logger.Info().Str("check", check).Dur("after", time.Since(began)).Msg("health check passes again")
		}
	}
	n.trouble.reported.Store(len(since) > 0)
}
