package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/grpcgw"
)

const (
	coldKeys = 300
	// healedStrict is the longest time from the damage until the member has healed. Without
	// -fault-strict it is healedLoose.
	healedStrict, healedLoose = time.Minute, 4 * time.Minute
	// coldPause is the pause of a reader of cold keys.
	coldPause = 2 * time.Millisecond
)

func coldKey(i int) string { return fmt.Sprintf("cold/%06d", i) }

// coldValue is found in a file of the store by its text.
func coldValue(i int) string { return strings.Repeat(fmt.Sprintf("value-%06d;", i), 300) }

// coldArgs are flags of members that read most cold keys from the store, and to which a
// snapshot of them takes some seconds, so that the alarm can be seen.
var coldArgs = []string{"--cache-bytes=65536", "--snapshot-send-rate=400000"}

// TestClusterDamage: one flipped byte in a pack of one member of three, under load. No client
// sees an error after retrying. An alarm names the member, which heals by itself; then the
// alarm is gone, and all members have equal hashes.
func TestClusterDamage(t *testing.T) {
	t.Parallel() // it mostly waits
	binary := Build(t, false)
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprint("leads=", leads), func(t *testing.T) {
			if leads {
				onlyLong(t)
			}
			t.Parallel()
			c := startCluster(t, binary, 3, coldArgs, nil)
			l := startColdLoad(c)
			victim := c.leader()
			if !leads {
				victim = c.members[(slices.Index(c.members, victim)+1)%len(c.members)]
			}
			l.awaitReads(100)
			began := time.Now()
			healed := c.awaitHealed(victim, began) // the alarm may be gone when all copies are flipped
			c.flip(victim, coldKeys/2)
			if err := <-healed; err != nil {
				t.Fatal(err)
			}
			c.what = "after the alarm"
			c.serves(victim, outageMax())
			l.awaitReads(100)
			l.stop()
			resp, err := victim.client.Get(t.Context(), "cold/", clientv3.WithPrefix())
			if err != nil || len(resp.Kvs) != coldKeys {
				t.Fatalf("got %d cold keys, %v, want %d", len(resp.Kvs), err, coldKeys)
			}
			c.sameHash(resp.Header.Revision)
			t.Logf("healed after %v; %d reads and %d writes, of which %d were tried again", time.Since(began), l.reads.Load(), l.writes.Load(), l.retries.Load())
		})
	}
}

// flip flips a bit of the value of a cold key in a member's store, in every copy of it: the
// store also has packs that were rewritten, which nobody reads.
func (c *cluster) flip(m *clusterMember, key int) {
	c.Helper()
	for end := time.Now().Add(readyTimeout); time.Now().Before(end); <-time.After(failedPause) { // until it is in the store
		if c.flipIn(filepath.Join(m.cfg.DataDir, "member", "db*", "*"), []byte(coldValue(key)), 0) > 0 {
			return
		}
	}
	c.Fatalf("no file of %s has the value of %s", m.name, coldKey(key))
}

// flipIn flips a bit in the middle of each occurrence of a text in files, of the first so many
// ones unless most is 0. It returns their number.
func (c *cluster) flipIn(pattern string, text []byte, most int) (flipped int) {
	c.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		c.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // it was removed, or is a folder
		}
		for at := bytes.Index(content, text); at >= 0 && (most == 0 || flipped < most); {
			if err := flipByte(path, int64(at+len(text)/2)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				c.Fatal(err)
			}
			flipped++
			next := bytes.Index(content[at+len(text):], text)
			if next < 0 {
				break
			}
			at += len(text) + next
		}
	}
	return flipped
}

func flipByte(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	if _, err = f.ReadAt(b[:], at); err == nil {
		_, err = f.WriteAt([]byte{b[0] ^ 4}, at)
	}
	return errors.Join(err, f.Close())
}

// putCold writes the cold keys.
func (c *cluster) putCold(ctx context.Context, client *clientv3.Client) {
	c.Helper()
	const perTxn = 100 // below the default limit of 128
	for first := 0; first < coldKeys; first += perTxn {
		var puts []clientv3.Op
		for i := first; i < min(first+perTxn, coldKeys); i++ {
			puts = append(puts, clientv3.OpPut(coldKey(i), coldValue(i)))
		}
		if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
			c.Fatal(err)
		}
	}
}

