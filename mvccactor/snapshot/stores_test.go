package snapshot

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/backend/backendtest"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// install is a member whose store ends at oldIndex, and that installs a snapshot.
type install struct {
	t      *testing.T
	stores *Stores
	open   func(backend.Config) (backend.Store, error)
	disk   *waltest.MemFS
	log    *wal.Log // nil while the member is stopped
}

const oldIndex = 10

func logConfig() wal.Config {
	return wal.Config{ClusterID: 1, MemberID: 3, SegmentBytes: wal.MinSegmentBytes, Rand: rand.New(rand.NewPCG(1, 2)).Uint64}
}

// writeStore makes a store with an applied index.
func (m *install) writeStore(name string, index uint64) {
	t := m.t
	t.Helper()
	store, err := m.open(backend.Config{Dir: m.stores.path(name)})
	must(t, err)
	state, err := proto.Marshal(&mvccmsg.Durable{Format: 2, ClusterId: 1, MemberId: 3, AppliedIndex: index, AppliedTerm: 5})
	must(t, err)
	must(t, store.Commit(backend.Batch{Set: []backend.Entry{{Key: StateName, Value: state}},
		Put: []backend.Pack{{ID: backend.PackID{Main: 2}, Parts: [][]byte{[]byte("pack")}}}}))
	must(t, store.Close())
}

// newInstall returns a member whose stores are on disk, and its log in memory.
func newInstall(t *testing.T) *install {
	m := &install{t: t, stores: NewStores(wal.OSFS{}, t.TempDir()), open: backend.Open, disk: waltest.New()}
	m.start()
	return m
}

// newMemoryInstall returns a member of which all is in memory.
func newMemoryInstall(t *testing.T) *install {
	m := &install{t: t, disk: waltest.New()}
	must(t, m.disk.Mkdir("/member"))
	must(t, m.disk.SyncDir("/"))
	m.stores, m.open = NewStores(m.disk, "/member"), backendtest.New(m.disk).Open
	m.start()
	return m
}

func (m *install) start() {
	t := m.t
	m.writeStore(firstStore, oldIndex)
	var es []*raftpb.Entry
	for i := range uint64(oldIndex + 2) {
		es = append(es, &raftpb.Entry{Index: proto.Uint64(i + 1), Term: proto.Uint64(2)})
	}
	var err error
	m.log, err = wal.Create(m.disk, "/wal", logConfig(), wal.Batch{Entries: es,
		HardState: &raftpb.HardState{Term: proto.Uint64(2), Vote: proto.Uint64(9), Commit: proto.Uint64(oldIndex)}})
	must(t, err)
}

// crash loses what is in memory: the reservations of folders, and what the log did not sync.
func (m *install) crash(seed uint64) {
	m.disk.Crash(seed)
	m.stores, m.log = NewStores(m.stores.fs, m.stores.dir), nil
}

// boot opens log and store as the core does, and returns the applied index.
func (m *install) boot() uint64 {
	m.t.Helper()
	log, rec, err := wal.Open(m.disk, "/wal", logConfig())
	must(m.t, err)
	m.log = log
	path, err := m.stores.Choose(rec.Mark.Index, m.applied)
	must(m.t, err)
	index, err := m.applied(path)
	must(m.t, err)
	if index < rec.Mark.Index || index > log.LastIndex() {
		m.t.Fatalf("%s ends at %d, the log has a mark at %d and ends at %d: they do not belong together",
			path, index, rec.Mark.Index, log.LastIndex())
	}
	if current, err := m.stores.Current(); err != nil || current != path {
		m.t.Fatalf("CURRENT names %s, %v, opened was %s", current, err, path)
	}
	_, err = m.stores.Clean()
	must(m.t, err)
	names := leftovers(m.t, m.stores)
	if names = slices.DeleteFunc(names, func(n string) bool { return n == currentFile }); !slices.Equal(names, []string{filepath.Base(path)}) {
		m.t.Fatalf("got %v after Clean, want only %s", names, path)
	}
	return index
}

func (m *install) applied(path string) (uint64, error) {
	return AppliedIndex(backend.Config{Dir: path, MustExist: true}, m.open)
}

func (m *install) receive() error {
	cfg := ReceiveConfig{ClusterID: 1, Member: 3, From: 2, Stores: m.stores, OpenBackend: m.open}
	_, err := Receive(context.Background(), cfg, record(m.t, 10))
	return err
}

