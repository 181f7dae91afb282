package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/walactor/wal"
)

// everywhere returns a client that has all members as endpoints.
func (c *testCluster) everywhere() *clientv3.Client {
	c.t.Helper()
	var addrs []string
	for _, m := range c.members {
		addrs = append(addrs, m.addr)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: addrs, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// fill writes more than members with a small cache keep in memory, and waits until all have
// it in their stores.
func (c *testCluster) fill() {
	c.t.Helper()
	for i := range damagedKeys {
		c.members[0].mustPut(fmt.Sprint(i), damagedValue(i))
	}
	for _, m := range c.members {
		c.eventually(fmt.Sprintf("the packs of m%d are in the store", m.i), func() bool {
			m.mustPut("tick", "") // publishes the new resident size
			v := m.host.Published.View()
			return v.Sizes.Keys > damagedKeys && v.Sizes.Resident < 256<<10
		})
	}
}

// damage flips a byte of the value of a key in the member's store.
func (m *clusterMember) damage(key int) {
	m.c.t.Helper()
	text := []byte(damagedValue(key))
	files, err := filepath.Glob(filepath.Join(m.dir, "member", "db*", "*.vlog"))
	if err != nil {
		m.c.t.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			m.c.t.Fatal(err)
		}
		at := bytes.LastIndex(content, text) // of the last version of the pack
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			m.c.t.Fatal(err)
		}
		defer f.Close()
		at += len(text) / 2
		if _, err := f.WriteAt([]byte{content[at] ^ 4}, int64(at)); err != nil {
			m.c.t.Fatal(err)
		}
		return
	}
	m.c.t.Fatalf("no file of m%d has the value", m.i)
}

// store returns the content of CURRENT: the name of a store that was received; empty if the
// store was never replaced.
func (m *clusterMember) store() string {
	m.c.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "member", "CURRENT"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.c.t.Fatal(err)
	}
	return string(b)
}

// corruptAlarms returns the members for which CORRUPT is active, as a member sees it.
func (m *clusterMember) corruptAlarms() (ids []uint64) {
	for _, a := range m.host.Published.View().Cluster.GetAlarms() {
		if a.Type == pb.AlarmType_CORRUPT {
			ids = append(ids, a.MemberId)
		}
	}
	return ids
}

// load writes and reads through all members until stop is called, which returns how many calls
// succeeded. A write is tried again as long as its error permits that; any other error fails
// the test.
func (c *testCluster) load() (stop func() (calls int)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	var mu sync.Mutex
	total := 0
	client := c.everywhere()
	count := func() {
		mu.Lock()
		total++
		mu.Unlock()
	}
	for w := range 3 {
		wait.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_, err := client.Put(ctx, fmt.Sprintf("load/%d", w), fmt.Sprint(i))
				switch {
				case err == nil:
					count()
				case ctx.Err() != nil || isUnavailable(err):
				default:
					c.t.Errorf("put: %v", err)
					return
				}
			}
		})
		wait.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				key := i % damagedKeys
				resp, err := client.Get(ctx, fmt.Sprint(key))
				switch {
				case ctx.Err() != nil:
				case err != nil:
					c.t.Errorf("get %d: %v", key, err)
					return
				case len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != damagedValue(key):
					c.t.Errorf("get %d: got %d keys or another value", key, len(resp.Kvs))
					return
				default:
					count()
				}
			}
		})
	}
	return func() int {
		cancel()
		wait.Wait()
		return total
	}
}

// watchAll watches all keys from the first revision. seen waits until the watch, which must not
// end, has the event of a key of fill.
func (m *clusterMember) watchAll() (seen func(key int) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	m.c.t.Cleanup(cancel)
	events := m.client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1))
	return func(key int) error {
		for resp := range events {
			if err := resp.Err(); err != nil {
				return err
			}
			for _, e := range resp.Events {
				if string(e.Kv.Key) == fmt.Sprint(key) {
					return nil
				}
			}
		}
		return fmt.Errorf("the watch ended without an event of key %d; its context: %v", key, ctx.Err())
	}
}

// isUnavailable reports whether an error of clientv3 permits another attempt.
func isUnavailable(err error) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e) && e.Code() == codes.Unavailable || status.Code(err) == codes.Unavailable
}