// damageStore flips a bit in a pack of a member, and reads until that was noticed.
func (c *cluster) damageStore(m *clusterMember) {
	c.Helper()
	m.damaged, m.store = true, m.current()
	c.flip(m, coldKeys/2)
	for end := time.Now().Add(noticeTimeout); !c.readOwn(m); {
		if m.current() != m.store {
			return // a snapshot that it needed for another reason has replaced the store
		}
		if time.Now().After(end) {
			c.Fatalf("%s: the damaged value of %s was read for %v without an error", m.name, coldKey(coldKeys/2), noticeTimeout)
		}
	}
}

// readOwn reads all cold keys from the member's own store, without retries. It reports whether
// one is damaged.
func (c *cluster) readOwn(m *clusterMember) (damaged bool) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), noticeTimeout)
	defer cancel()
	kv := pb.NewKVClient(m.client.ActiveConnection())
	for i := range coldKeys {
		resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(coldKey(i)), Serializable: true})
		switch {
		case errors.Is(err, grpcgw.ErrDamaged):
			return true
		case err == nil && (len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != coldValue(i)):
			c.Fatalf("%s: get %s at revision %d: got %d keys, or another value", m.name, coldKey(i), resp.Header.Revision, len(resp.Kvs))
		}
	}
	return false
}

// current returns the content of the file that names the folder of the member's store.
func (m *clusterMember) current() string {
	content, _ := os.ReadFile(filepath.Join(m.cfg.DataDir, "member", "CURRENT")) // the first store needs no such file
	return string(content)
}

// awaitMended waits until a member whose store is damaged has got another one, and its alarm is
// cleared.
func (c *cluster) awaitMended(m *clusterMember) {
	c.Helper()
	began := time.Now()
	var alarms []*pb.AlarmMember
	for end := began.Add(healedMax()); time.Now().Before(end); <-time.After(failedPause) {
		if m.server.State() != nil {
			c.Fatalf("%s: %s ended by itself: %v", c.what, m.name, m.server.State())
		}
		if m.current() == m.store {
			c.readOwn(m) // it may have been restarted before it noticed
			continue
		}
		ctx, cancel := context.WithTimeout(c.Context(), time.Second)
		resp, err := m.client.AlarmList(ctx)
		cancel()
		if err == nil && !slices.ContainsFunc(resp.Alarms, func(a *pb.AlarmMember) bool { return a.MemberID == m.id }) {
			m.damaged, m.mended = false, time.Now()
			return
		}
		if err == nil {
			alarms = resp.Alarms
		}
	}
	c.Fatalf("%s: %s has not got another store within %v; alarms %v", c.what, m.name, time.Since(began), alarms)
}

// damageLog flips a bit in the log of a member while it does not run. The member must refuse to
// start: what it has acknowledged may be damaged, so it has no vote until it was replaced.
func (f *faults) damageLog(m *clusterMember) {
	f.Helper()
	f.awaitServing(m) // then its log has a write of a probe
	f.kill(m)
	if f.flipIn(filepath.Join(m.cfg.DataDir, "member", "wal", "*.wal"), []byte("probe/"), 1) == 0 {
		f.Fatalf("the log of %s has no write of a probe", m.name)
	}
	f.launch(m)
	ctx, cancel := context.WithTimeout(f.Context(), readyTimeout)
	defer cancel()
	if err := m.server.Ready(ctx); !errors.Is(err, ErrExited) || !strings.Contains(m.server.Log(), "wal: corrupt") {
		f.Fatalf("%s: %s with a damaged log: got %v, want it to end, and to say that the log is corrupt\n%s", f.what, m.name, err, m.server.Log())
	}
	f.kill(m) // closes its port
	f.replaceEnded(m, f.change)
	f.readdress()
}

// healedMax is the longest time until a damaged member has healed.
func healedMax() time.Duration {
	if *faultStrict {
		return healedStrict
	}
	return healedLoose
}

