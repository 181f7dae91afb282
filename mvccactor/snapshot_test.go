package mvccactor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/mvcc/mvcctest"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/walactor/wal"
)

// tape records the encoded chunks of a snapshot, and replays them. between runs before each
// is recorded.
type tape struct {
	t       *testing.T
	chunks  [][]byte
	between func()
}

func (p *tape) Send(c *peerpb.SnapshotChunk) error {
	b, err := proto.Marshal(c)
	if err != nil {
		return err
	}
	p.chunks = append(p.chunks, b)
	if p.between != nil {
		p.between()
	}
	return nil
}

func (p *tape) Recv() (*peerpb.SnapshotChunk, error) {
	if len(p.chunks) == 0 {
		return nil, io.EOF
	}
	c := new(peerpb.SnapshotChunk)
	err := proto.Unmarshal(p.chunks[0], c)
	p.chunks = p.chunks[1:]
	return c, err
}

// noHold is a hold that was never acquired.
type noHold struct{}

func (noHold) Err() error { return nil }

// transfer is a member that writes, compacts, reclaims, and changes leases while its store is
// sent.
type transfer struct {
	*crashTest
	tape   tape
	sent   *snapshot.Sent
	err    error
	during int // entries executed during the transfer
}

func newTransfer(t *testing.T, seed uint64, held bool) *transfer {
	x := &transfer{tape: tape{t: t}}
	synctest.Test(t, func(t *testing.T) {
		c := &crashTest{t: t, sys: actorstest.NewSystem(t), rng: rand.New(rand.NewPCG(seed, 12)), model: mvcctest.New(), stats: new(crashStats)}
		x.crashTest = c
		c.marks = []mark{{Mark: c.model.Mark()}}
		c.rig = newRig(t, c.sys, rigConfig{replayedTo: 1 << 20})
		write := func(n int) {
			for range n {
				c.execute([]*mvccmsg.EntryOps{c.next()})
			}
		}
		write(200)
		c.rig.flush()
		hold := interface{ Err() error }(noHold{})
		if held {
			h := c.rig.acquire()
			defer h.Release()
			hold = h
		}
		before := len(c.log)
		x.tape.between = func() {
			write(c.rng.IntN(8))
			if c.rng.IntN(3) == 0 {
				c.rig.flush()
			}
			c.reclaim()
			time.Sleep(flushInterval)
			synctest.Wait()
		}
		x.sent, x.err = snapshot.Send(context.Background(), snapshot.SendConfig{ClusterID: 1, From: 2, To: 3,
			Store: c.rig.disk, Hold: hold, ChunkBytes: 48 << 10, LastRoundBytes: 100 << 10}, &x.tape)
		x.during = len(c.log) - before
		c.rig.stop()
	})
	return x
}

// receive receives what was sent, and returns the path of the store.
func (x *transfer) receive() (path string, got *snapshot.Received) {
	x.t.Helper()
	stores := snapshot.NewStores(wal.OSFS{}, x.t.TempDir())
	got, err := snapshot.Receive(context.Background(), snapshot.ReceiveConfig{ClusterID: 1, Member: 3, From: 2, Stores: stores,
		OpenBackend: backend.Open, Check: CheckState}, &x.tape)
	if err != nil {
		x.t.Fatal(err)
	}
	if err := stores.Switch(got.Index); err != nil {
		x.t.Fatal(err)
	}
	path, err = stores.Current()
	if err != nil {
		x.t.Fatal(err)
	}
	return path, got
}

// open opens a received store and compares it with the model.
func (x *transfer) open(path string) error {
	pub := mvcc.NewPublished()
	o, err := Open(OpenConfig{Backend: backend.Config{Dir: path, MustExist: true}, OpenBackend: backend.Open, CacheBytes: 1 << 20, Published: pub})
	if err != nil {
		return err
	}
	defer o.Backend.Close()
	d := o.Durable
	if d.MemberId != 3 || d.ClusterId != 1 || d.AppliedIndex != x.sent.Index || d.AppliedTerm != x.sent.Term {
		return fmt.Errorf("got state %v, want member 3 of cluster 1 at index %d", d, x.sent.Index)
	}
	o.Store.Publish(mvcc.Applied{Index: d.AppliedIndex, Term: d.AppliedTerm, ConfState: d.ConfState, Cluster: d.Cluster})
	return x.model.Check(pub, x.marks[d.AppliedIndex].Mark)
}

func TestSnapshotUnderLoad(t *testing.T) {
	during, late := 0, 0
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			x := newTransfer(t, seed, true)
			x.t = t
			if x.err != nil {
				t.Fatal(x.err)
			}
			during += x.during
			if x.sent.Index > 200 {
				late++
			}
			path, got := x.receive()
			if got.Index != x.sent.Index || got.Term != x.sent.Term || !proto.Equal(got.ConfState, x.sent.ConfState) || got.Bytes != x.sent.Bytes {
				t.Fatalf("received %+v, want %+v", got, x.sent)
			}
			if err := x.open(path); err != nil {
				t.Fatalf("snapshot at %d: %v", x.sent.Index, err)
			}
		})
	}
	if during < 100 || late < 6 {
		t.Errorf("the test is too tame: %d entries during transfers, %d snapshots with some of them", during, late)
	}
}

// Without the hold, packs change while they are sent, and the sender notices.
func TestSnapshotWithoutHold(t *testing.T) {
	changed := 0
	for seed := range uint64(12) {
		x := newTransfer(t, seed, false)
		x.t = t
		switch {
		case errors.Is(x.err, backend.ErrChanged):
			changed++
		case x.err != nil:
			t.Fatal(x.err)
		default:
			path, _ := x.receive()
			if err := x.open(path); err != nil {
				t.Fatalf("seed %d: a snapshot without a hold was sent, and is wrong: %v", seed, err)
			}
		}
	}
	if changed == 0 {
		t.Error("no transfer failed without a hold, so the tests do not show that it is needed")
	}
}