// getsAgain reads from the member until its store is replaced: until then, the error permits
// another attempt.
func (m *clusterMember) getsAgain(key, want string) {
	m.c.t.Helper()
	m.c.eventually(fmt.Sprintf("m%d answers a read of %s", m.i, key), func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		resp, err := m.client.Get(ctx, key)
		switch {
		case err == nil && (len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want):
			m.c.t.Fatalf("m%d: %s: got %v, want %.20q", m.i, key, resp, want)
		case err != nil && !isUnavailable(err):
			m.c.t.Fatalf("m%d: %s: got %v, want an error that permits another attempt", m.i, key, err)
		}
		return err == nil
	})
}

// wantRepaired waits until the alarm for the member is active, and then until it is cleared and
// the member is healthy.
func (m *clusterMember) wantRepaired(observer *clusterMember, bad int) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	named := make(chan struct{})
	go func() { // the alarm may be active for a moment only
		for ctx.Err() == nil {
			if ids := observer.corruptAlarms(); len(ids) == 1 && ids[0] == m.id {
				close(named)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	m.getsAgain(fmt.Sprint(bad), damagedValue(bad))
	select {
	case <-named:
	case <-ctx.Done():
		m.c.t.Fatalf("m%d: no alarm names the member", m.i)
	}
	m.c.eventually("the alarm is cleared", func() bool { return len(observer.corruptAlarms()) == 0 })
	m.c.eventually("the member is healthy", func() bool { return len(m.Health()) == 0 })
	if m.store() == "" {
		m.c.t.Errorf("m%d: the store was not replaced", m.i)
	}
}

// TestClusterRepairsDamage: damage to the store of one member fails no call. An alarm names the
// member until it has replaced its store by that of another.
func TestClusterRepairsDamage(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprint("leads=", leads), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, 3, func(_ int, c *Config) { c.CacheBytes = 64 << 10 })
			c.fill()
			leader, victim := c.leader()
			if leads {
				leader, victim = victim, leader
			}
			const bad = 100
			victim.damage(bad)
			seen := victim.watchAll()
			stop := c.load()
			victim.wantRepaired(leader, bad)
			if err := seen(bad); err != nil {
				t.Errorf("a watch on the member: %v", err)
			}
			if calls := stop(); calls == 0 {
				t.Error("no call succeeded")
			}
			c.wantEqual()
		})
	}
}

// TestClusterRepairsAtStart: a member that finds damage at its start, or in a write that depends
// on it, gets the store of another member before it goes on. A start that waits for one can be
// ended at once.
func TestClusterRepairsAtStart(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ int, c *Config) { c.CacheBytes = 64 << 10 })
	c.fill()
	_, victim := c.leader()
	victim.stop()
	c.members[(victim.i+1)%3].mustPut("meanwhile", "1")
	victim.damage(100)
	victim.start(nil)
	victim.awaitReady()
	first := victim.store()
	if first == "" {
		t.Error("the store was not replaced at the start")
	}
	victim.wantGet("meanwhile", "1")
	victim.wantGet("100", damagedValue(100))
	c.wantEqual()

	victim.damage(200)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	other := c.members[(victim.i+1)%3]
	resp, err := other.client.Txn(ctx).If(clientv3.Compare(clientv3.Value("200"), "=", damagedValue(200))).
		Then(clientv3.OpPut("200", "changed")).Commit()
	if err != nil || !resp.Succeeded {
		t.Fatalf("transaction: got %v, %v, want success", resp, err)
	}
	c.eventually("the store is replaced again", func() bool { return victim.store() != first })
	victim.wantGet("200", "changed")
	c.wantEqual()
	c.eventually("no alarm is active", func() bool { return len(other.corruptAlarms()) == 0 })

	c.shut()
	victim.damage(100)
	waiting, end := context.WithCancel(context.Background())
	defer end()
	victim.logs = logBuffer{}
	cfg, refused := victim.config(nil), make(chan error, 1)
	go func() { refused <- victim.refused(waiting, cfg) }()
	victim.awaitLog("failed to get a snapshot of another member; trying again")
	began := time.Now()
	end()
	select {
	case err := <-refused:
		if !errors.Is(err, core.ErrStopping) {
			t.Errorf("start that was ended: got %v, want %v", err, core.ErrStopping)
		}
		// Longer than the pause between two attempts would be too long.
		if took := time.Since(began); took > time.Second/2 {
			t.Errorf("start that was ended: got %v until it returned, want at most 500ms", took)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the start goes on")
	}
}

