package simtest

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/mvccactor/backend"
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
	if f.follower && m == c.leader() {
		m = c.members[(f.target+1)%len(c.members)]
	}
	c.w.logf("fault: %v on %s", f, m.name())
	switch f.kind {
	case faultKill, faultPower:
		c.crash(m, f.kind == faultKill)
		c.restart(m, f.last)
	case faultPause:
		if m.p != nil {
			p, led := m.p, m.host != nil && m.host.Raft.Status().IsLeader
			c.w.pause(p, f.last)
			c.w.after(c.w.outside, f.last, "resumed", func() {
				if l := c.leader(); led && !p.dead && m.p == p && l != nil && l != m {
					c.w.beacon("a leader resumes after another one was elected")
				}
			})
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
	case faultDamage:
		c.damageStore(m, f)
	case faultFlip:
		c.damageLog(m, f)
	default:
		c.reconfigure(f)
	}
}

// sent has the checks see a message, and cuts the power of its sender if the plan says so.
func (c *cluster) sent(e *endpoint, m *raftpb.Message) {
	c.check.sent(e.m, m)
	c.triggered(e, m)
}

// memberRemoved is called when a member has learned that another one was removed. The first is
// usually the leader. If the plan says so, the removed member hears nothing of it, and the leader
// ends: now it campaigns, with a log that has its removal, at members that have applied it.
func (c *cluster) memberRemoved(e *endpoint, id uint64) {
	if c.removed[id] {
		return
	}
	c.removed[id] = true
	leader, gone := c.leader(), c.net.members[id]
	switch {
	case gone == nil || !gone.up():
		c.w.beacon("a member is removed while it is down")
	case leader == gone:
		c.w.beacon("a leader removes itself")
	}
	if c.healed || leader == nil || gone == leader || e.m != leader || !c.w.chance(c.plan.orphan) {
		return
	}
	if l := leader.net.links[id]; l != nil {
		l.loseCommits(c.check.last)
	}
	c.w.after(c.w.outside, c.w.draw(c.plan.max, c.plan.max+20*time.Millisecond), "orphan", func() {
		if e.m.p == e.of && !c.healed {
			c.w.logf("fault: kill %s, which has removed m%x", e.of.name, id)
			c.crash(e.m, true)
			c.restart(e.m, c.w.draw(time.Second, 3*time.Second))
		}
	})
}

// noteCrash notes what a crash interrupts.
func (c *cluster) noteCrash(m *member) {
	if m.p == nil || m.p.dead || c.stopped {
		return
	}
	if m.host == nil || !m.running {
		c.w.beacon("a crash during a boot")
		return
	}
	if m.host.Installing() {
		c.w.beacon("a crash during the installation of a snapshot")
	}
	for _, t := range m.host.Transfers() {
		if t.Receiving {
			c.w.beacon("the receiver of a snapshot crashes")
		} else {
			c.w.beacon("the sender of a snapshot crashes")
		}
	}
	s := m.host.Raft.Status()
	if s.IsLeader {
		c.w.beacon("the leader crashes")
		if m.host.Raft.Transferring() {
			c.w.beacon("the leader crashes while it hands over")
		}
	}
	if h := m.host.Current(); h != nil {
		m.logged, m.loggedTerm = h.Log.LastIndex(), s.Term
	} else {
		c.w.beacon("a crash while the core reboots")
	}
	if !slices.ContainsFunc(c.members, func(o *member) bool { return o != m && o.up() }) {
		c.w.beacon("all members are down")
	}
}

// watchTransfers notes since when members have been handing over the leadership. It runs after
// each step.
func (c *cluster) watchTransfers() {
	for _, m := range c.members {
		switch on := m.host != nil && m.host.Raft.Transferring(); {
		case !on:
			m.handing = 0
		case m.handing == 0:
			m.handing = c.w.now
		}
	}
}

