package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// logBuffer keeps the log of a member.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (m *clusterMember) logged(text string) bool {
	m.logs.mu.Lock()
	defer m.logs.mu.Unlock()
	return bytes.Contains(m.logs.text.Bytes(), []byte(text))
}

func (m *clusterMember) awaitLog(text string) {
	m.c.t.Helper()
	m.c.eventually(fmt.Sprintf("m%d logs %q", m.i, text), func() bool { return m.logged(text) })
}

func within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	time.AfterFunc(d, cancel)
	return ctx
}

// addMember adds a member through another one and starts it.
func (c *testCluster) addMember(through *clusterMember, learner bool) *clusterMember {
	c.t.Helper()
	m := c.newMember(len(c.members))
	l := listen(c.t, "127.0.0.1:0")
	m.peerURL = "http://" + l.Addr().String()
	m.join = true
	m.cluster = through.cluster
	add := through.client.MemberAdd
	if learner {
		add = through.client.MemberAddAsLearner
	}
	resp, err := add(within(time.Minute), []string{m.peerURL})
	if err != nil {
		c.t.Fatalf("add m%d: %v", m.i, err)
	}
	if resp.Member.IsLearner != learner {
		c.t.Errorf("added m%d: learner: got %v, want %v", m.i, resp.Member.IsLearner, learner)
	}
	m.id = resp.Member.ID
	for _, o := range resp.Members {
		m.initial = append(m.initial, &applymsg.Member{Id: o.ID, Name: o.Name, PeerUrls: o.PeerURLs, IsLearner: o.IsLearner})
	}
	m.start(l)
	m.awaitReady()
	return m
}

// promote makes a learner a voter when it is ready.
func (c *testCluster) promote(through, learner *clusterMember) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("m%d is promoted", learner.i), func() bool {
		_, err := through.client.MemberPromote(within(time.Minute), learner.id)
		if err != nil && !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
			c.t.Fatalf("promote m%d: %v", learner.i, err)
		}
		return err == nil
	})
	c.eventually(fmt.Sprintf("m%d is a voter", learner.i), func() bool { return !learner.host.Raft.Status().IsLearner })
}

// removeMember removes a member through another one (perhaps itself), and waits until it has
// stopped by itself.
func (c *testCluster) removeMember(through, m *clusterMember) {
	c.t.Helper()
	done := m.Done()
	if _, err := through.client.MemberRemove(within(time.Minute), m.id); err != nil {
		c.t.Fatalf("remove m%d through m%d: %v", m.i, through.i, err)
	}
	m.wantRemoved(done)
}

// stopsWithin bounds the time in which a removed member stops. 2 s suffice, unless the machine
// is overloaded.
const stopsWithin = 10 * time.Second

// wantRemoved waits until the member stops because it was removed.
func (m *clusterMember) wantRemoved(done <-chan error) {
	m.c.t.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, ErrRemoved) {
			m.c.t.Errorf("m%d: got %v, want %v", m.i, err, ErrRemoved)
		}
	case <-time.After(stopsWithin):
		m.c.t.Fatalf("m%d: was removed and still runs after %v", m.i, stopsWithin)
	}
	if !m.logged("the member was removed from the cluster and stops") {
		m.c.t.Errorf("m%d does not log that it was removed", m.i)
	}
	m.stop()
}

// live returns the members that run.
func (c *testCluster) live() (live []*clusterMember) {
	for _, m := range c.members {
		if m.Node != nil {
			live = append(live, m)
		}
	}
	return live
}

// list formats the members as a member knows them.
func (m *clusterMember) list() string {
	var list []string
	for _, other := range m.host.Published.View().Cluster.GetMembers() {
		list = append(list, fmt.Sprintf("%x %s %v learner=%v", other.Id, other.Name, other.PeerUrls, other.IsLearner))
	}
	return strings.Join(list, "; ")
}

