package node

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// spareEvery is the interval of checks for a missing spare segment of the log.
	// sparePause and spareChunk limit the rate of filling it with zeros to 100 MiB/s, so
	// that fsyncs of the log do not wait for it.
	spareEvery = 200 * time.Millisecond
	sparePause = 10 * time.Millisecond
	spareChunk = 1 << 20

	// hashEvery is the interval at which the hash loop runs without being woken.
	hashEvery = time.Second
	// paceSlice is how long a scan works without a pause.
	paceSlice = 2 * time.Millisecond
)

// spareLoop prepares spare segments of the log.
func (n *Node) spareLoop(uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeSpares, Every: spareEvery, Faults: n.cfg.Faults,
		Due: func() bool {
			c := n.host.Current()
			return c != nil && c.Log.WantsSpare()
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

// prepareSpare prepares a part of a segment, and reports whether there is more to do.
func (n *Node) prepareSpare() (more bool) {
	c := n.host.Current()
	if c == nil {
		return false
	}
	done, err := c.Log.PrepareSpare(spareChunk)
	full := errors.Is(err, wal.ErrNoSpace)
	if n.trouble.noSpares.Swap(full) != full && full {
		n.cfg.Logger.Warn().Err(err).Msg("failed to prepare a spare segment of the log")
	}
	return !done && err == nil
}

// hashLoop computes the hashes that compactions schedule. It is woken for each, and runs
// periodically as well.
func (n *Node) hashLoop(uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeHash, Every: hashEvery, Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			took, err := n.host.Published.TakeHashes(pacer(ctx))
			if err != nil && ctx.Err() == nil && !errors.Is(err, backend.ErrClosed) {
				n.cfg.Logger.Error().Err(err).Msg("failed to compute the hash of a compaction")
			}
			if c := n.host.Current(); took && c != nil {
				_ = mvccactor.Continue(c.MVCC) // the next applied entry does the same
			}
		},
	}), nil
}

// pacer returns a function that pauses a scan, so that it takes a quarter of a processor.
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
		// If the lane is full, the loop is about to run anyway; if the mailbox is closed,
		// the loop that replaces it runs within hashEvery.
		_ = h.Mailbox().TryPost(0, &actors.Tick{}, actors.Cost{Requests: 1})
	}
}

// autoCompactLoop proposes compactions, by period or by number of revisions. Every member
// samples revisions, so that a new leader knows them; the leader compacts.
func (n *Node) autoCompactLoop(uint64) (actors.Stage, error) {
	auto := n.cfg.AutoCompact
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeAutoCompact, Every: auto.Every(), Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			v := n.host.Published.View()
			if v == nil {
				return
			}
			rev := auto.Poll(time.Now(), v.Revision)
			if rev <= 0 || !n.host.Raft.Status().IsLeader {
				return
			}
			out, err := n.host.Requests.Propose(ctx, &applymsg.Request{Op: &applymsg.Request_Compaction{
				Compaction: &pb.CompactionRequest{Revision: rev}}})
			if err == nil && (out.Result.Code == raftmsg.Code_OK || out.Result.Code == raftmsg.Code_COMPACTED) {
				auto.Done(time.Now())
				n.cfg.Logger.Info().Int64("revision", rev).Msg("compacted automatically")
				return
			}
			n.cfg.Logger.Warn().Err(err).Int64("revision", rev).Msg("automatic compaction failed")
		},
	}), nil
}
