package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

const (
	// powerLogDir is the log's directory on its disk in memory.
	powerLogDir = "/log"
	// Files are small, so that a few seconds of writes fill several of each kind. All
	// sizes are at or near the minimum.
	powerSegmentBytes  = 128 << 10
	powerMemTableBytes = 64 << 10
	powerValueLogBytes = 1 << 20
	// powerCacheBytes is so small that reads come from the store.
	powerCacheBytes = 128 << 10
	// powerFreeBytes is the simulated free space: too much for the alarm and too little
	// for the ballast, which is not tested here.
	powerFreeBytes = 300 << 20

	powerTimeout = 30 * time.Second // of any wait for a member
)

// errPower is the error of a store without power. Like a failed disk, it ends the member
// at once.
var errPower = fmt.Errorf("%w: the power is off", backend.ErrFailed)

// powerMember is a member whose power can be cut.
type powerMember struct {
	*node.Node
	dir   string
	fsys  *waltest.MemFS
	store *powerStore
	log   *powerLog
	exits chan error // from Config.Exit
}

func powerStoreDir(dir string) string { return filepath.Join(dir, "member", "db") }

// powerConfig is the configuration of a test member with its data in a folder.
func powerConfig(dir string, log *powerLog, exit func(error)) node.Config {
	return node.Config{
		Name: "default", PeerURLs: []string{"http://localhost:2380"}, ClusterID: 0xc1, MemberID: 0xa1,
		Members: []*applymsg.Member{{Id: 0xa1, PeerUrls: []string{"http://localhost:2380"}}},
		DataDir: dir,
		// Short, because a start waits for an election.
		Heartbeat: 10 * time.Millisecond, Election: 100 * time.Millisecond, PreVote: true,
		Mailboxes: node.DefaultMailboxes(), CacheBytes: powerCacheBytes,
		Gateway: grpcgw.DefaultConfig(),
		Logger:  zerolog.New(log).Level(zerolog.InfoLevel),
		Storage: core.Storage{LogSegmentBytes: powerSegmentBytes,
			MemTableBytes: powerMemTableBytes, ValueLogBytes: powerValueLogBytes},
		FreeSpace: func(string) (uint64, error) { return powerFreeBytes, nil },
		Exit:      exit,
	}
}

// startPower starts a member on a folder and a disk for the log. If fsys is nil, the log
// is in the folder too. The plan may be nil.
func startPower(dir string, fsys *waltest.MemFS, plan *powerPlan) (*powerMember, error) {
	m := &powerMember{dir: dir, fsys: fsys, log: new(powerLog), exits: make(chan error, 16)}
	cfg := powerConfig(dir, m.log, func(err error) {
		select {
		case m.exits <- err:
		default:
		}
	})
	if fsys != nil {
		cfg.WALDir, cfg.FS = powerLogDir, splitFS{memory: fsys}
	} else {
		// There is no power cut: use the ballast too.
		cfg.FreeSpace = func(string) (uint64, error) { return 10 * powerFreeBytes, nil }
	}
	cfg.Storage.OpenStore = func(c backend.Config) (backend.Store, error) {
		var err error
		m.store, err = openPowerStore(c, m, plan)
		if err != nil {
			return nil, err
		}
		return m.store, nil
	}
	var err error
	m.Node, err = node.New(context.Background(), cfg)
	return m, err
}

// stop ends the member. Its errors do not matter if the disk has failed.
func (m *powerMember) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), powerTimeout)
	defer cancel()
	return m.Stop(ctx)
}

// powerLog keeps the end of a member's log.
type powerLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// powerLogBytes is the most bytes that are kept.
const powerLogBytes = 64 << 10

func (l *powerLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() > powerLogBytes {
		l.text.Next(powerLogBytes / 2)
	}
	return l.text.Write(line)
}

