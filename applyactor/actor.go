package applyactor

import (
	"context"
	"slices"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// ExecuteBytesMax is the largest cost of one Execute, in bytes, and so the lowest limit
// that may be set for mvccactor's mailbox.
const ExecuteBytesMax = 32 << 20

// Config configures the apply actor.
type Config struct {
	State    *apply.State
	Limit    actors.Limit
	MVCC     *actors.Mailbox // of mvccactor
	MVCCLane int
	// MembersChanged is called for each entry that changes members or alarms, in order; nil
	// is not. It must not block.
	MembersChanged func(*mvccmsg.Cluster)
	// Tokens is called, before they are visible, for each entry that changes tokens and for the
	// last one of each batch, in order; nil is not. It must not block.
	Tokens func(index uint64, changes []apply.Token)
	// Committed, if set, is called for each entry before it is applied; simulations compare
	// the entries of members. It must not change the entry.
	Committed func(*raftpb.Entry)
	Timeline  *actors.Timeline
	Metrics   *Metrics
	Logger    zerolog.Logger
	Faults    *actors.Faults
}

// Actor is the apply actor.
type Actor struct {
	cfg     Config
	cluster *mvccmsg.Cluster // as of the last entry; never changed in place
	ctx     context.Context  // cancelled when the stage is stopped
	cancel  context.CancelFunc
}

// New returns the stage.
func New(cfg Config) actors.Stage {
	a := &Actor{cfg: cfg, cluster: cfg.State.Cluster()}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return actors.Stage{
		Name:  actors.CoreApply,
		Actor: a,
		Mailbox: actors.NewMailbox(actors.MailboxConfig{
			Name: actors.CoreApply, Class: actors.Credit, Limit: cfg.Limit, Faults: cfg.Faults,
		}),
		Cancel: a.cancel,
	}
}

// Receive implements actor.Actor.
func (a *Actor) Receive(ctx actor.Context) {
	if b, ok := ctx.Message().(*actors.Batch); ok {
		a.batch(b)
	}
}

func (a *Actor) batch(b *actors.Batch) {
	out := new(mvccmsg.Execute)
	bytes := 0
	for ; b.Done < len(b.Msgs); b.Done++ {
		m := b.Msgs[b.Done].(*applymsg.Apply)
		if n := len(m.Entries); actors.Planted("apply out of order") && n > 1 {
			m.Entries[n-1].Data, m.Entries[n-2].Data = m.Entries[n-2].Data, m.Entries[n-1].Data
		}
		for _, e := range m.Entries {
			out.Entries = append(out.Entries, a.apply(e))
			bytes += len(e.Data)
			a.cfg.Faults.Point(actors.CoreApply, "middle")
			a.cfg.Timeline.Note(actors.TimelineApply, e.GetIndex(), b.Enqueued[b.Done], b.Started, actors.Now())
		}
	}
	a.cfg.Faults.Point(actors.CoreApply, "batch")
	if len(out.Entries) == 0 {
		return
	}
	if a.cfg.Tokens != nil {
		a.cfg.Tokens(out.Entries[len(out.Entries)-1].Index, nil)
	}
	// Wait while mvccactor's mailbox is full.
	a.cfg.MVCC.MustPostWait(a.ctx, a.cfg.MVCCLane, out, actors.Cost{Requests: 1, Bytes: min(bytes, ExecuteBytesMax)})
}

func (a *Actor) apply(e *raftpb.Entry) *mvccmsg.EntryOps {
	defer actors.GuardEntry(e.GetIndex())
	a.cfg.Faults.Entry(actors.CoreApply, e.GetIndex())
	if a.cfg.Committed != nil {
		a.cfg.Committed(e)
	}
	ops, err := a.cfg.State.Apply(e)
	if err != nil {
		panic(err)
	}
	if ops.Cluster != nil {
		a.logAlarms(ops.Cluster.Alarms)
		a.logMembers(ops.Cluster.Members)
		a.cluster = ops.Cluster
		if a.cfg.MembersChanged != nil {
			a.cfg.MembersChanged(ops.Cluster)
		}
	}
	if tokens := a.cfg.State.TakeTokens(); tokens != nil && a.cfg.Tokens != nil {
		a.cfg.Tokens(e.GetIndex(), tokens)
	}
	a.cfg.Metrics.committed.Add(float64(len(ops.Ops)))
	return ops
}

// logAlarms logs each alarm that an entry raised or disarmed.
func (a *Actor) logAlarms(now []*applymsg.Alarm) {
	write := func(text string, of, without []*applymsg.Alarm) {
		for _, alarm := range of {
			if apply.FindAlarm(without, alarm.MemberId, alarm.Type) < 0 {
				a.cfg.Logger.Info().Stringer("alarm", alarm.Type).Str("member-id", hexID(alarm.MemberId)).Msg(text)
			}
		}
	}
	write("alarm raised", now, a.cluster.Alarms)
	write("alarm disarmed", a.cluster.Alarms, now)
}

// logMembers logs each member that an entry added, removed, promoted or gave other peer URLs,
// with etcd's texts.
func (a *Actor) logMembers(now []*applymsg.Member) {
	before := a.cluster.Members
	write := func(m *applymsg.Member, text string) {
		a.cfg.Logger.Info().Str("member-id", hexID(m.Id)).Strs("peer-urls", m.PeerUrls).Bool("is-learner", m.IsLearner).Msg(text)
	}
	for _, m := range now {
		switch old := findMember(before, m.Id); {
		case old == nil:
			write(m, "added member")
		case old.IsLearner && !m.IsLearner:
			write(m, "promote member")
		case !slices.Equal(old.PeerUrls, m.PeerUrls):
			write(m, "updated member")
		}
	}
	for _, m := range before {
		if findMember(now, m.Id) == nil {
			write(m, "removed member")
		}
	}
}

func findMember(members []*applymsg.Member, id uint64) *applymsg.Member {
	if i := slices.IndexFunc(members, func(m *applymsg.Member) bool { return m.Id == id }); i >= 0 {
		return members[i]
	}
	return nil
}
