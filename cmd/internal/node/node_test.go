package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// smallFiles are those of a member that has little to store. With the usual sizes, each start
// fills some 200 MiB of the log with zeros, and each restart reads and writes a third of that.
var smallFiles = core.Storage{LogSegmentBytes: 4 << 20, ValueLogBytes: 16 << 20}

// testMember is a member on a loopback port, and a client of it.
type testMember struct {
	*Node
	t      *testing.T
	cfg    Config
	client *clientv3.Client
}

func startMember(t *testing.T, dir string, change func(*Config)) *testMember {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Name: "default", PeerURLs: []string{"http://localhost:2380"}, ClusterID: 1, MemberID: 2,
		Members:   []*applymsg.Member{{Id: 2, PeerUrls: []string{"http://localhost:2380"}}},
		DataDir:   dir,
		Heartbeat: 100 * time.Millisecond, Election: time.Second, PreVote: true,
		Mailboxes: DefaultMailboxes(), CacheBytes: 16 << 20,
		Storage:   smallFiles,
		Listeners: []net.Listener{l},
		Gateway:   grpcgw.DefaultConfig(),
		Logger:    zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel),
		Faults:    actors.NewFaults(),
		Exit:      func(reason error) { t.Errorf("exit: %v", reason) },
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := &testMember{Node: n, t: t, cfg: cfg}
	select {
	case <-n.Ready():
	case <-time.After(time.Minute):
		t.Fatal("not ready")
	}
	m.client, err = clientv3.New(clientv3.Config{Endpoints: []string{l.Addr().String()}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *testMember) shut() {
	m.t.Helper()
	m.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		m.t.Error(err)
	}
}

func (m *testMember) put(key, value string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := m.client.Put(ctx, key, value); err != nil {
		m.t.Fatal(err)
	}
}

