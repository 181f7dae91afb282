package crashtest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// asFaulty in the environment makes this executable run a member with all flags of the
	// real one, whose lease clock leaps and whose disk stalls while the file exists that the
	// variable names.
	asFaulty = "TROUPE_TEST_FAULTY"
	// stallPoll is the interval at which a stalled disk looks for that file.
	stallPoll = 5 * time.Millisecond
)

// runFaulty runs the member until it ends.
func runFaulty(args []string, stall string) error {
	cfg, _, err := config.Parse(args, nil)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	if err := cfg.Bootstrap(context.Background(), core.DataDir{Path: cfg.Node.DataDir}.Exists(), config.NewNetwork()); err != nil {
		return err
	}
	nc := cfg.Node
	if nc.PeerListeners, err = listenAll(cfg.ListenPeerURLs); err != nil {
		return err
	}
	if nc.Listeners, err = listenAll(cfg.ListenClientURLs); err != nil {
		return err
	}
	var leap atomic.Int64
	go leapOn(&leap) // ends with the process
	nc.LeaseClock = func() int64 { return actors.Now() + leap.Load() }
	nc.LeaseCheckpoint = memberCheckpoint
	nc.FS = stallingFS{wal.OSFS{}, stall}
	nc.Logger = zerolog.New(os.Stderr).With().Timestamp().Logger()
	nc.Exit = func(reason error) { nc.Logger.Fatal().Err(reason).Msg("the member cannot go on") }
	n, err := node.New(nc)
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

func listenAll(urls []url.URL) (all []net.Listener, err error) {
	for _, u := range urls {
		l, err := net.Listen("tcp", u.Host)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// stallingFS is a file system on which Datasync waits while a file exists.
type stallingFS struct {
	wal.FS
	stall string
}

type stallingFile struct {
	wal.File
	stall string
}

func (s stallingFS) file(f wal.File, err error) (wal.File, error) {
	if err != nil {
		return nil, err
	}
	return stallingFile{f, s.stall}, nil
}

func (s stallingFS) Create(path string) (wal.File, error) { return s.file(s.FS.Create(path)) }

func (s stallingFS) Open(path string, write bool) (wal.File, error) {
	return s.file(s.FS.Open(path, write))
}

func (f stallingFile) Datasync() error {
	for {
		if _, err := os.Stat(f.stall); errors.Is(err, fs.ErrNotExist) {
			return f.File.Datasync()
		}
		<-time.After(stallPoll)
	}
}
