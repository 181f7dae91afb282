package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/mvccactor/backend"
)

// damaged is a member whose store has one bad pack, which it has not found yet.
type damaged struct {
	*testMember
	log  *lines
	dir  string
	file string // with the bad pack
}

const damagedKeys = 300

func damagedValue(i int) string { return strings.Repeat(fmt.Sprintf("value-%06d;", i), 300) }

// damage starts a member with more data than it keeps in memory, and flips a bit in the
// value of a key on disk.
func damage(t *testing.T, key int, change func(*Config)) *damaged {
	t.Helper()
	d := &damaged{log: new(lines), dir: t.TempDir()}
	d.testMember = startMember(t, d.dir, func(c *Config) {
		c.Logger, c.CacheBytes = newLogger(d.log), 64<<10
		if change != nil {
			change(c)
		}
	})
	for i := range damagedKeys {
		d.put(fmt.Sprint(i), damagedValue(i))
	}
	d.eventually("the packs are in the store", func() bool {
		d.put("tick", "") // publishes the new resident size
		return d.host.Published.View().Sizes.Resident < 256<<10
	})
	d.flip([]byte(damagedValue(key)))
	return d
}

// flip changes a byte in the middle of a text in the value logs.
func (d *damaged) flip(text []byte) {
	d.t.Helper()
	files, err := filepath.Glob(filepath.Join(d.cfg.DataDir, "member", "db", "*.vlog"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			d.t.Fatal(err)
		}
		// The last occurrence counts: a tail pack is written several times.
		at := bytes.LastIndex(content, text)
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			d.t.Fatal(err)
		}
		defer f.Close()
		at += len(text) / 2
		if _, err := f.WriteAt([]byte{content[at] ^ 4}, int64(at)); err != nil {
			d.t.Fatal(err)
		}
		d.file = filepath.Base(path)
		return
	}
	d.t.Fatal("no file has the value")
}

// wantReported waits for the alarm, and checks that log and /readyz show the damage.
func (d *damaged) wantReported() {
	d.t.Helper()
	d.eventually("the alarm is raised", func() bool {
		alarms, err := d.client.AlarmList(d.t.Context())
		return err == nil && len(alarms.Alarms) == 1 && alarms.Alarms[0].Alarm == pb.AlarmType_CORRUPT &&
			alarms.Alarms[0].MemberID == d.cfg.MemberID
	})
	const message = "the store is corrupt"
	if pack, file := d.log.last(message, "pack"), d.log.last(message, "file"); pack == nil || file != d.file {
		d.t.Errorf("log: got pack %v in file %v, want a pack in %s", pack, file, d.file)
	}
	if _, text := d.http("/readyz"); !strings.Contains(text, "[-]data_corruption failed") || !strings.Contains(text, "[-]corruption failed") {
		d.t.Errorf("/readyz: got %s, want data_corruption and corruption failed", text)
	}
	if _, text := d.http("/metrics"); !strings.Contains(text, `troupe_member_trouble{check="corruption"} 1`) {
		d.t.Error("the metrics lack the trouble, want 1 for the check corruption")
	}
	if _, err := d.client.Put(d.t.Context(), "x", "y"); !errors.Is(err, rpctypes.ErrCorrupt) {
		d.t.Errorf("put: got %v, want %v", err, rpctypes.ErrCorrupt)
	}
}

// TestCorruptRead: a read of damaged data fails, every time. Other reads succeed. The log,
// the alarm and /readyz show the damage, and the member does not start with it.
func TestCorruptRead(t *testing.T) {
	t.Parallel()
	const victim = 100
	d := damage(t, victim, nil)
	if _, err := d.client.Get(t.Context(), fmt.Sprint(victim)); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("get of the damaged key: got %v, want %v", err, rpctypes.ErrCorrupt)
	}
	d.wantReported()
	bad := 0
	for i := range damagedKeys {
		resp, err := d.client.Get(t.Context(), fmt.Sprint(i))
		switch {
		case errors.Is(err, rpctypes.ErrCorrupt):
			bad++ // in the same pack
		case err != nil:
			t.Fatal(err)
		case string(resp.Kvs[0].Value) != damagedValue(i):
			t.Fatalf("key %d: got %.20q, want %.20q", i, resp.Kvs[0].Value, damagedValue(i))
		}
	}
	if bad == 0 || bad > 32<<10/len(damagedValue(0)) {
		t.Errorf("got %d damaged keys, want those of one pack", bad)
	}
	for range 2 {
		if _, err := d.client.Get(t.Context(), "", clientv3.WithPrefix()); !errors.Is(err, rpctypes.ErrCorrupt) {
			t.Errorf("range with the damaged key: got %v, want %v", err, rpctypes.ErrCorrupt)
		}
	}
	if resp, err := d.client.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithKeysOnly()); err != nil || resp.Count != damagedKeys+1 {
		t.Errorf("range of keys only: got %v, %v, want %d keys", resp, err, damagedKeys+1)
	}
	d.shut()

	n, err := New(t.Context(), d.cfg)
	if err == nil {
		_ = n.Stop(t.Context())
		t.Fatal("the member starts with a bad pack")
	}
	var c *backend.CorruptError
	if !errors.As(err, &c) || c.File != d.file || c.Pack == (backend.PackID{}) {
		t.Errorf("start: got %v, want a bad pack in %s", err, d.file)
	}
}

// TestCorruptHash: HashKV and Hash fail if there is damage, and report it.
func TestCorruptHash(t *testing.T) {
	d := damage(t, 150, nil)
	defer d.shut()
	if _, err := d.client.HashKV(t.Context(), d.cfg.Listeners[0].Addr().String(), 0); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("HashKV: got %v, want %v", err, rpctypes.ErrCorrupt)
	}
	_, err := pb.NewMaintenanceClient(d.client.ActiveConnection()).Hash(t.Context(), &pb.HashRequest{})
	if !errors.Is(rpctypes.Error(err), rpctypes.ErrCorrupt) {
		t.Errorf("Hash: got %v, want %v", err, rpctypes.ErrCorrupt)
	}
	d.wantReported()
}

// TestScrub: the scrubber finds damage in data that is not read.
func TestScrub(t *testing.T) {
	d := damage(t, 200, func(c *Config) { c.ScrubPeriod = time.Second })
	defer d.shut()
	d.wantReported()
	if _, text := d.http("/metrics"); !strings.Contains(text, "troupe_scrub_packs_total") {
		t.Error("no metrics of the scrubber")
	}
	// The alarm is raised again after it is disarmed, because the damage is still there.
	if _, err := d.client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	d.wantReported()
}