func (l *powerLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// powerPlan determines when and how the power is cut.
type powerPlan struct {
	commit int // the commit during which the power is cut, from 1
	old    int // the commit after which the old image is taken; 0: the start
	// reclaim says whether the store rewrites its files between the two images.
	reclaim powerReclaim
	seed    uint64
	// synced says whether to check with the kernel that committed data is on the disk.
	synced bool

	done chan struct{} // closed when the power is off
	cut  *powerCut     // set before done is closed
	err  error         // set instead of cut if that failed
}

type powerReclaim int

const (
	noReclaim     powerReclaim = iota
	reclaimBefore              // finished before the commit
	reclaimBeside              // still running when the power fails
)

// powerStore wraps the store of a member. It cuts the power when a commit has returned and
// before the caller learns of it.
type powerStore struct {
	backend.Store
	m       *powerMember
	cfg     backend.Config
	opened  uint64 // applied index in the store when it was opened
	commits atomic.Int64
	busy    atomic.Int64 // running reclaims

	mu       sync.Mutex // serialises commits; guards what follows
	plan     *powerPlan
	old      image
	previous uint64
	off      bool
}

func openPowerStore(cfg backend.Config, m *powerMember, plan *powerPlan) (*powerStore, error) {
	s := &powerStore{m: m, cfg: cfg, plan: plan}
	visit := cfg.VisitState
	cfg.VisitState = func(e backend.Entry) error {
		s.opened = powerApplied([]backend.Entry{e})
		return visit(e)
	}
	var err error
	if s.Store, err = backend.Open(cfg); err != nil {
		return nil, err
	}
	s.previous = s.opened
	if plan != nil && plan.old == 0 {
		if s.old, err = imageOf(cfg.Dir); err != nil {
			return nil, errors.Join(err, s.Store.Close())
		}
	}
	return s, nil
}

// powerApplied returns the applied index in the state of a batch; 0 if it has none.
func powerApplied(set []backend.Entry) uint64 {
	if len(set) == 0 {
		return 0
	}
	d := new(mvccmsg.Durable)
	if err := proto.Unmarshal(set[0].Value, d); err != nil {
		panic(err)
	}
	return d.AppliedIndex
}

// Reclaim implements backend.Store.
func (s *powerStore) Reclaim(ctx context.Context, b backend.Budget) (backend.ReclaimReport, error) {
	s.busy.Add(1)
	defer s.busy.Add(-1)
	return s.Store.Reclaim(ctx, b)
}

// Commit implements backend.Store. In the planned commit the power fails before Commit
// returns.
func (s *powerStore) Commit(b backend.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return errPower
	}
	n := int(s.commits.Add(1))
	p := s.plan
	if p == nil || n < p.commit {
		err := s.Store.Commit(b)
		s.previous = max(s.previous, powerApplied(b.Set))
		if err == nil && p != nil {
			err = s.look(n)
		}
		return err
	}
	s.off = true
	p.cut, p.err = s.cut(b)
	close(p.done)
	return errPower
}

// look takes the old image, and checks with the kernel that committed data is on the disk.
func (s *powerStore) look(n int) (err error) {
	p := s.plan
	if p.synced && s.busy.Load() == 0 {
		if err := imageCheckSynced(s.cfg.Dir); err != nil && s.busy.Load() == 0 {
			s.off = true
			p.err = err
			close(p.done)
			return errPower
		}
	}
	if n == p.old {
		s.old, err = imageOf(s.cfg.Dir)
	}
	return err
}

// cut commits, takes the image as the running system sees it, and cuts the power of the
// log.
func (s *powerStore) cut(b backend.Batch) (*powerCut, error) {
	p := s.plan
	rng := rand.New(rand.NewPCG(p.seed, 1))
	c := &powerCut{old: s.old, previous: s.previous, applied: max(s.previous, powerApplied(b.Set))}
	if err := s.reclaimFiles(rng); err != nil {
		return nil, err
	}
	c.busy = s.busy.Load() > 0
	now, err := imageOf(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	c.floor = now.newestVersion()
	if err := s.Store.Commit(b); err != nil {
		return nil, err
	}
	if p.reclaim == reclaimBeside {
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
	}
	c.busy = c.busy || s.busy.Load() > 0
	if c.last, err = imageOf(s.cfg.Dir); err != nil {
		return nil, err
	}
	// The log continues until it notices.
	m := s.m
	m.fsys.CutPower(m.fsys.Calls()+1+rng.IntN(3), rng.Uint64())
	select {
	case err := <-m.exits:
		m.exits <- err
	case <-time.After(powerGrace):
		// No write is running: the power fails between two writes.
	}
	c.log = m.fsys.Clone()
	return c, nil
}

// powerGrace is how long to wait for a write of the log when its power is cut.
const powerGrace = 200 * time.Millisecond

// reclaimFiles makes the store rewrite its files before or during the last commit.
func (s *powerStore) reclaimFiles(rng *rand.Rand) error {
	reclaim := func() error {
		_, err := s.Reclaim(context.Background(), backend.Budget{Duty: 1, Garbage: 0.05})
		if errors.Is(err, backend.ErrBusy) || errors.Is(err, backend.ErrClosed) {
			return nil
		}
		return err
	}
	switch s.plan.reclaim {
	case reclaimBefore:
		return reclaim()
	case reclaimBeside:
		s.busy.Add(1)
		go func() { // ends at the latest when the store is closed
			defer s.busy.Add(-1)
			_ = reclaim() // the store may be closed meanwhile
		}()
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
	}
	return nil
}
