package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// Tests of supervision: after a panic of any stage, at any point of its work, the member
// serves again at once and has lost nothing.

var rebootKeys = flag.Int("reboot-keys", 2000, "keys in the store when stages panic in TestReboot")

// In the long form, TestReboot has at least rebootKeysLong keys and runs one stage at a
// time. A reboot then takes at most rebootMost.
const (
	rebootKeysLong = 100_000
	rebootMost     = time.Second
)

// panicPoints has the points at which each stage panics: entry is at a message or raft
// entry; middle in a batch; batch after it, before the results are sent; head after a new
// version became the head of its key's chain; publish before the view with it is published.
var panicPoints = map[string][]string{
	actors.CoreProposer:  {"entry", "middle", "batch"},
	actors.CoreRaft:      {"entry", "middle", "batch"},
	actors.CoreWAL:       {"entry", "middle", "batch"},
	actors.CoreApply:     {"entry", "middle", "batch"},
	actors.CoreMVCC:      {"entry", "head", "middle", "publish", "batch"},
	actors.CorePersister: {"entry", "middle", "batch"},
	actors.CoreLease:     {"entry", "batch"}, // middle needs leases that expire; see TestLeasesReboot
}

// TestReboot makes each stage panic at each point under load. Acknowledged writes survive,
// clients get no errors but those that they retry, the debug endpoint shows the panic, and
// the member serves again at once. The time is logged:
// go test -run TestReboot -reboot-keys 100000 -v ./cmd/internal/node
func TestReboot(t *testing.T) {
	for stage, points := range panicPoints {
		t.Run(strings.TrimPrefix(stage, "core/"), func(t *testing.T) {
			if *rebootKeys < rebootKeysLong {
				t.Parallel() // not in the long form, which measures
			}
			m := startMember(t, t.TempDir(), nil)
			defer m.shut()
			m.fill(*rebootKeys)
			if stage == actors.CoreLease {
				m.grant(1, 3600) // without leases, the stage has nothing to do
			}
			l := startLoad(m)
			var down []time.Duration
			for i, point := range points {
				l.await(20)
				m.Faults().Arm(stage, point, 3)
				for end := time.Now().Add(time.Minute); m.core.Restarts() <= i; {
					if time.Now().After(end) {
						t.Fatalf("no panic at %s", point)
					}
					l.await(1)
				}
				failure, _ := m.core.LastFailure()
				if want := (actors.Fault{Stage: stage, Point: point}); !errors.Is(failure, want) {
					t.Fatalf("got failure %v of the core, want %v", failure, want)
				}
				down = append(down, l.served(failure.At).Sub(failure.At).Round(time.Millisecond))
				m.showsPanic(stage, point, i+1)
			}
			l.stop()
			l.check()
			if slowest := slices.Max(down); *rebootKeys >= rebootKeysLong && slowest > rebootMost {
				t.Errorf("got %v until the member serves again, want at most %v", slowest, rebootMost)
			}
			t.Logf("%d keys; served again after %v at %v; %d writes acknowledged, %d failed", *rebootKeys, down, points, l.acked.Load(), l.failed.Load())
		})
	}
}

// coreMailboxes returns the registered mailbox of each stage of the core. A value keeps its
// mailbox alive, so that no later one has the same address.
func (m *testMember) coreMailboxes() map[string]reflect.Value {
	m.t.Helper()
	m.registry.Stats() // takes the registry's lock, after the boot that is to be seen
	found := map[string]reflect.Value{}
	for it := reflect.ValueOf(m.registry).Elem().FieldByName("entries").MapRange(); it.Next(); {
		if name := it.Key().String(); strings.HasPrefix(name, actors.CorePath+"/") {
			found[name] = it.Value().Elem().FieldByName("box").Elem()
		}
	}
	return found
}

