package node

import (
	"context"
	"errors"
	"hash/crc32"
	"slices"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/watchactor"
)

var _ grpcgw.Member = (*Node)(nil)

// Identity implements grpcgw.Member.
func (n *Node) Identity() grpcgw.Identity {
	return grpcgw.Identity{ClusterID: n.cfg.ClusterID, MemberID: n.cfg.MemberID, Name: n.cfg.Name}
}

// Raft implements grpcgw.Member.
func (n *Node) Raft() grpcgw.RaftStatus {
	s := n.host.Raft.Status().WithView(n.host.Applied())
	return grpcgw.RaftStatus{Leader: s.Leader, Term: s.Term, Committed: s.Committed,
		Applied: s.Applied, IsLearner: s.IsLearner}
}

// Keyspace implements grpcgw.Member.
func (n *Node) Keyspace() *mvcc.Published { return n.host.Published }

// Requests implements grpcgw.Member.
func (n *Node) Requests() grpcgw.Requests { return n.requests }

// requests refuses linearizable reads while the store is damaged and other members have the
// data. Writes go on.
type requests struct {
	*raftactor.Client
	n *Node
}

// ReadIndex implements grpcgw.Requests.
func (r *requests) ReadIndex(ctx context.Context) (raftmsg.Code, error) {
	if r.n.repairDue() {
		return raftmsg.Code_STOPPED, grpcgw.ErrDamaged
	}
	return r.Client.ReadIndex(ctx)
}

// Leases implements grpcgw.Member.
func (n *Node) Leases() grpcgw.Leases { return n.host.Leases }

// errNotReady: a linearizable read does not succeed yet.
var errNotReady = errors.New("node: not ready")

// readable returns an error unless a linearizable read succeeds.
func (n *Node) readable(ctx context.Context) error {
	code, err := n.host.Requests.ReadIndex(ctx)
	if err == nil && code != raftmsg.Code_OK {
		err = errNotReady
	}
	return err
}

// publishAttributes proposes name and client URLs of this member until the cluster has
// them.
func (n *Node) publishAttributes(ctx context.Context) {
	req := &applymsg.Request{Op: &applymsg.Request_MemberAttributes{MemberAttributes: &applymsg.MemberAttributes{
		MemberId: n.cfg.MemberID, Name: n.cfg.Name, ClientUrls: n.cfg.ClientURLs, DataId: n.id.DataID}}}
	for !n.attributesKnown() {
		out, err := n.host.Requests.Propose(ctx, req)
		if err == nil && (out.Result.Code == raftmsg.Code_OK || out.Result.Code == raftmsg.Code_MEMBER_NOT_FOUND) {
			return
		}
		if err == nil && out.Result.Code == raftmsg.Code_DATA_REPLACED {
			n.replaced("the cluster knows this member by another data id")
			return
		}
		if !n.wait(ctx) {
			return
		}
	}
}

// attributesKnown reports whether the cluster has the attributes that publishAttributes
// would propose.
func (n *Node) attributesKnown() bool {
	for _, m := range n.host.Published.View().Cluster.GetMembers() {
		if m.Id == n.cfg.MemberID {
			return m.Name == n.cfg.Name && slices.Equal(m.ClientUrls, n.cfg.ClientURLs) && m.DataId == n.id.DataID
		}
	}
	return false
}

// wait waits for a heartbeat between two attempts. It returns false if the core has ended,
// or ctx.
func (n *Node) wait(ctx context.Context) bool {
	select {
	case <-n.core.Done():
		return false
	case <-ctx.Done():
		return false
	case <-time.After(n.cfg.Heartbeat):
		return true
	}
}

// AwaitCompaction implements grpcgw.Member.
func (n *Node) AwaitCompaction(ctx context.Context, revision int64) error {
	return n.host.Compacted.Await(ctx, revision)
}

// Reclaim implements grpcgw.Member.
func (n *Node) Reclaim(ctx context.Context) error { return n.storeError(n.loops.Reclaim(ctx)) }

// storeError converts the errors of the store, and of a core that stops or reboots, to
// those that the gateway knows. It reports damage to corrupt.
func (n *Node) storeError(err error) error {
	var damage *backend.CorruptError
	switch {
	case errors.Is(err, backend.ErrClosed), errors.Is(err, actors.ErrClosed):
		return mvcc.ErrClosed
	case errors.As(err, &damage):
		n.corrupt(err)
		return &mvcc.CorruptError{Pack: mvcc.Revision{Main: damage.Pack.Main, Sub: damage.Pack.Sub},
			Replicated: n.host.Replicated(), Err: err}
	}
	return err
}

// newWatches returns the watch streams. Their hub is spawned with the edge.
func (n *Node) newWatches() *watchactor.Streams {
	w := watchactor.NewStreams(watchactor.Config{
		Published: n.shared.Published,
		Spawn:     func(c actors.Child) (*actors.Handle, error) { return n.edge.Spawn(c) },
		Unpinned: func() {
			if c := n.host.Current(); c != nil {
				_ = mvccactor.Continue(c.MVCC) // the next applied entry does the same
			}
		},
		Turn:   n.reads.Turn,
		Reason: grpcgw.WatchReason,
		Faults: n.cfg.Faults,
	})
	n.shared.Published.Notify(w.Wake)
	return w
}

// Watches implements grpcgw.Member.
func (n *Node) Watches() *watchactor.Streams { return n.watches }

// StoreHash implements grpcgw.Member.
func (n *Node) StoreHash(ctx context.Context) (uint32, error) {
	c := n.host.Current()
	if c == nil {
		return 0, mvcc.ErrClosed
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	err := c.Store.State(func(e backend.Entry) error {
		sum.Write([]byte(e.Key))
		sum.Write(e.Value)
		return ctx.Err()
	})
	if err != nil {
		return 0, n.storeError(err)
	}
	err = c.Store.Scan(func(id backend.PackID, value []byte) error {
		sum.Write([]byte(id.String()))
		sum.Write(value)
		return ctx.Err()
	})
	return sum.Sum32(), n.storeError(err)
}

// Actors implements grpcgw.Member.
func (n *Node) Actors() actors.Snapshot { return n.registry.Snapshot() }

// Timeline implements grpcgw.Member.
func (n *Node) Timeline() *actors.Timeline { return n.host.Timeline }

// currentCore returns the parts of the running core that the compactor and the scrubber
// use; ok is false if none is running.
func (n *Node) currentCore() (core mvccactor.Core, ok bool) {
	c := n.host.Current()
	if c == nil {
		return core, false
	}
	return c.Core(), true
}