// handingOver returns the only member that leads, if it has been handing over since a time: nil
// if there is none, or if another one may be elected.
func (c *cluster) handingOver(since int64) (leader *member) {
	for _, m := range c.members {
		if m.host == nil || !m.host.Raft.Status().IsLeader {
			continue
		}
		if leader != nil {
			return nil
		}
		leader = m
	}
	if leader == nil || leader.handing == 0 || leader.handing > since || leader.host.Raft.Status().Term != c.check.newest {
		return nil
	}
	return leader
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

// dispensable reports whether the others can do without a member for ever, and know its data.
func (c *cluster) dispensable(m *member) bool {
	if c.removing > c.w.now {
		return false
	}
	voters, gone := 0, 0
	for _, o := range c.members {
		v := o.view()
		if o.gone != "" || o.wiped {
			gone++
			continue
		}
		if v == nil || o.damaged {
			return false
		}
		voters = max(voters, len(v.ConfState.GetVoters()))
		i := slices.IndexFunc(v.Cluster.GetMembers(), func(k *applymsg.Member) bool { return k.Id == m.id })
		if i < 0 || v.Cluster.Members[i].DataId == 0 {
			return false
		}
	}
	return m.gone == "" && !m.wiped && 2*(gone+1) < voters
}

// damageStore flips a bit of a pack in the store of a member, unless another one's is damaged.
// Half of the time it has to notice that by itself, and otherwise at a start.
func (c *cluster) damageStore(m *member, f fault) {
	if slices.ContainsFunc(c.members, func(o *member) bool { return o.damaged }) || c.removing > c.w.now ||
		!m.up() || m.host.Current() == nil || !m.host.Replicated() {
		return
	}
	memory := m.host.Current().Store.(*store).memory
	snap, err := memory.Snapshot(backend.PackID{}, 0)
	if err != nil || len(snap.Packs) == 0 {
		return
	}
	memory.Corrupt(snap.Packs[f.other%len(snap.Packs)].ID)
	m.damaged = true
	c.w.beacon("store damaged")
	if f.nth%2 == 0 {
		c.crash(m, true)
		c.restart(m, f.last)
	}
}

// damageLog flips a bit in the log of a member that ends. It refuses to start if the damage
// matters. The others can do without it.
func (c *cluster) damageLog(m *member, f fault) {
	if !c.dispensable(m) || !m.up() {
		return
	}
	c.crash(m, true)
	dir := (core.DataDir{Path: "/data", FS: m.disk.fs}).LogDir()
	names, err := m.disk.fs.List(dir)
	if err != nil || len(names) == 0 {
		return
	}
	path := filepath.Join(dir, names[f.other%len(names)])
	data, err := m.disk.fs.ReadFile(path)
	for len(data) > 0 && data[len(data)-1] == 0 {
		data = data[:len(data)-1] // the room that was not written
	}
	if err == nil && len(data) > 0 {
		err = m.disk.fs.FlipBit(path, c.w.rng.Int64N(int64(len(data))), uint(f.nth%8))
		m.flipped = true
		c.w.beacon("log damaged")
	}
	if err != nil {
		c.w.fail("%s: damage %s: %v", m.name(), path, err)
	}
	c.restart(m, f.last)
}

// wipe empties the directory of a member.
func (c *cluster) wipe(m *member, d time.Duration) {
	if !c.dispensable(m) {
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
		if i < 0 {
			return
		}
		if !c.caughtUp(members[i].Id) {
			if f.nth%3 > 0 || len(members) < 4 {
				return
			}
			c.w.beacon("a learner is promoted while it is behind")
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

// expendable reports whether the voters without one are enough, of those that may start. The leader
// of two voters is not: it may leave before the other one knows that its removal is committed.
func (c *cluster) expendable(id uint64) bool {
	if c.removing > c.w.now || slices.ContainsFunc(c.members, func(o *member) bool { return o.damaged }) {
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
	return 2*lost < voters-1 && (voters > 2 || c.check.leaders[c.check.newest] != id)
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
