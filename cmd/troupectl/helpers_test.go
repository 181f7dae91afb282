package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// member is a running member with a client of it.
type member struct {
	t       *testing.T
	node    *node.Node
	client  *clientv3.Client
	durable chan *mvccmsg.Durable // the latest state that the store has
}

// watchedStore reports the states that are committed to it.
type watchedStore struct {
	backend.Store
	durable chan *mvccmsg.Durable
}

func (s watchedStore) Commit(b backend.Batch) error {
	err := s.Store.Commit(b)
	for _, e := range b.Set {
		d := new(mvccmsg.Durable)
		if err := proto.Unmarshal(e.Value, d); err != nil {
			return err
		}
		select {
		case <-s.durable:
		default:
		}
		s.durable <- d
	}
	return err
}

// start starts a member whose files are small, so that there are several of each.
func start(t *testing.T, dir string, memberID uint64, change func(*node.Config)) *member {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	peers := []string{fmt.Sprintf("http://localhost:%d", 2380+memberID)}
	cfg := node.Config{
		Name: "default", PeerURLs: peers, ClusterID: 0xc1, MemberID: memberID,
		Members:   []*applymsg.Member{{Id: memberID, PeerUrls: peers}},
		DataDir:   dir,
		Heartbeat: 100 * time.Millisecond, Election: time.Second, PreVote: true,
		Mailboxes: node.DefaultMailboxes(), CacheBytes: 1 << 20,
		Listeners: []net.Listener{l},
		Gateway:   grpcgw.DefaultConfig(),
		Logger:    zerolog.Nop(),
		Storage:   core.Storage{LogSegmentBytes: 64 << 10, MemTableBytes: 128 << 10, ValueLogBytes: 2 << 20},
		Faults:    actors.NewFaults(),
		Exit:      func(reason error) { t.Errorf("exit: %v", reason) },
	}
	durable := make(chan *mvccmsg.Durable, 1) // a mailbox of one, of which the store is the only sender
	cfg.Storage.OpenStore = func(c backend.Config) (backend.Store, error) {
		s, err := backend.Open(c)
		return watchedStore{s, durable}, err
	}
	if change != nil {
		change(&cfg)
	}
	n, err := node.New(t.Context(), cfg)
	must(t, err)
	select {
	case <-n.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{l.Addr().String()}, DialTimeout: 5 * time.Second})
	must(t, err)
	return &member{t, n, client, durable}
}

func (m *member) stop() {
	m.t.Helper()
	m.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must(m.t, m.node.Stop(ctx))
}

// fill writes enough for several segments and packs, deletes keys, and compacts.
func (m *member) fill() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r := rand.NewChaCha8([32]byte{1})
	value := make([]byte, 1000)
	for i := range 190 {
		r.Read(value)
		_, err := m.client.Put(ctx, fmt.Sprintf("key%d", i%100), string(value))
		must(m.t, err)
	}
	_, err := m.client.Delete(ctx, "key1", clientv3.WithRange("key2"))
	must(m.t, err)
	_, err = m.client.Txn(ctx).
		If(clientv3.Compare(clientv3.Version("a"), "=", 0)).
		Then(clientv3.OpPut("a", "twelve bytes"), clientv3.OpGet("b")).
		Else(clientv3.OpDelete("a")).Commit()
	must(m.t, err)
	resp, err := m.client.Compact(ctx, 20)
	must(m.t, err)
	for d := (*mvccmsg.Durable)(nil); d.GetCompactRevision() < 20 || d.GetRevision() < resp.Header.Revision; {
		select {
		case d = <-m.durable:
		case <-ctx.Done():
			m.t.Fatal("the store lags behind")
		}
	}
}

// templates are data directories that tests copy: making one takes a second.
var templates struct {
	sync.Mutex
	root string
	made map[uint64]string
}

func TestMain(m *testing.M) {
	root, err := os.MkdirTemp("", "troupectl-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	templates.root, templates.made = root, map[uint64]string{}
	code := m.Run()
	os.RemoveAll(root)
	os.Exit(code)
}

// filled returns a copy of the data directory of a member that was filled and
// stopped.
func filled(t *testing.T, memberID uint64) string {
	t.Helper()
	templates.Lock()
	defer templates.Unlock()
	from, ok := templates.made[memberID]
	if !ok {
		from = filepath.Join(templates.root, fmt.Sprint(memberID))
		m := start(t, from, memberID, nil)
		m.fill()
		m.stop()
		must(t, os.RemoveAll(filepath.Join(from, "member", "ballast")))
		templates.made[memberID] = from
	}
	to := filepath.Join(t.TempDir(), "data")
	must(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// digest covers names, modes, sizes, times and content of all files.
func digest(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		sum.Write(b)
		return err
	}))
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// troupectl runs a command on a directory and checks that it changes nothing in there.
func troupectl(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	before := digest(t, dir)
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	if digest(t, dir) != before {
		t.Errorf("troupectl %q has changed the directory", args)
	}
	return code, out.String(), errs.String()
}

// change replaces the content of a file.
func change(t *testing.T, path string, fn func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, fn(b), 0o600))
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	change(t, path, func(b []byte) []byte {
		b[at] ^= 0x10
		return b
	})
}

// segments are the paths of the log's segments, oldest first.
func segments(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	must(t, err)
	return paths
}

// withLog opens the log, for a test to make changes that no member makes.
func withLog(t *testing.T, dir string, do func(l *wal.Log, rec *wal.Recovered)) {
	t.Helper()
	l, rec, err := wal.Open(wal.OSFS{}, filepath.Join(dir, "member", "wal"),
		wal.Config{SegmentBytes: 64 << 10, Rand: rand.Uint64})
	must(t, err)
	do(l, rec)
	must(t, l.Close())
}