// hangingFS is a file system whose disk may hang: Datasync then waits until release is closed.
type hangingFS struct {
	wal.FS
	hang atomic.Pointer[chan struct{}] // nil while it works
}

type hangingFile struct {
	wal.File
	fs *hangingFS
}

func (h *hangingFS) file(f wal.File, err error) (wal.File, error) {
	if err != nil {
		return nil, err
	}
	return hangingFile{f, h}, nil
}

func (h *hangingFS) Create(path string) (wal.File, error) { return h.file(h.FS.Create(path)) }

func (h *hangingFS) Open(path string, write bool) (wal.File, error) {
	return h.file(h.FS.Open(path, write))
}

func (f hangingFile) Datasync() error {
	if released := f.fs.hang.Load(); released != nil {
		<-*released
	}
	return f.File.Datasync()
}

// TestClusterLeaderStalls: a leader whose disk hangs, or whose apply stands still, transfers its
// leadership within two seconds. Writes through the others go on; it does not lead again
// meanwhile, and catches up afterwards.
func TestClusterLeaderStalls(t *testing.T) {
	for _, what := range []string{troubleFsync, troubleApply} {
		t.Run(what, func(t *testing.T) {
			disks := make([]*hangingFS, 3)
			c := startCluster(t, 3, func(i int, c *Config) {
				disks[i] = &hangingFS{FS: wal.OSFS{}}
				c.FS = disks[i]
			})
			c.members[0].mustPut("k", "before")
			leader, follower := c.leader()
			released := make(chan struct{})
			if what == troubleFsync {
				disks[leader.i].hang.Store(&released)
			} else {
				leader.Faults().Delay(actors.CoreMVCC, 4*time.Second)
			}
			release := sync.OnceFunc(func() {
				leader.Faults().Delay(actors.CoreMVCC, 0)
				disks[leader.i].hang.Store(nil)
				close(released)
			})
			t.Cleanup(release) // before the members stop
			began := time.Now()
			c.eventually("another member leads", func() bool {
				follower.mustPut("k", "during") // an answer may need no disk and no apply of the leader
				s := follower.host.Raft.Status()
				return s.Leader != 0 && s.Leader != leader.id
			})
			// A second more, for a machine that is busy.
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("another member leads after %v, want at most 2s", took)
			}
			for i := range 20 {
				follower.mustPut("k", fmt.Sprint(i))
			}
			if s := leader.host.Raft.Status(); s.IsLeader {
				t.Error("the stalled member leads")
			}
			if found := leader.Health(); !slices.ContainsFunc(found, func(f grpcgw.Trouble) bool { return f.Check == what }) {
				t.Errorf("health of the stalled member: got %v, want %s", found, what)
			}
			release()
			leader.wantGet("k", "19")
			c.wantEqual()
			c.eventually("the member is healthy", func() bool { return len(leader.Health()) == 0 })
		})
	}
}