// awaitHealed starts to wait until an alarm names the member, and no other, and then until it is
// cleared. The channel receives nil then, or an error.
func (c *cluster) awaitHealed(m *clusterMember, began time.Time) <-chan error {
	ctx, cancel := context.WithDeadline(c.Context(), began.Add(healedMax()))
	other := c.members[(slices.Index(c.members, m)+1)%len(c.members)]
	healed := make(chan error, 1)
	go func() {
		defer cancel()
		for _, active := range []bool{true, false} {
			for {
				resp, err := other.client.AlarmList(ctx)
				if ctx.Err() != nil {
					healed <- fmt.Errorf("after %v: alarms %v, %w; want an alarm for %x: %v", time.Since(began), resp, err, m.id, active)
					return
				}
				named := err == nil && slices.ContainsFunc(resp.Alarms, func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_CORRUPT && a.MemberID == m.id })
				if err == nil && (len(resp.Alarms) > 1 || len(resp.Alarms) == 1 && !named) {
					healed <- fmt.Errorf("alarms: got %v, want none but CORRUPT for %x", resp.Alarms, m.id)
					return
				}
				if err == nil && named == active {
					break
				}
				<-time.After(coldPause)
			}
		}
		healed <- nil
	}()
	return healed
}

// coldLoad is clients of all members, and of each one, that read cold keys and write others.
type coldLoad struct {
	t                      testing.TB
	cancel                 context.CancelFunc
	ended                  sync.WaitGroup
	reads, writes, retries atomic.Int64
}

// startColdLoad writes the cold keys and starts the clients.
func startColdLoad(c *cluster) *coldLoad {
	c.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &coldLoad{t: c, cancel: cancel}
	c.Cleanup(l.stop)
	c.putCold(ctx, c.members[0].client)
	clients := []*clientv3.Client{dialAll(c, c.addrs()...)}
	for _, m := range c.members {
		clients = append(clients, dialAll(c, m.cfg.Client))
	}
	for n, client := range clients {
		l.ended.Go(func() { l.read(ctx, client, n*coldKeys/len(clients), n == 0) })
		l.ended.Go(func() { l.write(ctx, client, n) })
	}
	return l
}

// read reads one cold key after another. With all members as endpoints, clientv3 retries by
// itself and no error may be left; the other clients retry what permits it.
func (l *coldLoad) read(ctx context.Context, client *clientv3.Client, first int, all bool) {
	for i := first; ctx.Err() == nil; {
		key := i % coldKeys
		resp, err := client.Get(ctx, coldKey(key))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !all && isUnavailable(err):
			l.retries.Add(1)
		case err != nil:
			l.t.Errorf("get %s: %v", coldKey(key), err)
			return
		case len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != coldValue(key):
			l.t.Errorf("get %s: got %d keys, or another value", coldKey(key), len(resp.Kvs))
			return
		default:
			l.reads.Add(1)
			i++
		}
		<-time.After(coldPause)
	}
}

func (l *coldLoad) write(ctx context.Context, client *clientv3.Client, n int) {
	for i := 0; ctx.Err() == nil; i++ {
		_, err := client.Put(ctx, fmt.Sprintf("warm/%d", n), fmt.Sprint(i))
		switch {
		case err == nil:
			l.writes.Add(1)
		case ctx.Err() != nil:
		case isUnavailable(err):
			l.retries.Add(1)
		default:
			l.t.Errorf("put: %v", err)
			return
		}
		<-time.After(coldPause)
	}
}

// isUnavailable reports whether an error permits another attempt.
func isUnavailable(err error) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e) && e.Code() == codes.Unavailable || status.Code(err) == codes.Unavailable
}

// awaitReads waits until n more reads and n more writes have succeeded.
func (l *coldLoad) awaitReads(n int64) {
	l.t.Helper()
	reads, writes := l.reads.Load()+n, l.writes.Load()+n
	for end := time.Now().Add(readyTimeout); l.reads.Load() < reads || l.writes.Load() < writes; <-time.After(failedPause) {
		if time.Now().After(end) {
			l.t.Fatalf("got %d reads and %d writes, want %d and %d", l.reads.Load(), l.writes.Load(), reads, writes)
		}
	}
}

func (l *coldLoad) stop() {
	l.cancel()
	l.ended.Wait()
}
