package node

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// spareEvery is how often a missing segment of the log is looked for.
	// sparePause and spareChunk throttle its zero-filling: 100 MiB/s, so that
	// fsyncs of the log do not wait behind it.
	spareEvery = 200 * time.Millisecond
	sparePause = 10 * time.Millisecond
	spareChunk = 1 << 20

	// hashEvery is how often the hash loop looks on its own.
	hashEvery = time.Second
	// paceSlice is how long a scan works at a stretch.
	paceSlice = 2 * time.Millisecond
)

// spareLoop prepares segments of the log in advance.
func (n *Node) spareLoop(uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeSpares, Every: spareEvery, Faults: n.cfg.Faults,
		Due: func() bool {
			c := n.current.Load()
			return c != nil && c.log.WantsSpare()
		},
		Do: func(ctx context.Context, _ actors.Tick) {
			for n.prepareSpare() {
				select {
				case <-time.After(sparePause):
				case <-ctx.Done():
					return
				}
			}
		},
	}), nil
}

// prepareSpare does a piece of the work, and tells whether there is more.
func (n *Node) prepareSpare() (more bool) {
	c := n.current.Load()
	if c == nil {
		return false
	}
	done, err := c.log.PrepareSpare(spareChunk)
	full := errors.Is(err, wal.ErrNoSpace)
	if n.trouble.noSpares.Swap(full) != full && full {
		n.cfg.Logger.Warn().Err(err).Msg("cannot prepare a segment of the log")
	}
	return !done && err == nil
}

// hashLoop takes the hashes that compactions ask for. It is woken for each, and
// looks again now and then.
func (n *Node) hashLoop(uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeHash, Every: hashEvery, Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			took, err := n.published.TakeHashes(pacer(ctx))
			if err != nil && ctx.Err() == nil && !errors.Is(err, backend.ErrClosed) {
				n.cfg.Logger.Error().Err(err).Msg("cannot take the hash of a compaction")
			}
			if c := n.current.Load(); took && c != nil {
				_ = mvccactor.Continue(c.mvcc) // the next applied entry does the same
			}
		},
	}), nil
}

// pacer returns what pauses a scan so that it takes a quarter of a core.
func pacer(ctx context.Context) func() error {
	began := time.Now()
	return func() error {
		if busy := time.Since(began); busy > paceSlice {
			select {
			case <-time.After(3 * busy):
			case <-ctx.Done():
			}
			began = time.Now()
		}
		return ctx.Err()
	}
}

func (n *Node) wakeHash() {
	if h := n.hasher.Load(); h != nil {
		// If the lane is full, the loop is about to look anyway; if the mailbox is closed,
		// the loop that replaces it looks within hashEvery.
		_ = h.Mailbox().TryPost(0, &actors.Tick{}, actors.Cost{Requests: 1})
	}
}

// autoCompactLoop compacts by period or by number of revisions.
func (n *Node) autoCompactLoop(uint64) (actors.Stage, error) {
	auto := n.cfg.AutoCompact
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeAutoCompact, Every: auto.Every(), Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			v := n.published.View()
			if v == nil || n.raft.Status().Leader != n.cfg.MemberID {
				return // the leader compacts
			}
			rev := auto.Poll(time.Now(), v.Revision)
			if rev <= 0 {
				return
			}
			out, err := n.requests.Propose(ctx, &applymsg.Request{Op: &applymsg.Request_Compaction{
				Compaction: &pb.CompactionRequest{Revision: rev}}})
			if err == nil && (out.Result.Code == raftmsg.Code_OK || out.Result.Code == raftmsg.Code_COMPACTED) {
				auto.Done(time.Now())
				n.cfg.Logger.Info().Int64("revision", rev).Msg("compacted automatically")
				return
			}
			n.cfg.Logger.Warn().Err(err).Int64("revision", rev).Msg("automatic compaction was not accepted")
		},
	}), nil
}

// storeLogger lets the store write to the log.
type storeLogger struct{ log zerolog.Logger }

func (l storeLogger) Debugf(format string, args ...any) { l.log.Debug().Msgf(format, args...) }
func (l storeLogger) Infof(format string, args ...any)  { l.log.Info().Msgf(format, args...) }
func (l storeLogger) Warnf(format string, args ...any)  { l.log.Warn().Msgf(format, args...) }
func (l storeLogger) Errorf(format string, args ...any) { l.log.Error().Msgf(format, args...) }