// TestClusterStopsFast: a leader that stops transfers its leadership first, and does not wait
// for clients that keep streams open. Writes through the others go on.
func TestClusterStopsFast(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.members[0].mustPut("k", "v")
	leader, follower := c.leader()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watch := leader.client.Watch(ctx, "w", clientv3.WithCreatedNotify())
	if resp := <-watch; !resp.Created {
		t.Fatalf("watch: got %v, want created", resp)
	}
	lease, err := leader.client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leader.client.KeepAlive(ctx, lease.ID); err != nil {
		t.Fatal(err)
	}
	half, err := net.Dial("tcp", leader.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.Write([]byte("GET /health HTTP/1.1\r\n")); err != nil { // and no more
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(ctx)
	var wait sync.WaitGroup
	var longest time.Duration
	wait.Go(func() {
		for writing.Err() == nil {
			began := time.Now()
			follower.mustPut("k", "v")
			longest = max(longest, time.Since(began))
		}
	})
	began := time.Now()
	leader.stop()
	took := time.Since(began)
	stop()
	wait.Wait()
	if took > 1500*time.Millisecond {
		t.Errorf("stop of the leader: got %v, want at most 1.5s", took)
	}
	if longest > time.Second {
		t.Errorf("the longest put through another member: got %v, want at most 1s", longest)
	}
	t.Logf("stop %v, longest put %v", took, longest)
}

// TestClusterLeaderPaused: a leader that was stopped for longer than an election answers no
// read with a value that was overwritten meanwhile.
func TestClusterLeaderPaused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.members[0].mustPut("k", "old")
	leader, follower := c.leader()
	leader.Faults().Delay(actors.CoreRaft, 2*time.Second) // it sends and receives nothing
	c.eventually("another member leads", func() bool {
		s := follower.host.Raft.Status()
		return s.Leader != 0 && s.Leader != leader.id
	})
	follower.mustPut("k", "new")
	if s := leader.host.Raft.Status(); !s.IsLeader {
		t.Errorf("the paused member: got %+v, want it to believe that it leads", s)
	}
	time.AfterFunc(100*time.Millisecond, func() { leader.Faults().Delay(actors.CoreRaft, 0) })
	leader.wantGet("k", "new")
	c.wantEqual()
}

// TestClusterDamageWithoutSpare: while a quorum depends on the damaged member, it votes and
// appends, but it does not serve.
func TestClusterDamageWithoutSpare(t *testing.T) {
	t.Parallel()
	released := make(chan struct{}) // the repair waits for it
	release := sync.OnceFunc(func() { close(released) })
	c := startCluster(t, 3, func(_ int, c *Config) {
		c.CacheBytes = 64 << 10
		c.Storage.OpenStore = func(cfg backend.Config) (backend.Store, error) {
			if filepath.Base(cfg.Dir) != "db" { // that of a snapshot
				<-released
			}
			return backend.Open(cfg)
		}
	})
	t.Cleanup(release) // before the members stop
	c.fill()
	leader, victim := c.leader()
	for _, m := range c.members {
		if m != leader && m != victim {
			m.stop()
		}
	}
	const bad = 100
	victim.damage(bad)
	short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, _ = victim.client.Get(short, fmt.Sprint(bad)) // finds the damage
	c.eventually("the damage is found", func() bool { return len(victim.Health()) > 0 })
	for i := range 10 {
		leader.mustPut("k", fmt.Sprint(i)) // needs the log of the damaged member
		victim.mustPut("k", fmt.Sprint(i))
	}
	short, cancel = context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if resp, err := victim.client.Get(short, "k"); err == nil {
		t.Errorf("linearizable read on the damaged member: got %v, want none", resp)
	}
	if victim.store() != "" || !victim.integrity.damaged.Load() {
		t.Error("the store was replaced before the repair could end")
	}
	release()
	victim.getsAgain("k", "9")
	c.eventually("the alarm is cleared", func() bool { return len(leader.corruptAlarms()) == 0 })
	c.wantEqual()
}

// TestClusterDiskFull: while the disk of one member is full, all members refuse puts, before
// they reach the log. Log and store of the member survive.
func TestClusterDiskFull(t *testing.T) {
	t.Parallel()
	var free atomic.Int64 // of the third member
	free.Store(1 << 40)
	c := startCluster(t, 3, func(i int, c *Config) {
		c.Small = true
		c.FreeSpace = func(string) (uint64, error) {
			if i == 2 {
				return uint64(free.Load()), nil
			}
			return 1 << 40, nil
		}
	})
	full := c.members[2]
	c.members[0].mustPut("k", "v")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	free.Store(int64(full.cfg.sizes().diskReserve) / 2) // also too little to write to the store
	refused := func(m *clusterMember) bool {
		_, err := m.client.Put(ctx, "k", "refused")
		return errors.Is(err, rpctypes.ErrNoSpace)
	}
	for _, m := range c.members {
		c.eventually(fmt.Sprintf("m%d refuses puts", m.i), func() bool { return refused(m) })
	}
	leader, _ := c.leader()
	c.eventually("refused puts add nothing to the log", func() bool { // when the alarm is in it, perhaps twice
		before := leader.host.Raft.Status().Committed
		for _, m := range c.members {
			if !refused(m) {
				t.Errorf("m%d: a put was not refused", m.i)
			}
		}
		return leader.host.Raft.Status().Committed == before
	})
	for i := range 20 { // deletes go on, into the log of the full member too
		if _, err := c.members[i%3].client.Delete(ctx, "k"); err != nil {
			t.Fatalf("m%d: delete: %v", i%3, err)
		}
	}
	free.Store(1 << 40)
	for _, m := range c.members {
		c.eventually(fmt.Sprintf("m%d accepts puts", m.i), func() bool {
			_, err := m.client.Put(ctx, "k", "again")
			return err == nil
		})
	}
	c.wantEqual()
	full.stop()
	full.start(nil)
	full.awaitReady()
	full.wantGet("k", "again")
	c.wantEqual()
}