func (m *testMember) get(key string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := m.client.Get(ctx, key)
	if err != nil {
		m.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// TestRestart: writes survive a restart, here with files of the usual sizes.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	usual := func(c *Config) { c.Storage = core.Storage{} }
	m := startMember(t, dir, usual)
	for i := range 100 {
		m.put(fmt.Sprintf("k%d", i), fmt.Sprint(i))
	}
	m.shut()
	m = startMember(t, dir, usual)
	defer m.shut()
	for i := range 100 {
		if got := m.get(fmt.Sprintf("k%d", i)); got != fmt.Sprint(i) {
			t.Fatalf("k%d: got %q, want %d", i, got, i)
		}
	}
}

// TestStopCutsStreams: the member stops without an error while a client has a stream open.
func TestStopCutsStreams(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	stream, err := healthpb.NewHealthClient(m.client.ActiveConnection()).Watch(context.Background(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	m.client.Close()
}

// TestBrowserAccess: the member's settings of origins and hosts hold on its client port.
func TestBrowserAccess(t *testing.T) {
	const origin = "http://a.example"
	m := startMember(t, t.TempDir(), func(c *Config) {
		c.CORS, c.HostWhitelist = []string{origin}, []string{"127.0.0.1"}
	})
	defer m.shut()
	addr := m.cfg.Listeners[0].Addr().String()
	for _, tc := range []struct {
		host, origin string
		status       int
		allow        string
	}{
		{addr, origin, http.StatusOK, origin},
		{addr, "http://b.example", http.StatusOK, ""},
		{"b.example", origin, http.StatusMisdirectedRequest, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, "http://"+addr+"/version", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tc.host
		req.Header.Set("Origin", tc.origin)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if allow := resp.Header.Get("Access-Control-Allow-Origin"); resp.StatusCode != tc.status || allow != tc.allow {
			t.Errorf("host %s, origin %s: got %d and the origin %q, want %d and %q", tc.host, tc.origin, resp.StatusCode, allow, tc.status, tc.allow)
		}
	}
}

// TestSettingsOfHTTP: the member's settings of profiles and of slow applies have an effect
// on its pages.
func TestSettingsOfHTTP(t *testing.T) {
	for _, given := range []bool{true, false} {
		m := startMember(t, t.TempDir(), func(c *Config) {
			if c.Pprof, c.SlowApply = given, time.Hour; given {
				c.SlowApply = time.Nanosecond
			}
		})
		m.put("k", "v")
		if code, _ := m.http("/debug/pprof/cmdline"); (code == http.StatusOK) != given {
			t.Errorf("with profiles %v: got status %d", given, code)
		}
		if _, text := m.http("/metrics"); strings.Contains(text, "etcd_server_slow_apply_total 0\n") == given {
			t.Errorf("with every apply slow %v: got slow applies %v, want %v", given, !given, given)
		}
		m.shut()
	}
}

// TestOtherMember: the data of another member is refused, and not changed.
func TestOtherMember(t *testing.T) {
	dir := t.TempDir()
	startMember(t, dir, nil).shut()
	before, err := os.ReadFile(filepath.Join(dir, "member", "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	given := core.Identity{ClusterID: 1, MemberID: 3, Name: "other", PeerURLs: []string{"http://localhost:7777"}}
	random := func() uint64 { return 5 }
	if _, _, err := core.OpenDataDir(core.DataDir{Path: dir}, given, random); !errors.Is(err, core.ErrOtherMember) {
		t.Fatalf("another member's data: got %v, want %v", err, core.ErrOtherMember)
	}
	given.PeerURLs = []string{"http://localhost:2380"}
	if id, _, err := core.OpenDataDir(core.DataDir{Path: dir}, given, random); err != nil || id.MemberID != 2 || id.DataID == 5 {
		t.Fatalf("a member with a new name: got %v, %+v, want id 2 and its data id", err, id)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "member", "identity.json")); err != nil || string(after) != string(before) {
		t.Fatalf("identity: got %s (%v), want %s", after, err, before)
	}
}

// TestEtcdData: what belongs to an etcd member is recognised, and the error names the file
// and a way to migrate that works.
func TestEtcdData(t *testing.T) {
	dir := t.TempDir()
	snap := filepath.Join(dir, "member", "snap")
	if err := os.MkdirAll(snap, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(snap, "db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(d core.DataDir, file string) {
		t.Helper()
		_, _, err := core.OpenDataDir(d, core.Identity{ClusterID: 1, MemberID: 2}, func() uint64 { return 1 })
		if !errors.Is(err, core.ErrEtcdData) {
			t.Fatalf("got %v, want %v", err, core.ErrEtcdData)
		}
		for _, want := range []string{file, "etcdctl make-mirror"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error lacks %q: %v", want, err)
			}
		}
		// A snapshot of etcd cannot be restored.
		for _, no := range []string{"snapshot", "restore"} {
			if strings.Contains(err.Error(), no) {
				t.Errorf("the error advises what is not possible, %q: %v", no, err)
			}
		}
	}
	refused(core.DataDir{Path: dir}, filepath.Join(snap, "db"))
	wal := t.TempDir()
	// The first record of an etcd log: a frame of 4 bytes, and a checksum.
	head := []byte{4, 0, 0, 0, 0, 0, 0, 0x84, 0x08, 0x04, 0x10, 0x00}
	segment := filepath.Join(wal, "0000000000000000-0000000000000000.wal")
	if err := os.WriteFile(segment, head, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(core.DataDir{Path: t.TempDir(), WAL: wal}, segment)
}

// TestStrayEtcdFile: a file that etcd creates when it is started on a member's directory
// does not prevent the member from starting. The member logs its path.
func TestStrayEtcdFile(t *testing.T) {
	leave := func(dir string) string {
		stray := filepath.Join(dir, "member", "snap", "db")
		if err := os.MkdirAll(filepath.Dir(stray), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(stray, []byte("bbolt"), 0o600); err != nil {
			t.Fatal(err)
		}
		return stray
	}
	dir, logs := t.TempDir(), filepath.Join(t.TempDir(), "wal")
	m := startMember(t, dir, func(c *Config) { c.WALDir = logs })
	m.put("k", "v")
	m.shut()
	stray := leave(dir)
	var log bytes.Buffer
	m = startMember(t, dir, func(c *Config) { c.WALDir, c.Logger = logs, zerolog.New(zerolog.SyncWriter(&log)) })
	if got := m.get("k"); got != "v" {
		t.Errorf("k: got %q, want v", got)
	}
	m.shut()
	if !strings.Contains(log.String(), stray) {
		t.Errorf("the log lacks %s:\n%s", stray, log.String())
	}
	if layout, err := (core.DataDir{Path: dir, WAL: logs}).Layout(); err != nil || layout.Stray != stray {
		t.Errorf("got %+v, %v, want %s as stray", layout, err, stray)
	}

	// As after a first start that was killed before it wrote the identity.
	if err := os.Remove(filepath.Join(dir, "member", "identity.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := (core.DataDir{Path: dir, WAL: logs}).Layout(); err != nil {
		t.Errorf("with the member's log: got %v, want no error", err)
	}
	// Only etcd's file, as after its failed first start.
	empty := t.TempDir()
	stray = leave(empty)
	if _, err := (core.DataDir{Path: empty, WAL: ""}).Layout(); !errors.Is(err, core.ErrEtcdData) || !strings.Contains(err.Error(), stray) {
		t.Errorf("got %v, want %v with %s", err, core.ErrEtcdData, stray)
	}
}

// TestMailboxLimits: limits that are too small for the largest message or window are refused,
// and the error has the flag.
func TestMailboxLimits(t *testing.T) {
	for flag, change := range map[string]func(*Mailboxes){
		"mailbox-persister-bytes": func(m *Mailboxes) { m.Persister.Bytes = 1 << 20 },
		"mailbox-raft-requests":   func(m *Mailboxes) { m.Raft.Requests = 16 },
		"mailbox-wal-requests":    func(m *Mailboxes) { m.WAL.Requests = 100 },
		"mailbox-apply-bytes":     func(m *Mailboxes) { m.Apply.Bytes = 1 << 20 },
		"mailbox-mvcc-bytes":      func(m *Mailboxes) { m.MVCC.Bytes = 100_000 },
		"mailbox-reads-bytes":     func(m *Mailboxes) { m.Reads.Bytes = 1000 },
		"mailbox-lease-bytes":     func(m *Mailboxes) { m.Lease.Bytes = 10 },
		"mailbox-proposer-bytes":  func(m *Mailboxes) { m.Proposer.Bytes = 1000 },
	} {
		c := Config{Mailboxes: DefaultMailboxes()}
		c.completeMemory()
		m := c.Mailboxes
		if err := m.validate(2 << 20); err != nil {
			t.Fatal(err)
		}
		change(&m)
		if err := m.validate(2 << 20); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("got %v, want an error with %s", err, flag)
		}
	}
}

// TestLostFiles: a member without its log, its store or both refuses to start, and the error
// has the missing folder. It does not create them again.
func TestLostFiles(t *testing.T) {
	for what, lost := range map[string]struct {
		folders []string
		names   string
	}{
		"log":   {[]string{"wal"}, "wal"},
		"store": {[]string{"db"}, "db"},
		"both":  {[]string{"wal", "db"}, "wal"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			m := startMember(t, dir, nil)
			m.put("a", "1")
			m.shut()
			for _, folder := range lost.folders {
				if err := os.RemoveAll(filepath.Join(dir, "member", folder)); err != nil {
					t.Fatal(err)
				}
			}
			n, err := New(t.Context(), m.cfg)
			if err == nil {
				_ = n.Stop(t.Context())
				t.Fatal("the member starts")
			}
			if want := filepath.Join(dir, "member", lost.names); !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %s", err, want)
			}
			for _, folder := range lost.folders {
				if _, err := os.Stat(filepath.Join(dir, "member", folder)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: got %v, want that it does not exist", folder, err)
				}
			}
		})
	}
}

// TestShortenedLog: if the newest file of the log lost zeros from its end, which hold
// nothing, the member starts, extends the file, and names it.
func TestShortenedLog(t *testing.T) {
	dir := t.TempDir()
	m := startMember(t, dir, func(c *Config) { c.Small = true })
	m.put("k", "v")
	m.shut()
	files, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("got the files %v of the log, %v, want some", files, err)
	}
	newest := files[len(files)-1]
	size := func() int64 {
		t.Helper()
		info, err := os.Stat(newest)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	whole := size()
	if err := os.Truncate(newest, whole/2); err != nil {
		t.Fatal(err)
	}
	log := new(lines)
	m = startMember(t, dir, func(c *Config) { c.Small, c.Logger = true, newLogger(log) })
	defer m.shut()
	if got := m.get("k"); got != "v" {
		t.Errorf("got %q, want the value from before", got)
	}
	if got := size(); got != whole {
		t.Errorf("the file has %d bytes, want %d as before", got, whole)
	}
	const message = "a file of the log was shortened or extended; nothing is missing"
	if got, want := log.last(message, "file"), filepath.Base(newest); got != want {
		t.Errorf("the log names %v, want %s", got, want)
	}
}

// TestOtherLog: a log that ends before the applied index of the store is refused, and the
// error has its path.
func TestOtherLog(t *testing.T) {
	dir := t.TempDir()
	m := startMember(t, dir, nil)
	for range 50 {
		m.put("a", "1")
	}
	commits := func() (n int) {
		_, text := m.http("/metrics")
		const name = "etcd_disk_backend_commit_duration_seconds_count "
		_, err := fmt.Sscan(text[strings.Index(text, name)+len(name):], &n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := commits()
	m.eventually("the store has them", func() bool { m.put("a", "1"); return commits() > before+1 })
	m.shut()
	// The log of a newer member with the same name.
	young := t.TempDir()
	startMember(t, young, nil).shut()
	m.cfg.WALDir = filepath.Join(young, "member", "wal")
	n, err := New(t.Context(), m.cfg)
	if err == nil {
		_ = n.Stop(t.Context())
		t.Fatal("the member starts")
	}
	if !errors.Is(err, core.ErrLogBehind) || !strings.Contains(err.Error(), m.cfg.WALDir) {
		t.Errorf("got %v, want %v with %s", err, core.ErrLogBehind, m.cfg.WALDir)
	}
}
