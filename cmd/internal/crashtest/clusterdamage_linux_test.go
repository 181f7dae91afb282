package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
			c.flip(victim, coldKeys/2)
			c.awaitHealed(victim, began)
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

// flip flips a bit of the value of a cold key in a member's store.
func (c *cluster) flip(m *clusterMember, key int) {
	c.Helper()
	text := []byte(coldValue(key))
	for end := time.Now().Add(readyTimeout); time.Now().Before(end); <-time.After(failedPause) { // until it is in the store
		files, err := filepath.Glob(filepath.Join(m.cfg.DataDir, "member", "db*", "*.vlog"))
		if err != nil {
			c.Fatal(err)
		}
		for _, path := range files {
			content, err := os.ReadFile(path)
			at := bytes.LastIndex(content, text) // of the last version of the pack
			if err != nil || at < 0 {
				continue
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				c.Fatal(err)
			}
			at += len(text) / 2
			_, err = f.WriteAt([]byte{content[at] ^ 4}, int64(at))
			if err = errors.Join(err, f.Close()); err != nil {
				c.Fatal(err)
			}
			return
		}
	}
	c.Fatalf("no file of %s has the value of %s", m.name, coldKey(key))
}

// awaitHealed waits until an alarm names the member, and no other, and then until it is
// cleared and the member serves.
func (c *cluster) awaitHealed(m *clusterMember, began time.Time) {
	c.Helper()
	healedMax := healedLoose
	if *faultStrict {
		healedMax = healedStrict
	}
	ctx, cancel := context.WithDeadline(c.Context(), began.Add(healedMax))
	defer cancel()
	other := c.members[(slices.Index(c.members, m)+1)%len(c.members)]
	for _, active := range []bool{true, false} {
		for {
			resp, err := other.client.AlarmList(ctx)
			if ctx.Err() != nil {
				c.Fatalf("after %v: alarms %v, %v; want an alarm for %x: %v", time.Since(began), resp, err, m.id, active)
			}
			named := err == nil && slices.ContainsFunc(resp.Alarms, func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_CORRUPT && a.MemberID == m.id })
			if err == nil && (len(resp.Alarms) > 1 || len(resp.Alarms) == 1 && !named) {
				c.Fatalf("alarms: got %v, want none but CORRUPT for %x", resp.Alarms, m.id)
			}
			if err == nil && named == active {
				break
			}
			<-time.After(coldPause)
		}
	}
	c.what = "after the alarm"
	c.serves(m, outageMax())
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
	for i := range coldKeys {
		if _, err := c.members[0].client.Put(ctx, coldKey(i), coldValue(i)); err != nil {
			c.Fatal(err)
		}
	}
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
