package node

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
)

// Names of what may be wrong with a member: checks of /readyz, and labels of the
// metric troupe_member_trouble.
const (
	troubleFsync      = "fsync"
	troubleStore      = "store"
	troubleSpares     = "log"
	troubleSpace      = "space"
	troubleCorruption = "corruption"
)

// troubleChecks are all of them.
var troubleChecks = []string{troubleFsync, troubleStore, troubleSpares, troubleSpace, troubleCorruption}

// trouble is what is wrong with the member, beside what others know.
type trouble struct {
	noSpares atomic.Bool
	reported atomic.Bool // the watchdog waits for the end of some trouble
}

// Health implements grpcgw.Member.
func (n *Node) Health() []grpcgw.Trouble {
	var found []grpcgw.Trouble
	add := func(check, reason string) { found = append(found, grpcgw.Trouble{Check: check, Reason: reason}) }
	// Longer than that, a leader would have been replaced if others could tell.
	late := 2 * n.cfg.Election
	if d := n.disk.Outstanding(); d > late {
		add(troubleFsync, "an fsync of the log has been under way for "+d.Round(time.Millisecond).String())
	}
	if d := n.commit.Outstanding(); d > late {
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

// watchdogLoop writes down what goes wrong, and when it is over: a disk that
// hangs tells nobody by itself.
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
			n.cfg.Logger.Error().Str("check", t.Check).Str("reason", t.Reason).Msg("the member is in trouble")
		}
	}
	for check, began := range since {
		if !now[check] {
			delete(since, check)
			n.cfg.Logger.Info().Str("check", check).Dur("after", time.Since(began)).Msg("the trouble is over")
		}
	}
	n.trouble.reported.Store(len(since) > 0)
}