// wantMembers waits until all running members know exactly these members, the learners among
// them as such.
func (c *testCluster) wantMembers(learner *clusterMember, want ...*clusterMember) {
	c.t.Helper()
	var lines []string
	slices.SortFunc(want, func(a, b *clusterMember) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	for _, m := range want {
		lines = append(lines, fmt.Sprintf("%x m%d [%s] learner=%v", m.id, m.i, m.peerURL, m == learner))
	}
	text := strings.Join(lines, "; ")
	for _, m := range c.live() {
		last := ""
		for deadline := time.Now().Add(time.Minute); last != text; time.Sleep(5 * time.Millisecond) {
			if last = m.list(); last != text && time.Now().After(deadline) {
				c.t.Fatalf("m%d: got members %s, want %s", m.i, last, text)
			}
		}
	}
}

// metric returns the sum of the samples of a metric.
func (m *clusterMember) metric(name string) (sum float64) {
	m.c.t.Helper()
	for line := range strings.SplitSeq(m.httpGet("http://"+m.addr+"/metrics"), "\n") {
		if !strings.HasPrefix(line, name) {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			m.c.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

func (m *clusterMember) httpGet(url string) string {
	m.c.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		m.c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		m.c.t.Fatalf("GET %s: %s %s %v", url, resp.Status, body, err)
	}
	return string(body)
}

// writers write through the members until the test ends it. A put that fails is tried again
// under another key.
type writers struct {
	c      *testCluster
	cancel context.CancelFunc
	wait   sync.WaitGroup
	puts   atomic.Int64
	mu     sync.Mutex
	acked  []string
	alive  []*clientv3.Client
}

// startLoad starts writers, each through one of the members at a time.
func (c *testCluster) startLoad(n, bytes int) *writers {
	ctx, cancel := context.WithCancel(context.Background())
	l := &writers{c: c, cancel: cancel}
	l.use(c.live()...)
	value := strings.Repeat("v", bytes)
	for w := range n {
		l.wait.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.mu.Lock()
				client := l.alive[(w+i)%len(l.alive)]
				l.mu.Unlock()
				key := fmt.Sprintf("load/%d/%d", w, i)
				if _, err := client.Put(within(5*time.Second), key, value); err == nil {
					l.puts.Add(1)
					l.mu.Lock()
					l.acked = append(l.acked, key)
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

// use sets the members to write through.
func (l *writers) use(members ...*clusterMember) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive = nil
	for _, m := range members {
		l.alive = append(l.alive, m.client)
	}
}

// more waits until n more puts were acknowledged.
func (l *writers) more(n int64) {
	l.c.t.Helper()
	want := l.puts.Load() + n
	l.c.eventually(fmt.Sprint(n, " more puts are acknowledged"), func() bool { return l.puts.Load() >= want })
}

// end stops the writers, and checks that no acknowledged put is lost or was applied twice.
func (l *writers) end(through *clusterMember) {
	l.c.t.Helper()
	l.cancel()
	l.wait.Wait()
	resp, err := through.client.Get(within(time.Minute), "load/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		l.c.t.Fatal(err)
	}
	versions := map[string]int64{}
	for _, kv := range resp.Kvs {
		versions[string(kv.Key)] = kv.Version
	}
	for _, key := range l.acked {
		if versions[key] != 1 {
			l.c.t.Errorf("%s was acknowledged: got version %d, want 1", key, versions[key])
		}
	}
}

// TestReconfigAddAndRemove: a voter and a learner are added, a learner is promoted through a
// follower, and a follower and the leader are removed. Removed members stop by themselves,
// and again when they are started again.
func TestReconfigAddAndRemove(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.members[0].mustPut("k", "1")
	m3 := c.addMember(c.members[0], false)
	c.wantMembers(nil, c.members[0], c.members[1], c.members[2], m3)
	m3.mustPut("k", "2")
	c.members[1].wantGet("k", "2")
	m3.stop()
	m3.start(nil)
	m3.awaitReady()
	m3.wantGet("k", "2")

	_, follower := c.leader()
	m4 := c.addMember(follower, true)
	c.wantMembers(m4, slices.Clone(c.members)...)
	if _, err := m4.client.Put(within(5*time.Second), "k", "3"); !strings.Contains(fmt.Sprint(err), "not supported for learner") {
		t.Errorf("put on a learner: got %v, want that it is not supported", err)
	}
	if text := follower.httpGet(follower.peerURL + "/members"); !strings.Contains(text, `"isLearner":true`) {
		t.Errorf("/members of a follower: got %s, want a learner", text)
	}
	c.eventually("/version has the version of the cluster", func() bool {
		return strings.Contains(follower.httpGet(follower.peerURL+"/version"), `"etcdcluster":"3.`)
	})
	c.promote(follower, m4) // over the HTTP of the leader's peer port
	c.wantMembers(nil, slices.Clone(c.members)...)
	m4.mustPut("k", "3")
	c.wantEqual()

	var leader *clusterMember
	leader, follower = c.leader()
	c.removeMember(leader, follower)
	c.wantMembers(nil, c.live()...)
	leader, _ = c.leader()
	c.removeMember(leader, leader)
	c.wantMembers(nil, c.live()...)
	next, _ := c.leader()
	next.mustPut("k", "4")
	c.wantEqual()

	follower.logs = logBuffer{}
	follower.start(nil)
	follower.wantRemoved(follower.Done())
	next.mustPut("k", "5")
}

// TestWipedMember: a member that lost its data directory and starts again under its old id is
// refused by the others and stops. Both sides say why, and nothing is damaged.
func TestWipedMember(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.members[0].mustPut("k", "1")
	c.wantEqual()
	m := c.members[2]
	m.stop()
	m.dir = t.TempDir()
	m.start(nil)
	select {
	case err := <-m.Done():
		if !errors.Is(err, errReplaced) {
			t.Errorf("got %v, want %v", err, errReplaced)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a member without its data goes on")
	}
	m.awaitLog("the data directory was replaced and the member stops")
	for _, other := range c.members[:2] {
		other.awaitLog(fmt.Sprintf("the data directory of member %x was replaced", m.id))
	}
	if v := m.host.Published.View(); v != nil && v.Revision > 1 {
		t.Errorf("the member got revision %d, want nothing", v.Revision)
	}
	m.stop()
	c.members[0].mustPut("k", "2")
	if _, err := c.members[0].client.MemberRemove(within(time.Minute), m.id); err != nil {
		t.Fatal(err)
	}
	c.promote(c.members[0], c.addMember(c.members[0], true)) // as the message says
	c.wantEqual()
}

// TestMemberOfAnotherCluster: a member that listens where one of another cluster is expected is
// refused, and refuses; both go on.
func TestMemberOfAnotherCluster(t *testing.T) {
	t.Parallel()
	a, b := startCluster(t, 3, nil), startCluster(t, 3, nil)
	lost, stranger := a.members[2], b.members[2]
	lost.stop()
	stranger.stop()
	stranger.peerURL = lost.peerURL
	stranger.start(nil)
	text := fmt.Sprintf("is of cluster %x, and member %x of cluster %x", a.members[0].cluster, stranger.id, b.members[0].cluster)
	stranger.awaitLog(text)
	a.members[0].awaitLog(text)
	a.members[0].mustPut("k", "a")
	b.members[0].mustPut("k", "b")
	stranger.stop()
	lost.start(nil)
	lost.awaitReady()
	lost.wantGet("k", "a")
	a.wantEqual()
}

// TestReconfigUpdate: a learner moves to another URL. It stays a learner, and the others
// connect to the new URL.
func TestReconfigUpdate(t *testing.T) {
	c := startCluster(t, 3, nil)
	m := c.addMember(c.members[0], true)
	m.stop()
	l := listen(t, "127.0.0.1:0")
	m.peerURL = "http://" + l.Addr().String()
	if _, err := c.members[1].client.MemberUpdate(within(time.Minute), m.id, []string{m.peerURL}); err != nil {
		t.Fatal(err)
	}
	c.wantMembers(m, slices.Clone(c.members)...)
	c.members[2].mustPut("k", "moved")
	m.start(l)
	m.awaitReady()
	c.eventually("the learner has the newest value", func() bool {
		resp, err := m.client.Get(within(5*time.Second), "k", clientv3.WithSerializable())
		return err == nil && len(resp.Kvs) == 1 && string(resp.Kvs[0].Value) == "moved"
	})
	c.wantMembers(m, slices.Clone(c.members)...)
}

// TestReconfigMoveLeader: leadership moves to the member that the client names; other calls
// are refused as in etcd.
func TestReconfigMoveLeader(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader, follower := c.leader()
	if _, err := follower.client.MoveLeader(within(5*time.Second), follower.id); !errors.Is(err, rpctypes.ErrNotLeader) {
		t.Errorf("on a follower: got %v, want %v", err, rpctypes.ErrNotLeader)
	}
	if _, err := leader.client.MoveLeader(within(5*time.Second), 12345); !strings.Contains(fmt.Sprint(err), "bad leader transferee") {
		t.Errorf("to a member that does not exist: got %v, want bad leader transferee", err)
	}
	if _, err := leader.client.MoveLeader(within(5*time.Second), follower.id); err != nil {
		t.Fatal(err)
	}
	if now, _ := c.leader(); now != follower {
		t.Errorf("m%d leads, want m%d", now.i, follower.i)
	}
	leader.mustPut("k", "v")
}

// TestReconfigBeforeVersion: a member that is added right after the start finds a version of the
// cluster, without which it would not join.
func TestReconfigBeforeVersion(t *testing.T) {
	t.Parallel()
	// The version is set later than the member accepts calls.
	c := startCluster(t, 1, func(_ int, c *Config) { c.Faults.Delay(actors.EdgeVersions, 500*time.Millisecond) })
	m := c.members[0]
	if m.host.Published.View().Cluster.GetVersion() != nil {
		t.Fatal("the version is set before the call: the test proves nothing")
	}
	if _, err := m.client.MemberAdd(within(time.Minute), []string{"http://localhost:1"}); err != nil {
		t.Fatal(err)
	}
	if text := m.httpGet(m.peerURL + "/version"); !strings.Contains(text, `"etcdcluster":"3.7.0"`) {
		t.Errorf("/version after the call: got %s, want the version of the cluster", text)
	}
	if members := m.host.Published.View().Cluster.GetMembers(); len(members) != 2 {
		t.Errorf("got the members %v, want two", members)
	}
}

// TestReconfigInvalid: invalid changes get etcd's errors, and change nothing.
func TestReconfigInvalid(t *testing.T) {
	c := startCluster(t, 3, nil)
	learner := c.addMember(c.members[0], true)
	c.wantMembers(learner, slices.Clone(c.members)...)
	before := c.members[0].list()
	for i, m := range c.live() {
		client := m.client
		if m == learner {
			client = c.members[0].client // learners serve no changes
		}
		for _, step := range []struct {
			what string
			do   func(ctx context.Context) error
			want error
		}{
			{"remove an unknown member", func(ctx context.Context) error {
				_, err := client.MemberRemove(ctx, 1)
				return err
			}, rpctypes.ErrMemberNotFound},
			{"add a URL in use", func(ctx context.Context) error {
				_, err := client.MemberAdd(ctx, []string{c.members[1].peerURL})
				return err
			}, rpctypes.ErrPeerURLExist},
			{"add a second learner", func(ctx context.Context) error {
				_, err := client.MemberAddAsLearner(ctx, []string{"http://localhost:1"})
				return err
			}, rpctypes.ErrTooManyLearners},
			{"promote a voter", func(ctx context.Context) error {
				for { // as in etcd, it is checked first whether it is in step
					_, err := client.MemberPromote(ctx, c.members[1].id)
					if !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) || ctx.Err() != nil {
						return err
					}
				}
			}, rpctypes.ErrMemberNotLearner},
			{"promote an unknown member", func(ctx context.Context) error {
				_, err := client.MemberPromote(ctx, 1)
				return err
			}, rpctypes.ErrMemberNotFound},
			{"update an unknown member", func(ctx context.Context) error {
				_, err := client.MemberUpdate(ctx, 1, []string{"http://localhost:1"})
				return err
			}, rpctypes.ErrMemberNotFound},
			{"update to a URL in use", func(ctx context.Context) error {
				_, err := client.MemberUpdate(ctx, learner.id, []string{c.members[1].peerURL})
				return err
			}, rpctypes.ErrPeerURLExist},
		} {
			if err := step.do(within(time.Minute)); !errors.Is(err, step.want) {
				t.Errorf("through m%d: %s: got %v, want %v", i, step.what, err, step.want)
			}
		}
	}
	c.members[1].mustPut("k", "v")
	c.wantEqual()
	for _, m := range c.live() {
		if got := m.list(); got != before {
			t.Errorf("m%d: got members %s, want %s", m.i, got, before)
		}
	}
}

// TestRollingReplacement: all three members are replaced, one by one, as learners, while
// clients write and watch. No acknowledged write is lost, the watch has no gap.
func TestRollingReplacement(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l := c.startLoad(8, 100)
	l.more(50)
	old := slices.Clone(c.members)
	for _, m := range old {
		through := c.live()[len(c.live())-1]
		added := c.addMember(through, true)
		c.promote(through, added)
		l.more(20)
		l.use(slices.DeleteFunc(c.live(), func(o *clusterMember) bool { return o == m })...)
		c.removeMember(added, m)
		l.more(20)
	}
	c.wantMembers(nil, c.live()...)
	l.end(c.members[4])
	c.wantEqual()
	wantWatch(t, c.members[5], "load/", len(l.acked))
}

// wantWatch watches from the first revision on and checks that there are all revisions in
// order.
func wantWatch(t *testing.T, m *clusterMember, prefix string, atLeast int) {
	t.Helper()
	ctx := within(time.Minute)
	last, n := int64(0), 0
	for resp := range m.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Events {
			if last != 0 && e.Kv.ModRevision != last+1 {
				t.Errorf("watch: revision %d follows %d", e.Kv.ModRevision, last)
			}
			last = e.Kv.ModRevision
			n++
		}
		if n >= atLeast {
			return
		}
	}
	t.Errorf("watch: got %d events, want %d", n, atLeast)
}

const snapshotsSent = "etcd_network_snapshot_send_success"

// TestRollingRestartSendsNoSnapshot: members that restart get what they missed from the log.
func TestRollingRestartSendsNoSnapshot(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l := c.startLoad(4, 1000)
	l.more(40)
	sent := 0.0
	for _, m := range c.members {
		l.use(slices.DeleteFunc(c.live(), func(o *clusterMember) bool { return o == m })...)
		sent += m.metric(snapshotsSent)
		m.stop()
		l.more(20)
		m.start(nil)
		m.awaitReady()
	}
	l.end(c.members[0])
	c.wantEqual()
	for _, m := range c.members {
		sent += m.metric(snapshotsSent)
	}
	if sent != 0 {
		t.Errorf("%v snapshots were sent, want none", sent)
	}
}

// TestSnapshotCatchUp: a follower that has missed more than the leader keeps catches up by
// exactly one snapshot while writes go on. A watch on it goes on without a gap.
func TestSnapshotCatchUp(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ int, cfg *Config) {
		cfg.SnapshotCatchUpEntries, cfg.CatchUpBytes = 10, 64<<10
		cfg.Storage = core.Storage{LogSegmentBytes: 256 << 10}
	})
	l := c.startLoad(4, 10_000)
	l.more(50)
	_, follower := c.leader()
	l.use(slices.DeleteFunc(c.live(), func(o *clusterMember) bool { return o == follower })...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watch := follower.client.Watch(ctx, "load/", clientv3.WithPrefix(), clientv3.WithRev(1))
	follower.stop()
	l.more(80)
	follower.start(nil)
	follower.awaitReady()
	l.more(20)
	follower.awaitLog("installed a snapshot")
	l.end(follower)
	c.wantEqual()
	sent := 0.0
	for _, m := range c.live() {
		sent += m.metric(snapshotsSent)
	}
	if sent != 1 {
		t.Errorf("%v snapshots were sent, want 1", sent)
	}
	if dir := follower.cfg.dir().StoreDir(); !strings.Contains(dir, "db-") {
		t.Errorf("store: got %s, want that of a snapshot", dir)
	}
	last, end := int64(0), follower.host.Published.View().Revision
	timeout := within(20 * time.Second)
	for last < end {
		select {
		case resp, ok := <-watch:
			if !ok || resp.Err() != nil {
				t.Fatalf("watch at revision %d: open %v, %v", last, ok, resp.Err())
			}
			for _, e := range resp.Events {
				if last != 0 && e.Kv.ModRevision != last+1 {
					t.Fatalf("watch: revision %d follows %d", e.Kv.ModRevision, last)
				}
				last = e.Kv.ModRevision
			}
		case <-timeout.Done():
			t.Fatalf("watch: got events up to %d, want %d", last, end)
		}
	}
	follower.stop()
	follower.start(nil) // opens the store that was installed
	follower.awaitReady()
	c.wantEqual()
}

// TestForceNewCluster: one of three members continues alone with all data when the other two
// are lost; those are removed, and stop when they come back. The cluster can grow again.
func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	force := false
	c := startCluster(t, 3, func(i int, cfg *Config) { cfg.ForceNewCluster = force && i == 0 })
	c.addMember(c.members[0], true)
	for i := range 20 {
		c.members[i%3].mustPut(fmt.Sprint("k", i), fmt.Sprint(i))
	}
	c.wantEqual()
	c.shut()
	for _, m := range c.members {
		m.client = nil
	}
	m := c.members[0]
	force = true
	for range 2 { // the flag stays for another start
		m.start(nil)
		m.awaitReady()
		c.wantMembers(nil, m)
		for i := range 20 {
			m.wantGet(fmt.Sprint("k", i), fmt.Sprint(i))
		}
		m.mustPut("alone", "yes")
		if s := m.host.Raft.Status(); !s.IsLeader || !s.Alone {
			t.Errorf("got %+v, want a leader that is alone", s)
		}
		m.stop()
	}
	force = false
	m.start(nil)
	m.awaitReady()
	lost := c.members[1]
	lost.start(nil)
	lost.wantRemoved(lost.Done())
	added := c.addMember(m, true)
	c.promote(m, added)
	added.wantGet("alone", "yes")
	c.wantMembers(nil, m, added)
	c.wantEqual()
}

// TestElectionTickAdvance: members that start wait for an election only as long as it takes to
// hear from a leader, unless the flag is off.
func TestElectionTickAdvance(t *testing.T) {
	t.Parallel()
	const election = 8 * time.Second
	began := time.Now()
	c := startCluster(t, 3, func(_ int, cfg *Config) {
		cfg.Heartbeat, cfg.Election, cfg.ElectionTickAdvance = 100*time.Millisecond, election, true
	})
	// With randomization, the timeout has up to an election timeout more.
	if took := time.Since(began); took >= election {
		t.Errorf("the members are ready after %v, want less than an election timeout, %v", took, election)
	}
	leader, _ := c.leader()
	leader.mustPut("k", "v")
	c.wantEqual()
}
