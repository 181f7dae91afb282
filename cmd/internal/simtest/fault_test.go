package simtest

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// stages are those in which a fault is injected, with the points at which they may fail.
var stages = []struct{ name, point string }{
	{actors.CoreRaft, "batch"}, {actors.CoreRaft, "entry"}, {actors.CoreWAL, "middle"}, {actors.CoreWAL, "batch"},
	{actors.CoreApply, "middle"}, {actors.CoreApply, "batch"}, {actors.CoreProposer, "batch"}, {actors.CoreMVCC, "batch"},
}

// removalMax is how long the removal of a member may be under way: then the next one may be
// removed, or lose its data, without the loss of a quorum.
const removalMax = 8 * time.Second

// inflict has a fault happen.
func (c *cluster) inflict(f fault) {
	if c.healed {
		return
	}
	m := c.members[f.target%len(c.members)]
	other := c.members[f.other%len(c.members)]
	if leader := c.leader(); f.leader && leader != nil {
		m = leader
	}
	c.w.logf("fault: %v on %s", f, m.name())
	switch f.kind {
	case faultKill, faultPower:
		c.crash(m, f.kind == faultKill)
		c.restart(m, f.last)
	case faultPause:
		if m.p != nil {
			c.w.pause(m.p, f.last)
		}
	case faultCut:
		c.cut(f.last, m.id, other.id)
	case faultIsolate:
		for _, o := range c.members {
			c.cut(f.last, m.id, o.id)
			c.cut(f.last, o.id, m.id)
		}
	case faultSplit:
		for i, a := range c.members {
			for j, b := range c.members {
				if (f.other>>i)&1 != (f.other>>j)&1 {
					c.cut(f.last, a.id, b.id)
				}
			}
		}
	case faultSlow:
		c.net.slow[m.id] = time.Duration(f.nth) * 10 * time.Millisecond
		c.w.after(c.w.outside, f.last, "fast", func() { delete(c.net.slow, m.id) })
	case faultStall:
		m.disk.stalled = c.w.now + int64(f.last)
	case faultSync:
		m.disk.failing = 1
	case faultFull:
		m.disk.full = true
		c.w.after(c.w.outside, f.last, "space", func() { m.disk.full = false })
	case faultPanic:
		if m.faults != nil {
			s := stages[f.other%len(stages)]
			m.faults.Arm(s.name, s.point, f.nth)
		}
	case faultClock:
		if m.p != nil {
			m.p.wall += int64(f.nth-15) * int64(time.Minute)
		}
	case faultBlackout:
		for _, o := range c.members {
			c.crash(o, false)
			c.restart(o, c.w.draw(0, f.last))
		}
	case faultWipe:
		c.wipe(m, f.last)
	default:
		c.reconfigure(f)
	}
}

// triggered cuts the power of the sender of a message soon, if the plan has it.
func (c *cluster) triggered(e *endpoint, m *raftpb.Message) {
	if c.healed || m.GetType() != c.plan.trigger || c.plan.chance == 0 || !c.w.chance(c.plan.chance) {
		return
	}
	c.w.after(c.w.outside, c.w.draw(0, 3*time.Millisecond), "triggered", func() {
		if e.m.p == e.of && !c.healed {
			c.w.logf("fault: power cut after %v of %s", m.GetType(), e.of.name)
			c.crash(e.m, false)
			c.restart(e.m, c.w.draw(0, 200*time.Millisecond))
		}
	})
}

// leader returns the member that leads in the newest term, as far as it knows itself; nil if
// there is none.
func (c *cluster) leader() (leader *member) {
	newest := uint64(0)
	for _, m := range c.members {
		if m.host == nil {
			continue
		}
		if s := m.host.Raft.Status(); s.IsLeader && s.Term > newest {
			leader, newest = m, s.Term
		}
	}
	return leader
}

// cut cuts a direction for a while.
func (c *cluster) cut(d time.Duration, from, to uint64) {
	if from == to || c.net.isCut(from, to) {
		return
	}
	c.net.setCut(from, to, true)
	since := c.net.cut[[2]uint64{from, to}]
	c.w.after(c.w.outside, d, "heal", func() {
		if c.net.cut[[2]uint64{from, to}] == since {
			c.net.setCut(from, to, false)
		}
	})
}

