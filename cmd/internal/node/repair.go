package node

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
)

// What a member of several does about damage to its store, in the order of time:
//
//	alarm    names the member; it refuses nothing, because the others have the data
//	step     down: another member should lead
//	replace  the store by that of another member; meanwhile linearizable reads are refused, so
//	         that clients turn to the others, and writes go on
//	clear    the alarm, when the new store has been opened

const (
	// repairEvery is the interval of attempts.
	repairEvery = 200 * time.Millisecond
	// repairPause is the least time between two replacements of the store: a disk that
	// damages it again must not make the others send it all the time.
	repairPause = time.Minute
)

// repairDue reports whether the store is damaged and other members have the data.
func (n *Node) repairDue() bool { return n.integrity.damaged.Load() && n.host.Replicated() }

// damageNamed reports whether the alarm for damage to this member's store is active.
func (n *Node) damageNamed() bool {
	v := n.host.Published.View()
	if v == nil {
		return false
	}
	alarms := v.Cluster.GetAlarms()
	i := apply.FindAlarm(alarms, n.cfg.MemberID, pb.AlarmType_CORRUPT)
	return i >= 0 && alarms[i].Damage
}

// repairLoop replaces a damaged store, and clears the alarm afterwards.
func (n *Node) repairLoop(uint64) (actors.Stage, error) {
	var repaired time.Time // when the store was replaced; only Do uses it
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeRepair, Every: repairEvery, Faults: n.cfg.Faults,
		Due: func() bool { return n.repairDue() || n.damageNamed() },
		Do: func(ctx context.Context, _ actors.Tick) {
			switch {
			case !n.repairDue() && !n.integrity.damaged.Load():
				n.proposeAlarm(ctx, damageAlarm(n.cfg.MemberID, false))
			case n.repairDue() && (repaired.IsZero() || time.Since(repaired) >= repairPause) && n.repair(ctx):
				repaired = time.Now()
			}
		},
	}), nil
}

// repair replaces the store. It returns false if that failed.
func (n *Node) repair(ctx context.Context) bool {
	n.raiseCorrupt(ctx)
	n.host.HandOver(ctx)
	began := time.Now()
	if err := n.host.Repair(ctx); err != nil {
		if ctx.Err() == nil {
			n.cfg.Logger.Warn().Err(err).Msg("failed to replace the damaged store by that of another member")
		}
		return false
	}
	n.cfg.Logger.Info().Dur("took", time.Since(began)).Msg("replaced the damaged store by that of another member")
	return true
}