// TestFreshMailboxes: no mailbox of the core is used by two incarnations, so that a message
// to a stage of one cannot reach a stage of another.
func TestFreshMailboxes(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	l := startLoad(m)
	used := map[uintptr]string{}
	var kept []map[string]reflect.Value // so that no address is used again
	for reboots, stage := range []string{"", actors.CoreWAL, actors.CoreMVCC, actors.CorePersister} {
		if stage != "" {
			m.Faults().Arm(stage, "entry", 3)
			m.eventually("the core reboots", func() bool { return m.core.Restarts() == reboots })
			failure, _ := m.core.LastFailure()
			l.served(failure.At)
		}
		boxes := m.coreMailboxes()
		kept = append(kept, boxes)
		if got, want := len(boxes), 8; got != want {
			t.Fatalf("got %d mailboxes of the core, want %d: %v", got, want, slices.Sorted(maps.Keys(boxes)))
		}
		for name, box := range boxes {
			what := fmt.Sprintf("%s after %d reboots", name, reboots)
			if before, twice := used[box.Pointer()]; twice {
				t.Errorf("%s has the mailbox of %s, want a new one", what, before)
			}
			used[box.Pointer()] = what
		}
	}
	l.stop()
	l.check()
	runtime.KeepAlive(kept)
}

// fill puts keys, concurrently and many in a transaction.
func (m *testMember) fill(keys int) {
	m.t.Helper()
	const perTxn, writers = 100, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for first := w * perTxn; first < keys; first += writers * perTxn {
				txn := new(pb.TxnRequest)
				for i := first; i < min(first+perTxn, keys); i++ {
					txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
						Key: fmt.Appendf(nil, "fill/%08d", i), Value: fmt.Appendf(nil, "%0256d", i)}}})
				}
				out, err := m.Requests().Propose(context.Background(), &applymsg.Request{Op: &applymsg.Request_Txn{Txn: txn}})
				if err != nil || out.Result.Code != 0 {
					m.t.Errorf("fill: %v %v", err, out.Result)
				}
			}
		})
	}
	wg.Wait()
}

// load has clients that put numbers, each to a key of its own, and read them back.
type load struct {
	m             *testMember
	ctx           context.Context // ends the load
	end           context.CancelFunc
	wg            sync.WaitGroup
	acked, failed atomic.Int64

	mu      sync.Mutex
	success chan struct{}         // closed and replaced by each success
	started time.Time             // start of the latest call that succeeded
	strange []error               // errors that clients do not retry
	may     [loadClients][]string // by client: the values that its key may have
}

const loadClients = 8

func startLoad(m *testMember) *load {
	l := &load{m: m, success: make(chan struct{})}
	l.ctx, l.end = context.WithCancel(context.Background())
	for i := range loadClients {
		l.wg.Go(func() { l.client(i) })
	}
	return l
}

func (l *load) client(i int) {
	key := fmt.Sprintf("load/%d", i)
	may := []string{""} // the last acknowledged value, and those put since
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.may[i] = may
	}()
	for n := 0; l.ctx.Err() == nil; n++ {
		ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
		began, value := time.Now(), fmt.Sprint(n)
		_, err := l.m.client.Put(ctx, key, value)
		may = append(may, value)
		if err == nil {
			may = []string{value}
			l.acked.Add(1)
			resp, rerr := l.m.client.Get(ctx, key)
			if err = rerr; rerr == nil && (len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != value) {
				err = fmt.Errorf("got %v for %s, want %s, which was acknowledged", resp.Kvs, key, value)
			}
		} else {
			l.failed.Add(1)
		}
		cancel()
		l.record(began, err)
	}
}

func (l *load) record(began time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		if began.After(l.started) {
			l.started = began
		}
		close(l.success)
		l.success = make(chan struct{})
	case l.ctx.Err() != nil: // cancelled by stop
	case !errors.Is(err, rpctypes.ErrStopped):
		l.strange = append(l.strange, err)
	}
}

// await waits for n successes.
func (l *load) await(n int) {
	for range n {
		l.mu.Lock()
		success := l.success
		l.mu.Unlock()
		select {
		case <-success:
		case <-time.After(time.Minute):
			l.m.t.Error("no call of the load succeeds")
			return
		}
	}
}

// served waits until a put and a get that began after the given time have succeeded, and
// returns the time.
func (l *load) served(after time.Time) time.Time {
	for {
		l.mu.Lock()
		ok, success := l.started.After(after), l.success
		l.mu.Unlock()
		if ok {
			return time.Now()
		}
		select {
		case <-success:
		case <-time.After(time.Minute):
			l.m.t.Error("the member does not serve again")
			return time.Now()
		}
	}
}

func (l *load) stop() {
	l.end()
	l.wg.Wait()
}