// mark makes the snapshot that was received the state that the log begins with.
func (m *install) mark() error {
	if err := m.stores.Check(testIndex); err != nil {
		return err
	}
	return m.log.Install(wal.Mark{Index: testIndex, Term: 5})
}

// The steps of an installation. After a crash between any two of them, and at any call of the
// log, the member is in the old or the new state, and never refuses to start.
func TestInstallCrashes(t *testing.T) {
	// Packs and state in the temporary folder.
	written := func(m *install) { m.writeStore(incomingName, testIndex) }
	partly := func(m *install) {
		must(m.t, os.Mkdir(m.stores.path(incomingName), 0o700))
		must(m.t, os.WriteFile(filepath.Join(m.stores.path(incomingName), "000001.vlog"), []byte("x"), 0o600))
	}
	renamed := func(m *install) { must(m.t, m.receive()) }
	marked := func(m *install) { must(m.t, m.mark()) }
	switched := func(m *install) { must(m.t, m.stores.Switch(testIndex)) }
	halfSwitched := func(m *install) {
		must(m.t, os.WriteFile(m.stores.path(currentFile+tmpSuffix), []byte("db-"), 0o600))
	}
	halfRemoved := func(m *install) {
		must(m.t, os.Rename(m.stores.path(firstStore), m.stores.path(firstStore+tmpSuffix)))
		must(m.t, os.Remove(filepath.Join(m.stores.path(firstStore+tmpSuffix), "MANIFEST")))
	}
	cleaned := func(m *install) { _, err := m.stores.Clean(); must(m.t, err) }
	for _, c := range []struct {
		name  string
		steps []func(*install)
		want  uint64
	}{
		{"nothing", nil, oldIndex},
		{"a: partly written", []func(*install){partly}, oldIndex},
		{"a: written", []func(*install){written}, oldIndex},
		{"b: renamed", []func(*install){renamed}, oldIndex},
		{"c: marked", []func(*install){renamed, marked}, testIndex},
		{"c: CURRENT partly written", []func(*install){renamed, marked, halfSwitched}, testIndex},
		{"d: switched", []func(*install){renamed, marked, switched}, testIndex},
		{"d: old store partly removed", []func(*install){renamed, marked, switched, halfRemoved}, testIndex},
		{"e: removed", []func(*install){renamed, marked, switched, cleaned}, testIndex},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newInstall(t)
			for _, step := range c.steps {
				step(m)
			}
			m.crash(1)
			for range 2 { // a start after a start changes nothing
				if got := m.boot(); got != c.want {
					t.Fatalf("got a store at %d, want %d", got, c.want)
				}
				m.crash(2)
			}
		})
	}
}

// A power cut during any call of the file system, of a transfer, its installation and the start
// after it, leaves the old or the new state. It is the new one if the installation has ended,
// and the member always starts.
func TestInstallPowerCuts(t *testing.T) {
	const cutsMax = 2000
	for cut := 1; cut < cutsMax; cut++ {
		m := newMemoryInstall(t)
		m.disk.CutPower(m.disk.Calls()+cut, uint64(cut))
		received := m.receive()
		err := received
		if err == nil {
			err = m.mark()
		}
		marked := err == nil
		if marked {
			err = m.stores.Switch(testIndex)
		}
		if err == nil {
			_, err = m.stores.Clean()
		}
		m.crash(uint64(cut))
		got := m.boot()
		if got != testIndex && (marked || got != oldIndex) {
			t.Fatalf("power cut at call %d; received: %v, installed: %v: got a store at %d", cut, received, err, got)
		}
		m.crash(uint64(cut + 1))
		if again := m.boot(); again != got {
			t.Fatalf("power cut at call %d: the first start had a store at %d, the second one at %d", cut, got, again)
		}
		if err == nil {
			if cut < 50 {
				t.Fatalf("an installation makes %d calls, want more than 50", cut)
			}
			return
		}
	}
	t.Fatalf("the installation did not end within %d calls", cutsMax)
}

