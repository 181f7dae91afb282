package node

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// damageKept bounds the findings that are remembered. Further ones are not logged.
const damageKept = 1000 // texts

// integrity has the findings of damage to the store.
type integrity struct {
	mu     sync.Mutex
	seen   map[string]struct{} // texts of the findings; at most damageKept
	oldest string              // the first of them; empty if there is none
	due    bool                // the alarm must be raised; cleared when it is active

	damaged atomic.Bool // there is a finding
}

func (i *integrity) first() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.oldest
}

// note adds a finding. It reports whether it is a new one.
func (i *integrity) note(text string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.due = true
	i.damaged.Store(true)
	if _, known := i.seen[text]; known || len(i.seen) == damageKept {
		return false
	}
	if i.seen == nil {
		i.seen = make(map[string]struct{})
	}
	i.seen[text] = struct{}{}
	if i.oldest == "" {
		i.oldest = text
	}
	return true
}

// reset forgets all findings, because the store was replaced.
func (i *integrity) reset() {
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.seen)
	i.oldest, i.due = "", false
	i.damaged.Store(false)
}

func (i *integrity) alarmDue() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.due
}

func (i *integrity) raised() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.due = false
}

// corrupt is called when a reader, the compactor or the scrubber finds damage. It logs the
// finding, and has the alarm raised and, if other members have the data, the store replaced.
// The caller returns an error to those who need the data.
func (n *Node) corrupt(err error) {
	var pack *mvcc.CorruptError
	if errors.As(err, &pack) {
		pack.Replicated = n.host.Replicated()
	}
	if !n.integrity.note(err.Error()) {
		return
	}
	event := n.cfg.Logger.Error().Err(err)
	var file *backend.CorruptError
	if errors.As(err, &file) {
		event = event.Str("file", file.File).Stringer("pack", file.Pack)
	} else if pack != nil {
		event = event.Stringer("pack", pack.Pack)
	}
	event.Msg("the store is corrupt")
}

// scrubLoop raises the alarm for damage that was found, and runs the scrubber.
func (n *Node) scrubLoop(uint64) (actors.Stage, error) {
	s := mvccactor.NewScrubber(mvccactor.ScrubberConfig{
		Published: n.host.Published, Core: n.currentCore, Period: n.cfg.ScrubPeriod, Corrupt: n.corrupt,
		Metrics: n.metrics.core.MVCC, Logger: n.cfg.Logger,
	})
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeScrub, Every: s.Every(), Faults: n.cfg.Faults,
		Due: func() bool { return n.integrity.alarmDue() || n.cfg.ScrubPeriod > 0 && s.Due() },
		Do: func(ctx context.Context, _ actors.Tick) {
			n.raiseCorrupt(ctx)
			if n.cfg.ScrubPeriod > 0 && s.Due() {
				s.Scrub(ctx, time.Now())
			}
		},
	}), nil
}

// corruptTimeout bounds one attempt to raise the alarm. The next tick tries again.
const corruptTimeout = time.Second

func (n *Node) raiseCorrupt(ctx context.Context) {
	if !n.integrity.alarmDue() {
		return
	}
	if apply.FindAlarm(n.host.Published.View().Cluster.GetAlarms(), n.cfg.MemberID, pb.AlarmType_CORRUPT) >= 0 {
		n.integrity.raised()
		return
	}
	if n.host.Replicated() {
		n.proposeAlarm(ctx, damageAlarm(n.cfg.MemberID, true))
		return
	}
	n.proposeAlarm(ctx, &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{
		MemberID: n.cfg.MemberID, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT}}})
}

func (n *Node) proposeAlarm(ctx context.Context, req *applymsg.Request) {
	ctx, cancel := context.WithTimeout(ctx, corruptTimeout)
	defer cancel()
	if _, err := n.host.Requests.Propose(ctx, req); err != nil && ctx.Err() == nil {
		n.cfg.Logger.Warn().Err(err).Msg("failed to propose the alarm CORRUPT")
	}
}

func damageAlarm(member uint64, raised bool) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_DamageAlarm{
		DamageAlarm: &applymsg.DamageAlarm{MemberId: member, Raised: raised}}}
}