// check compares every key with the values that it may have.
func (l *load) check() {
	l.m.t.Helper()
	for _, err := range l.strange {
		l.m.t.Errorf("a client got %v", err)
	}
	for i, may := range l.may {
		if got := l.m.get(fmt.Sprintf("load/%d", i)); !slices.Contains(may, got) {
			l.m.t.Errorf("load/%d: got %q, want one of %q", i, got, may)
		}
	}
}

// showsPanic checks that the debug endpoint shows the panic of a stage.
func (m *testMember) showsPanic(stage, point string, reboots int) {
	m.t.Helper()
	s := m.snapshot()
	i := slices.IndexFunc(s.Mailboxes, func(b actors.MailboxSnapshot) bool { return b.Name == stage })
	if i < 0 {
		m.t.Fatalf("the endpoint has no %s", stage)
	}
	b := s.Mailboxes[i]
	if s.Reboots != uint64(reboots) || b.Restarts != reboots {
		m.t.Errorf("got %d reboots and %d restarts of %s on the endpoint, want %d", s.Reboots, b.Restarts, stage, reboots)
	}
	if !strings.Contains(b.LastPanic, "injected fault at "+point) || !strings.Contains(b.LastPanicStack, "Faults") {
		m.t.Errorf("got panic %q with stack %q on the endpoint, want the fault at %s", b.LastPanic, b.LastPanicStack, point)
	}
}

// TestBadEntry: if a stage panics again at the same entry after a reboot, the process ends,
// and the reason has the index of the entry.
func TestBadEntry(t *testing.T) {
	for _, stage := range []string{actors.CoreApply, actors.CoreMVCC} {
		t.Run(strings.TrimPrefix(stage, "core/"), func(t *testing.T) {
			t.Parallel()
			exit := make(chan error, 16)
			dir := t.TempDir()
			m := startMember(t, dir, func(c *Config) { c.Exit = func(reason error) { exit <- reason } })
			m.put("a", "1")
			// The next entry must be the put's, and not the version of the cluster.
			for end := time.Now().Add(time.Minute); m.host.Published.View().Cluster.GetVersion() == nil; <-time.After(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the cluster has no version after a minute")
				}
			}
			bad := m.host.Applied() + 1
			m.Faults().ArmEntry(stage, bad, 2)
			if _, err := m.client.Put(t.Context(), "a", "2"); !errors.Is(err, rpctypes.ErrStopped) {
				t.Errorf("put: got %v, want %v", err, rpctypes.ErrStopped)
			}
			reason := awaitExit(t, exit)
			if want := fmt.Sprintf("applying entry %d failed twice", bad); !strings.Contains(reason.Error(), want) {
				t.Errorf("got reason %q, want %q", reason, want)
			}
			m.abandon()
			// Without the fault, the entry is applied: it is in the log.
			m = startMember(t, dir, nil)
			defer m.shut()
			if got := m.get("a"); got != "2" {
				t.Errorf("a: got %q, want 2", got)
			}
		})
	}
}

func awaitExit(t *testing.T, exit <-chan error) error {
	t.Helper()
	select {
	case reason := <-exit:
		return reason
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
		return nil
	}
}

// abandon stops a member that has called Exit.
func (m *testMember) abandon() {
	m.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = m.Stop(ctx) // the reason was passed to Exit
}

// badDisk is a file system whose fsyncs can be made to fail.
type badDisk struct {
	wal.OSFS
	fail atomic.Bool
}

func (d *badDisk) Create(path string) (wal.File, error) { return d.wrap(d.OSFS.Create(path)) }

func (d *badDisk) Open(path string, write bool) (wal.File, error) {
	return d.wrap(d.OSFS.Open(path, write))
}

func (d *badDisk) wrap(f wal.File, err error) (wal.File, error) {
	if err != nil {
		return nil, err
	}
	return &badFile{f, d}, nil
}

type badFile struct {
	wal.File
	disk *badDisk
}

func (f *badFile) Datasync() error {
	if f.disk.fail.Load() {
		return syscall.EIO
	}
	return f.File.Datasync()
}

// badStore is a store whose commits can be made to fail.
type badStore struct {
	backend.Store
	fail *atomic.Bool
}

func (s badStore) Commit(b backend.Batch) error {
	if s.fail.Load() {
		return fmt.Errorf("%w: %w", backend.ErrFailed, syscall.EIO)
	}
	return s.Store.Commit(b)
}

