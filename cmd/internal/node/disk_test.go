package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// fullDisk is a file system that cannot create files while there is little free space.
type fullDisk struct {
	wal.OSFS
	free *atomic.Uint64
}

func (d fullDisk) Create(path string) (wal.File, error) {
	if d.free.Load() < 64<<20 {
		return nil, syscall.ENOSPC
	}
	return d.OSFS.Create(path)
}

// TestDiskGuard: when the disk is nearly full, puts are refused and the ballast is released,
// while reads, deletes and compactions succeed. When there is space again, puts succeed and
// the ballast is created.
func TestDiskGuard(t *testing.T) {
	var free atomic.Uint64
	free.Store(10 << 30)
	dir := t.TempDir()
	m := startMember(t, dir, func(c *Config) {
		c.FreeSpace = func(string) (uint64, error) { return free.Load(), nil }
		c.FS, c.Storage.LogSegmentBytes = fullDisk{free: &free}, 1<<20
	})
	defer m.shut()
	ballast := filepath.Join(dir, "member", "ballast")
	exists := func() bool { _, err := os.Stat(ballast); return err == nil }
	refused := func() bool {
		_, err := m.client.Put(context.Background(), "probe", "")
		return errors.Is(err, rpctypes.ErrNoSpace)
	}
	spares := func() int { return m.host.Current().Log.Spares() }
	await := m.eventually
	await("there is a ballast", exists)
	await("the log has spare segments", func() bool { return spares() > 0 })
	m.put("a", "1")
	m.put("a", "2")

	free.Store(32 << 20)
	await("puts are refused", refused)
	await("the ballast is released", func() bool { return !exists() })
	alarms, err := m.client.AlarmList(context.Background())
	if err != nil || len(alarms.Alarms) != 1 {
		t.Fatalf("got alarms %v (%v), want one", alarms, err)
	}
	if got := m.get("a"); got != "2" {
		t.Fatalf("a: got %q, want 2", got)
	}
	if _, err := m.client.Compact(context.Background(), 3, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.Delete(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	// Disarming does not free space, so the guard raises the alarm again.
	if _, err := m.client.AlarmDisarm(context.Background(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	await("puts are refused again", refused)

	// Changes stay in the log, which accepts what fits into its segments.
	await("the log is full", func() bool {
		_, err := m.client.Delete(context.Background(), strings.Repeat("x", 100<<10))
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
	if spares() != 0 {
		t.Errorf("got %d spare segments when deletes are refused, want none", spares())
	}
	m.get("a")

	free.Store(10 << 30)
	await("puts are accepted", func() bool { return !refused() })
	await("the ballast is back", exists)
}

// TestSmallDiskGuard: a small member has small limits of free space.
func TestSmallDiskGuard(t *testing.T) {
	var free atomic.Uint64
	free.Store(150 << 20) // below the usual limit
	dir := t.TempDir()
	m := startMember(t, dir, func(c *Config) {
		c.Small = true
		c.FreeSpace = func(string) (uint64, error) { return free.Load(), nil }
	})
	defer m.shut()
	m.eventually("there is a ballast", func() bool {
		info, err := os.Stat(filepath.Join(dir, "member", "ballast"))
		return err == nil && info.Size() == smallSizes.ballast
	})
	m.put("a", "1")
	free.Store(smallSizes.diskLow - 1)
	m.eventually("puts are refused", func() bool {
		_, err := m.client.Put(context.Background(), "a", "2")
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
	free.Store(smallSizes.diskEnough + 8<<20) // room for the tables
	m.eventually("puts are accepted", func() bool {
		_, err := m.client.Put(context.Background(), "a", "3")
		return err == nil
	})

	c := Config{DataDir: t.TempDir(), Small: true, ClusterID: 1, MemberID: 2, Heartbeat: 1, Election: 5, Exit: func(error) {},
		Members: []*applymsg.Member{{Id: 2}}, Mailboxes: DefaultMailboxes()}
	c.Gateway.MaxRequestBytes = smallSizes.request + 1
	if err := c.validate(); err == nil || !strings.Contains(err.Error(), "--max-request-bytes") {
		t.Errorf("got %v, want an error for a request larger than a pack", err)
	}
	for name, s := range map[string]*sizes{"usual": &usualSizes, "small": &smallSizes} {
		if s.ballast < int64(s.diskReserve) || s.diskLow <= s.diskReserve || s.diskEnough <= s.diskLow || int64(s.request) >= s.valueLog/2 {
			t.Errorf("inconsistent %s sizes: %+v", name, *s)
		}
	}
}

// TestRebootOnFullDisk: a core that reboots while the disk is full waits for room, while
// reads are served, and then serves again. While it waits, the member can be stopped.
func TestRebootOnFullDisk(t *testing.T) {
	for _, stop := range []bool{false, true} {
		t.Run(fmt.Sprintf("stop=%v", stop), func(t *testing.T) {
			t.Parallel()
			var free atomic.Uint64
			free.Store(10 << 30)
			dir := t.TempDir()
			m := startMember(t, dir, func(c *Config) {
				c.FreeSpace = func(string) (uint64, error) { return free.Load(), nil }
			})
			m.put("a", "1")
			m.eventually("the log has spare segments", func() bool { return m.host.Current().Log.Spares() > 0 })
			free.Store(1 << 20)
			m.eventually("the alarm is raised", func() bool {
				resp, err := m.client.AlarmList(context.Background())
				return err == nil && len(resp.Alarms) == 1
			})
			m.Faults().Arm(actors.CoreApply, "entry", 1)
			if _, err := m.client.Delete(context.Background(), "a"); !errors.Is(err, rpctypes.ErrStopped) {
				t.Fatalf("delete: got %v, want %v", err, rpctypes.ErrStopped)
			}
			for range 10 {
				resp, err := m.client.Get(context.Background(), "a", clientv3.WithSerializable())
				if err != nil || len(resp.Kvs) != 1 {
					t.Fatalf("read during the reboot: got %v, %v, want one pair", resp, err)
				}
			}
			if n := m.core.Restarts(); n != 0 {
				t.Fatalf("got %d reboots on a full disk, want none", n)
			}
			if !stop {
				free.Store(10 << 30)
				m.eventually("it serves again", func() bool {
					_, err := m.client.Put(context.Background(), "b", "2")
					return err == nil
				})
			}
			m.shut()
		})
	}
}