// wipe empties the directory of a member, if the others can do without and know its data.
func (c *cluster) wipe(m *member, d time.Duration) {
	if c.removing > c.w.now {
		return
	}
	voters, gone := 0, 0
	for _, o := range c.members {
		v := o.view()
		if o.gone != "" || o.wiped {
			gone++
			continue
		}
		if v == nil {
			return
		}
		voters = max(voters, len(v.ConfState.GetVoters()))
		i := slices.IndexFunc(v.Cluster.GetMembers(), func(k *applymsg.Member) bool { return k.Id == m.id })
		if i < 0 || v.Cluster.Members[i].DataId == 0 {
			return
		}
	}
	if m.gone != "" || m.wiped || 2*(gone+1) >= voters {
		return
	}
	c.w.beacon("directory wiped")
	c.crash(m, false)
	c.erase(m)
	m.wiped = true
	c.restart(m, d)
}

// reconfigure changes the members through one that is up.
func (c *cluster) reconfigure(f fault) {
	via := c.anyUp()
	if via == nil || via.view() == nil || via.view().Cluster == nil {
		return
	}
	members := via.view().Cluster.Members
	if len(members) == 0 {
		return
	}
	target := members[f.target%len(members)]
	change := &applymsg.MemberChange{Member: &applymsg.Member{Id: target.Id}, MaxLearners: 2}
	var added *member
	switch f.kind {
	case faultAdd:
		if len(c.members) >= 8 {
			return
		}
		added = c.add(true)
		change.Kind = applymsg.MemberChangeKind_MEMBER_ADD_LEARNER
		change.Member = &applymsg.Member{Id: added.id, PeerUrls: []string{added.peerURL()}, IsLearner: true}
		added.gone = "not added"
	case faultPromote:
		i := slices.IndexFunc(members, func(k *applymsg.Member) bool { return k.IsLearner })
		if i < 0 || !c.caughtUp(members[i].Id) {
			return
		}
		change.Member.Id = members[i].Id
		change.Kind = applymsg.MemberChangeKind_MEMBER_PROMOTE
	case faultUpdate:
		change.Kind = applymsg.MemberChangeKind_MEMBER_UPDATE
		change.Member.PeerUrls = []string{target.PeerUrls[0] + "x"}
	case faultRemove:
		if !c.expendable(target.Id) {
			return
		}
		change.Kind = applymsg.MemberChangeKind_MEMBER_REMOVE
		c.removing = c.w.now + int64(removalMax)
	}
	c.w.spawn(via.p, "reconfigure", func() {
		answer, err := via.host.Requests.ProposeMemberChange(context.Background(), change)
		if err != nil || answer.Result.Code != raftmsg.Code_OK {
			return
		}
		c.w.beacon("members changed: " + faultNames[f.kind])
		if added != nil && added.gone == "not added" {
			added.gone = ""
			c.restart(added, f.last)
		}
	})
	if added != nil { // the answer may be lost with the member: the addition is visible later
		c.w.after(c.w.outside, time.Second, "added", func() { c.lookForAdded(added) })
	}
}

// lookForAdded starts a member when the cluster has it.
func (c *cluster) lookForAdded(m *member) {
	if m.gone != "not added" {
		return
	}
	for _, o := range c.members {
		if v := o.view(); v != nil && slices.ContainsFunc(v.Cluster.GetMembers(), func(k *applymsg.Member) bool { return k.Id == m.id }) {
			m.gone = ""
			c.restart(m, 0)
			return
		}
	}
	c.w.after(c.w.outside, time.Second, "added", func() { c.lookForAdded(m) })
}

// caughtUp reports whether a learner has applied nearly everything.
func (c *cluster) caughtUp(id uint64) bool {
	m := c.net.members[id]
	return m != nil && m.view() != nil && m.view().AppliedIndex+20 > c.check.last
}

// expendable reports whether the voters without one are enough, of those that may start.
func (c *cluster) expendable(id uint64) bool {
	if c.removing > c.w.now {
		return false
	}
	voters, lost := 0, 0
	for _, o := range c.members {
		v := o.view()
		if v == nil || v.AppliedIndex != c.check.last {
			continue
		}
		voters, lost = len(v.ConfState.GetVoters()), 0
		for _, voter := range v.ConfState.GetVoters() {
			if m := c.net.members[voter]; voter != id && (m.gone != "" || m.wiped) {
				lost++
			}
		}
	}
	return voters > 1 && 2*lost < voters-1
}

// lost ends a call whose process has died.
func (o *op) lost() {
	if !o.over && o.cl != nil {
		o.cl.end(o)
	}
}

// lostWatchers has the watchers of a process resume elsewhere.
func (c *cluster) lostWatchers(p *process) {
	for _, wt := range c.watchers {
		if wt.p == p {
			wt.later()
		}
	}
}