// TestFailedWrite: a failed fsync of the log, or a failed commit to the store, ends the
// process at once. Acknowledged writes are there after a start.
func TestFailedWrite(t *testing.T) {
	for _, what := range []string{"log", "store"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			exit := make(chan error, 16)
			disk, fail := new(badDisk), new(atomic.Bool)
			dir := t.TempDir()
			m := startMember(t, dir, func(c *Config) {
				c.Exit = func(reason error) { exit <- reason }
				c.FS = disk
				c.Storage.OpenStore = func(cfg backend.Config) (backend.Store, error) {
					s, err := backend.Open(cfg)
					return badStore{s, fail}, err
				}
			})
			l := startLoad(m)
			l.await(100)
			if what == "log" {
				disk.fail.Store(true)
			} else {
				fail.Store(true)
			}
			if reason := awaitExit(t, exit); !errors.Is(reason, syscall.EIO) {
				t.Errorf("got reason %v, want %v", reason, syscall.EIO)
			}
			if n := m.core.Restarts(); n != 0 {
				t.Errorf("got %d reboots before the exit, want none", n)
			}
			disk.fail.Store(false) // as a kernel that reports a failure once
			fail.Store(false)
			l.stop()
			m.abandon()
			m = startMember(t, dir, nil)
			defer m.shut()
			l.m = m
			l.strange = nil // a process that ended would not have sent these errors
			l.check()
		})
	}
}

// TestHungFsync: an fsync that takes longer than two election timeouts shows in the log, in
// the metrics and on /readyz, until it returns.
func TestHungFsync(t *testing.T) {
	for _, what := range []string{troubleFsync, troubleStore} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			log := new(lines)
			hang := make(chan struct{})
			var armed atomic.Bool
			wait := func() {
				if armed.Load() {
					<-hang
				}
			}
			disk := &hungDisk{wait: func() {}}
			store := func() {}
			if what == troubleFsync {
				disk.wait = wait
			} else {
				store = wait
			}
			m := startMember(t, t.TempDir(), func(c *Config) {
				c.Logger = newLogger(log)
				c.Heartbeat, c.Election = 10*time.Millisecond, 100*time.Millisecond
				c.FS = disk
				c.Storage.OpenStore = func(cfg backend.Config) (backend.Store, error) {
					s, err := backend.Open(cfg)
					return hungStore{s, store}, err
				}
			})
			defer m.shut()
			if code, text := m.http("/readyz"); code != http.StatusOK {
				t.Fatalf("/readyz before: got %d %s, want OK", code, text)
			}
			armed.Store(true)
			done := make(chan struct{})
			go func() { // ends when hang is closed
				defer close(done)
				m.put("k", "v")
			}()
			m.eventually("/readyz shows it", func() bool {
				code, text := m.http("/readyz")
				return code == http.StatusServiceUnavailable && strings.Contains(text, "[-]"+what+" failed")
			})
			m.eventually("the log has the trouble", func() bool { return log.last("health check failed", "check") == what })
			if _, text := m.http("/metrics"); !strings.Contains(text, `troupe_member_trouble{check="`+what+`"} 1`) {
				t.Error("no sample of the trouble in the metrics")
			}
			close(hang)
			<-done
			m.eventually("/readyz succeeds again", func() bool { code, _ := m.http("/readyz"); return code == http.StatusOK })
			m.eventually("the log has its end", func() bool { return log.last("health check passes again", "check") == what })
		})
	}
}

// hungDisk is a file system that calls wait before each fsync.
type hungDisk struct {
	wal.OSFS
	wait func()
}

func (d *hungDisk) Create(path string) (wal.File, error) {
	f, err := d.OSFS.Create(path)
	return hungFile{f, d}, err
}

func (d *hungDisk) Open(path string, write bool) (wal.File, error) {
	f, err := d.OSFS.Open(path, write)
	return hungFile{f, d}, err
}

type hungFile struct {
	wal.File
	disk *hungDisk
}

func (f hungFile) Datasync() error {
	f.disk.wait()
	return f.File.Datasync()
}

type hungStore struct {
	backend.Store
	wait func()
}

func (s hungStore) Commit(b backend.Batch) error {
	s.wait()
	return s.Store.Commit(b)
}
