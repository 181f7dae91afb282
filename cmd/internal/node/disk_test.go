package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestDiskGuard: when the disk is nearly full, puts are refused while reads,
// deletes and compaction go on; when space is back, so are puts. The ballast is
// given up in between.
func TestDiskGuard(t *testing.T) {
	var free atomic.Uint64
	free.Store(10 << 30)
	dir := t.TempDir()
	m := startMember(t, dir, func(c *Config) {
		c.FreeSpace = func(string) (uint64, error) { return free.Load(), nil }
	})
	defer m.shut()
	ballast := filepath.Join(dir, "member", "ballast")
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); {
			if time.Now().After(end) {
				t.Fatalf("still waiting until %s", what)
			}
		}
	}
	exists := func() bool { _, err := os.Stat(ballast); return err == nil }
	refused := func() bool {
		_, err := m.client.Put(context.Background(), "probe", "")
		return errors.Is(err, rpctypes.ErrNoSpace)
	}
	await("there is a ballast", exists)
	m.put("a", "1")
	m.put("a", "2")

	free.Store(32 << 20)
	await("puts are refused", refused)
	await("the ballast is gone", func() bool { return !exists() })
	alarms, err := m.client.AlarmList(context.Background())
	if err != nil || len(alarms.Alarms) != 1 {
		t.Fatalf("alarms %v (%v)", alarms, err)
	}
	if got := m.get("a"); got != "2" {
		t.Fatalf("a is %q", got)
	}
	if _, err := m.client.Compact(context.Background(), 3, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.Delete(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	// Disarming does not make space: the guard raises the alarm again.
	if _, err := m.client.AlarmDisarm(context.Background(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	await("puts are refused again", refused)

	free.Store(10 << 30)
	await("puts are accepted", func() bool { return !refused() })
	await("the ballast is back", exists)
}
