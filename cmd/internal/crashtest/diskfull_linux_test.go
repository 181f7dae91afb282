package crashtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

const (
	// smallDisk is the size of the file system: enough for the log, the ballast and some
	// hundred megabytes.
	smallDisk = "size=1g"
	// fillRate is the rate at which the filler fills the disk, in bytes per second.
	fillRate = 200 << 20
	// fillStep is the size of its writes.
	fillStep = 2 << 20
	// fullFor is how long the disk stays completely full, under load.
	fullFor = 3 * time.Second
	// inNamespace is set in the environment of the process that has its own mounts.
	inNamespace = "TROUPE_TEST_MOUNT"
)

// TestDiskFull: a filler fills the disk completely, at 200 MB/s, while clients write. The
// alarm is raised before anything fails; the member continues to serve deletes,
// compactions and reads; a kill on the full disk loses nothing; and when space is free
// again, the alarm is cleared and everything acknowledged exists.
//
// The disk is a tmpfs in the mount namespace of a separate process.
func TestDiskFull(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		again(t)
		return
	}
	dir := t.TempDir()
	mount(t, dir)
	cfg := Config{Binary: Build(t, false), DataDir: filepath.Join(dir, "data"), Args: []string{"--auto-compaction-retention=0"}}
	s := Serve(t, cfg)
	cfg = s.Config()
	client := dial(t, s)
	l := fillLoad(client)
	l.await(t, s, &l.acked, 2000)

	fill := startFiller(t, filepath.Join(dir, "filler"))
	await(t, s, "the alarm is raised", func() bool { return alarmed(t, client) })
	t.Logf("the alarm was raised with %d MiB free", free(t, dir)>>20)
	await(t, s, "the disk is full", func() bool { return free(t, dir) == 0 })
	began := time.Now()
	l.await(t, s, &l.refused, 100)
	l.await(t, s, &l.deleted, 100)
	for time.Since(began) < fullFor {
		if free(t, dir) != 0 {
			fill.step()
		}
		compact(t, client)
		l.await(t, s, &l.deleted, 10)
		if s.State() != nil {
			t.Fatalf("the server ended: %v\n%s", s.State(), s.Log())
		}
	}
	if !alarmed(t, client) {
		t.Error("the alarm was cleared on a full disk")
	}

	// Without space a start may fail, but with an error.
	l.stop()
	s.Kill()
	fill.step()
	s = Start(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	switch err := s.Ready(ctx); {
	case err == nil:
		t.Log("a start on the full disk succeeded")
		s.Kill()
	case !errors.Is(err, ErrExited) || s.State().ExitCode() != 1 || !strings.Contains(s.Log(), "too full to open"):
		t.Errorf("a start on the full disk: %v\n%s", err, s.Log())
	}

	fill.stop()
	s = Serve(t, cfg)
	client = dial(t, s)
	l.client = client
	await(t, s, "the alarm is cleared", func() bool { return !alarmed(t, client) })
	l.check(t)
	if _, err := client.Put(t.Context(), "after", "all"); err != nil {
		t.Errorf("with space again, a put is answered with %v", err)
	}
	compact(t, client)
	t.Logf("%d puts acknowledged, %d refused, %d deletes acknowledged", l.acked.Load(), l.refused.Load(), l.deleted.Load())

	// The same without a kill: what could not be stored is stored now. A delete of long
	// keys takes far more space than its request.
	long := longKeys(t, client)
	l = fillLoad(client)
	l.await(t, s, &l.acked, 500)
	fill = startFiller(t, filepath.Join(dir, "filler"))
	await(t, s, "the disk is full", func() bool { return free(t, dir) == 0 })
	l.await(t, s, &l.deleted, 100)
	if resp, err := client.Delete(t.Context(), "long/", clientv3.WithPrefix()); err != nil || resp.Deleted != long {
		t.Fatalf("a delete of %d long keys: %v, %v\n%s", long, resp, err, s.Log())
	}
	l.await(t, s, &l.deleted, 100)
	fill.stop()
	await(t, s, "the alarm is cleared", func() bool { return !alarmed(t, client) })
	l.await(t, s, &l.acked, 100)

	// A graceful stop on a full disk does not change the store.
	fill = startFiller(t, filepath.Join(dir, "filler"))
	await(t, s, "the disk is full", func() bool { return free(t, dir) == 0 })
	l.await(t, s, &l.deleted, 100)
	l.stop()
	if err := s.Stop(t.Context()); err != nil {
		t.Fatalf("stop: %v\n%s", err, s.Log())
	}
	fill.stop()
	s = Serve(t, cfg)
	l.client = dial(t, s)
	l.check(t)
	if resp, err := l.client.Get(t.Context(), "long/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || resp.Count != 0 {
		t.Errorf("deleted keys are back: %v, %v", resp, err)
	}
}

// longKeys puts keys that are far longer than the range that deletes them.
func longKeys(t *testing.T, client *clientv3.Client) (n int64) {
	t.Helper()
	for range 300 {
		var puts []clientv3.Op
		for range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("long/%0*d", 1<<10, n), ""))
			n++
		}
		if _, err := client.Txn(t.Context()).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// again runs this test in a process with its own mount namespace.