func TestChoose(t *testing.T) {
	const mark = testIndex
	lost := errors.New("input/output error")
	for _, c := range []struct {
		name     string
		received bool
		mark     uint64
		current  uint64 // applied index of the current store
		err      error  // of reading it
		want     string
		wantErr  error
	}{
		{"no mark", true, 0, 5, nil, firstStore, nil},
		{"no snapshot", false, mark, 5, nil, firstStore, nil},
		{"behind", true, mark, mark - 1, nil, folder(mark), nil},
		{"at the mark", true, mark, mark, nil, firstStore, nil},
		{"ahead", true, mark, mark + 9, nil, firstStore, nil},
		{"another index", true, mark + 1, 5, nil, firstStore, nil},
		{"damaged", true, mark, 0, &backend.CorruptError{Reason: "test"}, folder(mark), nil},
		{"damaged without a snapshot", false, mark, 0, &backend.CorruptError{Reason: "test"}, firstStore, nil},
		{"missing", true, mark, 0, backend.ErrMissing, folder(mark), nil},
		{"unreadable", true, mark, 0, lost, "", lost},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewStores(wal.OSFS{}, t.TempDir())
			must(t, os.Mkdir(s.path(firstStore), 0o700))
			if c.received {
				must(t, os.Mkdir(s.path(folder(mark)), 0o700))
			}
			path, err := s.Choose(c.mark, func(string) (uint64, error) { return c.current, c.err })
			if !errors.Is(err, c.wantErr) {
				t.Fatalf("got %v, want %v", err, c.wantErr)
			}
			if err != nil {
				return
			}
			if path != s.path(c.want) {
				t.Fatalf("got %s, want %s", path, c.want)
			}
			if current, err := s.Current(); err != nil || current != path {
				t.Fatalf("CURRENT names %s, %v, want %s", current, err, path)
			}
		})
	}
}

// A damaged CURRENT is refused, unless the log names the store.
func TestDamagedCurrent(t *testing.T) {
	good := line(folder(testIndex))
	var contents []string
	for i := range len(good) {
		b := []byte(good)
		b[i] ^= 1
		contents = append(contents, string(b), good[:i])
	}
	contents = append(contents, good+"\n", line("db-1"), line("../db"), line(incomingName), line(currentFile))
	for _, content := range contents {
		s := NewStores(wal.OSFS{}, t.TempDir())
		must(t, os.WriteFile(s.path(currentFile), []byte(content), 0o600))
		never := func(string) (uint64, error) { t.Error("a store was read"); return 0, nil }
		if _, err := s.Choose(testIndex, never); !errors.Is(err, ErrCurrent) {
			t.Errorf("%q: got %v, want ErrCurrent", content, err)
		}
		if _, err := s.Clean(); !errors.Is(err, ErrCurrent) {
			t.Errorf("%q: Clean: got %v, want ErrCurrent", content, err)
		}
		must(t, os.Mkdir(s.path(folder(testIndex)), 0o700))
		if path, err := s.Choose(testIndex, never); err != nil || path != s.path(folder(testIndex)) {
			t.Errorf("%q, with a mark: got %s, %v, want %s", content, path, err, folder(testIndex))
		}
	}
}

func TestCleanLeavesOtherFiles(t *testing.T) {
	s := NewStores(wal.OSFS{}, t.TempDir())
	keep := []string{"db-notes", "db.bak", "db-00000000000000GG", "db-1", "wal", firstStore}
	for _, name := range append([]string{folder(5), folder(6) + tmpSuffix, firstStore + tmpSuffix, incomingName}, keep...) {
		must(t, os.Mkdir(s.path(name), 0o700))
	}
	removed, err := s.Clean()
	must(t, err)
	names := leftovers(t, s)
	slices.Sort(keep)
	if !slices.Equal(names, keep) || len(removed) != 4 {
		t.Fatalf("got %v left and %v removed, want %v left", names, removed, keep)
	}
	if err := s.Switch(5); !errors.Is(err, ErrNotReceived) {
		t.Fatalf("Switch to a store that does not exist: got %v, want ErrNotReceived", err)
	}
}

func TestAppliedIndex(t *testing.T) {
	dir := t.TempDir()
	applied := func(name string) (uint64, error) {
		return AppliedIndex(backend.Config{Dir: filepath.Join(dir, name)}, backend.Open)
	}
	if _, err := applied("none"); !errors.Is(err, backend.ErrMissing) {
		t.Errorf("no store: got %v, want ErrMissing", err)
	}
	empty, err := backend.Open(backend.Config{Dir: filepath.Join(dir, "empty")})
	must(t, err)
	must(t, empty.Close())
	if index, err := applied("empty"); err != nil || index != 0 {
		t.Errorf("an empty store: got %d, %v, want 0", index, err)
	}
}
