package crashtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// asFaulty in the environment makes this executable run a member with all flags of the
	// real one, which has the faults that are in the file that the variable names.
	asFaulty = "TROUPE_TEST_FAULTY"
	// stallPoll is the interval at which a stalled disk looks into that file.
	stallPoll = 5 * time.Millisecond
	// leapMin and leapMax bound the interval of leaps.
	leapMin, leapMax = 100 * time.Millisecond, time.Second
)

// The faults of such a member. The file has their names, separated by spaces.
const (
	stalls = "stalls"  // Datasync of the log and the identity waits
	isFull = "is-full" // no file of the log or the identity grows, and no space is free
	leaps  = "leaps"   // the clock of leases leaps by days
)

// faultFile is the path of the file of faults. A missing file has none.
type faultFile string

// has reports whether the member has a fault now.
func (f faultFile) has(fault string) bool {
	content, err := os.ReadFile(string(f))
	return err == nil && slices.Contains(strings.Fields(string(content)), fault)
}

// set replaces the faults at once.
func (f faultFile) set(faults ...string) error {
	next := string(f) + ".next"
	if err := os.WriteFile(next, []byte(strings.Join(faults, " ")), 0o600); err != nil {
		return err
	}
	return os.Rename(next, string(f))
}

// runFaulty runs the member until it ends.
func runFaulty(args []string, faults faultFile) error {
	cfg, _, err := config.Parse(args, nil)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	logger := zerolog.New(os.Stderr).With().Timestamp().Logger()
	clients, err := certs.Open(certs.Config{Options: cfg.ClientTLS, Name: "client", Logger: logger})
	if err != nil {
		return err
	}
	peers, err := certs.Open(certs.Config{Options: cfg.PeerTLS, Name: "peer", Logger: logger})
	if err != nil {
		return err
	}
	if err := cfg.Bootstrap(context.Background(), core.DataDir{Path: cfg.Node.DataDir}.Exists(), config.NewNetwork(peers.Transport())); err != nil {
		return err
	}
	nc := cfg.Node
	if nc.PeerListeners, err = listenAll(cfg.ListenPeerURLs, cfg.PeerTLS, peers, !cfg.SkipPeerSAN); err != nil {
		return err
	}
	if nc.Listeners, err = listenAll(cfg.ListenClientURLs, cfg.ClientTLS, clients, false); err != nil {
		return err
	}
	nc.PeerCredentials, nc.PeerTransport = peers.Credentials(), peers.Transport()
	var leap atomic.Int64
	go leapWhile(&leap, faults) // ends with the process
	nc.LeaseClock = func() int64 { return actors.Now() + leap.Load() }
	nc.LeaseCheckpoint = memberCheckpoint
	nc.FS = faultyFS{wal.OSFS{}, faults}
	nc.FreeSpace = func(dir string) (uint64, error) {
		if faults.has(isFull) {
			return 0, nil
		}
		free, _, err := backend.FreeSpace(dir)
		return free, err
	}
	nc.Logger = logger
	nc.Exit = func(reason error) { nc.Logger.Fatal().Err(reason).Msg("the member cannot go on") }
	n, err := node.New(context.Background(), nc)
	if err != nil {
		return err
	}
	select {
	case err := <-n.Done():
		if errors.Is(err, node.ErrRemoved) {
			return nil
		}
		return err
	case <-signals:
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return n.Stop(ctx)
	}
}

// listenAll listens with TLS, if there is a certificate.
func listenAll(urls []url.URL, o certs.Options, e *certs.Endpoint, checkSAN bool) (all []net.Listener, err error) {
	for _, u := range urls {
		l, err := net.Listen("tcp", u.Host)
		if err != nil {
			return nil, err
		}
		if !o.Empty() {
			l = e.Listen(l, certs.ListenOptions{CheckSAN: checkSAN, Protocols: []string{certs.HTTP1, certs.HTTP2}})
		}
		all = append(all, l)
	}
	return all, nil
}

// leapWhile makes a clock leap while the member has that fault.
func leapWhile(leap *atomic.Int64, faults faultFile) {
	for {
		<-time.After(leapMin + rand.N(leapMax-leapMin))
		if faults.has(leaps) {
			leapOnce(leap)
		}
	}
}

// faultyFS is a file system that stalls or is full while the member has that fault.
type faultyFS struct {
	wal.FS
	faults faultFile
}

type faultyFile struct {
	wal.File
	faults faultFile
}

func (s faultyFS) file(f wal.File, err error) (wal.File, error) {
	if err != nil {
		return nil, err
	}
	return faultyFile{f, s.faults}, nil
}

func (s faultyFS) Create(path string) (wal.File, error) { return s.file(s.FS.Create(path)) }

func (s faultyFS) Open(path string, write bool) (wal.File, error) {
	return s.file(s.FS.Open(path, write))
}

// Datasync waits while the disk stalls.
func (f faultyFile) Datasync() error {
	for f.faults.has(stalls) {
		<-time.After(stallPoll)
	}
	return f.File.Datasync()
}

// Allocate fails on a full disk, unless the file has the size.
func (f faultyFile) Allocate(size int64) error {
	if err := f.room(size); err != nil {
		return err
	}
	return f.File.Allocate(size)
}

// WriteAt writes nothing to a full disk that would make the file longer.
func (f faultyFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.room(at + int64(len(b))); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

func (f faultyFile) room(size int64) error {
	if !f.faults.has(isFull) {
		return nil
	}
	if has, err := f.Size(); err != nil || has >= size {
		return err
	}
	return syscall.ENOSPC
}

// TestFaultyFS: a stalled disk syncs nothing before it goes on, and on a full one no file
// grows.
func TestFaultyFS(t *testing.T) {
	faults := faultFile(filepath.Join(t.TempDir(), "faults"))
	set := func(list ...string) {
		t.Helper()
		if err := faults.set(list...); err != nil {
			t.Fatal(err)
		}
	}
	f, err := faultyFS{wal.OSFS{}, faults}.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // the folder is removed
	write := func(at int64) error {
		_, err := f.WriteAt([]byte("xx"), at)
		return err
	}
	set(leaps, isFull)
	for name, err := range map[string]error{"write": write(0), "allocate": f.Allocate(2)} {
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("full disk: %s: got %v, want ENOSPC", name, err)
		}
	}
	set(leaps)
	if err := write(0); err != nil {
		t.Fatal(err)
	}
	set(isFull, stalls)
	if err := errors.Join(write(0), f.Allocate(2)); err != nil {
		t.Errorf("full disk: within the size: got %v, want success", err)
	}
	synced := make(chan error)
	go func() { synced <- f.Datasync() }() // ends after the stall
	select {
	case err := <-synced:
		t.Errorf("stalled disk: a sync returned %v", err)
	case <-time.After(10 * stallPoll):
	}
	set()
	if err := <-synced; err != nil {
		t.Error(err)
	}
}