func again(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), inNamespace+"=1", builtBinary+"="+Build(t, false), "ETCD_CLIENT_DEBUG=fatal")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func mount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, smallDisk); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the end of the process unmounts it too
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func await(t *testing.T, s *Server, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if s.State() != nil || time.Now().After(end) {
			t.Fatalf("still waiting until %s; the server: %v\n%s", what, s.State(), s.Log())
		}
	}
}

func dial(t *testing.T, s *Server) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Addr()}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func alarmed(t *testing.T, client *clientv3.Client) bool {
	t.Helper()
	resp, err := client.AlarmList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(resp.Alarms, func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_NOSPACE })
}

// compact compacts at the newest revision.
func compact(t *testing.T, client *clientv3.Client) {
	t.Helper()
	resp, err := client.Get(t.Context(), "none")
	if err == nil {
		_, err = client.Compact(t.Context(), resp.Header.Revision)
	}
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatal(err)
	}
}

// filler fills the disk, like another process.
type filler struct {
	t    *testing.T
	f    *os.File
	ctx  context.Context
	end  context.CancelFunc
	done chan struct{}

	mu sync.Mutex // one write at a time
	at int64      // guarded by mu
}

func startFiller(t *testing.T, path string) *filler {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	fill := &filler{t: t, f: f, done: make(chan struct{})}
	fill.ctx, fill.end = context.WithCancel(t.Context())
	go fill.run() // ends with stop, or with the test
	return fill
}

func (f *filler) run() {
	defer close(f.done)
	tick := time.NewTicker(time.Second * fillStep / fillRate)
	defer tick.Stop()
	for f.ctx.Err() == nil {
		f.step()
		<-tick.C
	}
}

// step fills the rest of the disk, by a step at most.
func (f *filler) step() {
	f.mu.Lock()
	defer f.mu.Unlock()
	var block [4096]byte
	for n := 0; n < fillStep; n += len(block) {
		if _, err := f.f.WriteAt(block[:], f.at); err != nil {
			return // full
		}
		f.at += int64(len(block))
	}
}

// stop frees the space.
func (f *filler) stop() {
	f.end()
	<-f.done
	if err := errors.Join(os.Remove(f.f.Name()), f.f.Close()); err != nil {
		f.t.Fatal(err)
	}
}

// spaceLoad is a number of clients that put and delete, each with its own keys.
type spaceLoad struct {
	client                  *clientv3.Client
	end                     context.CancelFunc
	wg                      sync.WaitGroup
	acked, refused, deleted atomic.Int64

	mu  sync.Mutex
	may map[string][]string // possible values of each key, "" for none
	bad []error
}

const (
	spaceClients = 16
	spaceKeys    = 20       // of each
	spaceValue   = 16 << 10 // bytes
)

func fillLoad(client *clientv3.Client) *spaceLoad {
	l := &spaceLoad{client: client, may: map[string][]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	l.end = cancel
	for i := range spaceClients {
		l.wg.Go(func() { l.run(ctx, i) })
	}
	return l
}

func (l *spaceLoad) run(ctx context.Context, client int) {
	may := map[string][]string{}
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("space/%d/%d", client, n%spaceKeys)
		if may[key] == nil {
			resp, err := l.client.Get(ctx, key)
			if err != nil {
				l.complain(ctx, err)
				continue
			}
			may[key] = []string{""}
			for _, kv := range resp.Kvs {
				may[key] = []string{string(kv.Value)}
			}
		}
		if n%7 == 0 {
			_, err := l.client.Delete(ctx, key)
			may[key] = l.outcome(ctx, may[key], "", err, &l.deleted)
			continue
		}
		value := fmt.Sprintf("%0*d", spaceValue, n)
		_, err := l.client.Put(ctx, key, value)
		may[key] = l.outcome(ctx, may[key], value, err, &l.acked)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, v := range may {
		l.may[k] = v
	}
}

// outcome returns the possible values of a key after a call that sets it to value.
func (l *spaceLoad) outcome(ctx context.Context, may []string, value string, err error, done *atomic.Int64) []string {
	switch {
	case err == nil:
		done.Add(1)
		return []string{value}
	case errors.Is(err, rpctypes.ErrNoSpace):
		l.refused.Add(1)
		return may
	}
	l.complain(ctx, err)
	return append(slices.Clone(may), value)
}

// complain records an error that a full disk does not explain.
func (l *spaceLoad) complain(ctx context.Context, err error) {
	if ctx.Err() == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.bad = append(l.bad, err)
	}
}

// await waits until some more calls of the load have one outcome.
func (l *spaceLoad) await(t *testing.T, s *Server, counter *atomic.Int64, n int64) {
	t.Helper()
	want := counter.Load() + n
	await(t, s, fmt.Sprintf("there is more than %d acknowledged, %d refused, %d deleted",
		l.acked.Load(), l.refused.Load(), l.deleted.Load()), func() bool { return counter.Load() >= want })
}

func (l *spaceLoad) stop() {
	l.end()
	l.wg.Wait()
}

func (l *spaceLoad) check(t *testing.T) {
	t.Helper()
	for _, err := range l.bad {
		t.Errorf("a client got %v", err)
	}
	for key, may := range l.may {
		resp, err := l.client.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, kv := range resp.Kvs {
			got = string(kv.Value)
		}
		if !slices.Contains(may, got) {
			t.Errorf("%s holds %.40q, it may hold %.40q", key, got, may)
		}
	}
}
