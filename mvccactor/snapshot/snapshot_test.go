package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/walactor/wal"
)

// tape records chunks and replays them.
type tape struct {
	chunks []*peerpb.SnapshotChunk
	err    error // at the end of the replay; nil means io.EOF
	onSend func(n int) error
}

func (p *tape) Send(c *peerpb.SnapshotChunk) error {
	p.chunks = append(p.chunks, proto.CloneOf(c)) // Send reuses the memory
	if p.onSend != nil {
		return p.onSend(len(p.chunks))
	}
	return nil
}

func (p *tape) Recv() (*peerpb.SnapshotChunk, error) {
	if len(p.chunks) == 0 {
		if p.err != nil {
			return nil, p.err
		}
		return nil, io.EOF
	}
	c := p.chunks[0]
	p.chunks = p.chunks[1:]
	return c, nil
}

// clone returns a tape with copies of the chunks.
func (p *tape) clone() *tape {
	q := new(tape)
	for _, c := range p.chunks {
		q.chunks = append(q.chunks, proto.CloneOf(c))
	}
	return q
}

type fakeHold struct{ err error }

func (h *fakeHold) Err() error { return h.err }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const testIndex = 77

// source returns a store with packs, leases and state.
func source(t testing.TB, packs int) *backend.Memory {
	m := backend.NewMemory()
	var b backend.Batch
	for i := range packs {
		b.Put = append(b.Put, backend.Pack{ID: backend.PackID{Main: int64(i + 1), Sub: int32(i % 3)},
			Parts: [][]byte{[]byte(strings.Repeat(string(rune('a'+i%26)), 1000))}})
	}
	d := &mvccmsg.Durable{Format: 2, ClusterId: 1, MemberId: 2, AppliedIndex: testIndex, AppliedTerm: 5,
		ConfState: &raftpb.ConfState{Voters: []uint64{2, 3}}, Revision: int64(packs), CompactRevision: -1}
	state, err := proto.Marshal(d)
	must(t, err)
	b.Set = []backend.Entry{{Key: StateName, Value: state}, {Key: "leases/1", Value: []byte("one")}, {Key: "leases/2", Value: []byte("two")}}
	must(t, m.Commit(b))
	return m
}

func sendConfig(store backend.Store) SendConfig {
	return SendConfig{ClusterID: 1, From: 2, To: 3, Store: store, Hold: &fakeHold{}, ChunkBytes: 4 << 10, LastRoundBytes: 8 << 10}
}

func record(t testing.TB, packs int) *tape {
	p := new(tape)
	_, err := Send(context.Background(), sendConfig(source(t, packs)), p)
	must(t, err)
	return p
}

func receiveConfig(t testing.TB) ReceiveConfig {
	return ReceiveConfig{ClusterID: 1, Member: 3, From: 2, Stores: NewStores(wal.OSFS{}, t.TempDir()), OpenBackend: backend.Open}
}

// leftovers returns what is in the folder of the stores.
func leftovers(t testing.TB, s *Stores) []string {
	t.Helper()
	names, err := s.list()
	must(t, err)
	return names
}

func TestRoundTrip(t *testing.T) {
	p := record(t, 30)
	if len(p.chunks) < 8 {
		t.Fatalf("got %d chunks, want several", len(p.chunks))
	}
	for i, c := range p.chunks {
		if n := proto.Size(c); n > 4<<10 {
			t.Errorf("chunk %d has %d bytes, want at most 4 KiB", i, n)
		}
	}
	cfg := receiveConfig(t)
	registry := prometheus.NewRegistry()
	cfg.Metrics = NewMetrics(registry)
	var progress []uint64
	cfg.Progress = func(done, total uint64) { progress = append(progress, done, total) }
	got, err := Receive(context.Background(), cfg, p)
	must(t, err)
	if got.Index != testIndex || got.Term != 5 || len(got.ConfState.Voters) != 2 {
		t.Fatalf("got %+v, want index %d, term 5 and two voters", got, testIndex)
	}
	if n := len(progress); n == 0 || progress[n-2] != got.Bytes || progress[n-1] < got.Bytes || !slices.IsSorted([]uint64{progress[0], progress[n-2]}) {
		t.Errorf("got progress %v, want it to end with %d bytes", progress, got.Bytes)
	}
	if names := leftovers(t, cfg.Stores); !slices.Equal(names, []string{folder(testIndex)}) {
		t.Fatalf("got folders %v, want %s", names, folder(testIndex))
	}
	path := cfg.Stores.path(folder(testIndex))
	index, err := AppliedIndex(backend.Config{Dir: path}, backend.Open)
	if err != nil || index != testIndex {
		t.Fatalf("got applied index %d, %v, want %d", index, err, testIndex)
	}
	store, err := backend.Open(backend.Config{Dir: path, MustExist: true})
	must(t, err)
	defer store.Close()
	written, err := store.Snapshot(backend.PackID{}, 0)
	must(t, err)
	want, err := source(t, 30).Snapshot(backend.PackID{}, 0)
	must(t, err)
	if !slices.Equal(written.Packs, want.Packs) {
		t.Errorf("got packs %v, want %v", written.Packs, want.Packs)
	}
	families, err := registry.Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			name, count := f.GetName(), m.GetCounter().GetValue()+m.GetGauge().GetValue()+float64(m.GetHistogram().GetSampleCount())
			if want := map[bool]float64{true: 0, false: 1}[strings.Contains(name, "inflights")]; count != want {
				t.Errorf("got %v for %s, want %v", count, name, want)
			}
		}
	}
	if len(families) != 5 { // the failures have no series
		t.Errorf("got %d metrics, want 5", len(families))
	}
}

// Whatever goes wrong, Receive returns an error and leaves nothing, and another one succeeds.
func TestReceiveFails(t *testing.T) {
	good := record(t, 30)
	lost := errors.New("connection lost")
	last := func(p *tape) *peerpb.SnapshotChunk { return p.chunks[len(p.chunks)-1] }
	pack := func(p *tape, i int) *peerpb.SnapshotPack { return p.chunks[i].Packs[0] }
	cases := map[string]struct {
		change func(*tape, *ReceiveConfig)
		want   error
		text   string
	}{
		"flipped byte": {func(p *tape, _ *ReceiveConfig) { v := pack(p, 3).Value; v[len(v)/2] ^= 4 }, nil, "corrupt store: pack"},
		"flipped id":   {func(p *tape, _ *ReceiveConfig) { pack(p, 3).Main ^= 1 << 40 }, nil, "corrupt store: pack"},
		"flipped sub":  {func(p *tape, _ *ReceiveConfig) { pack(p, 3).Sub ^= 1 << 40 }, ErrStream, "pack"},
		"flipped state": {func(p *tape, _ *ReceiveConfig) { v := last(p).State[0].Value; v[len(v)-1] ^= 1 }, nil,
			`state "leases/1"`},
		"flipped fingerprint": {func(p *tape, _ *ReceiveConfig) { last(p).End.Fingerprint[1] ^= 1 }, ErrFingerprint, "30 packs"},
		"short fingerprint":   {func(p *tape, _ *ReceiveConfig) { last(p).End.Fingerprint = nil }, ErrStream, "fingerprint"},
		"missing pack":        {func(p *tape, _ *ReceiveConfig) { p.chunks[3].Packs = p.chunks[3].Packs[1:] }, ErrFingerprint, "29 packs"},
		"missing state":       {func(p *tape, _ *ReceiveConfig) { last(p).State = last(p).State[1:] }, ErrFingerprint, "2 state entries"},
		"repeated pack":       {func(p *tape, _ *ReceiveConfig) { p.chunks[3].Packs[1] = pack(p, 3) }, ErrStream, "after pack"},
		"repeated chunk":      {func(p *tape, _ *ReceiveConfig) { p.chunks[4] = p.chunks[3] }, ErrStream, "after pack"},
		"swapped chunks":      {func(p *tape, _ *ReceiveConfig) { p.chunks[4], p.chunks[3] = p.chunks[3], p.chunks[4] }, ErrStream, "after pack"},
		"repeated state":      {func(p *tape, _ *ReceiveConfig) { last(p).State[1] = last(p).State[0] }, ErrStream, "after state"},
		"pack after state": {func(p *tape, _ *ReceiveConfig) {
			p.chunks[4].State = []*peerpb.SnapshotState{last(p).State[0]}
		}, ErrStream, ": pack "},
		"no begin":         {func(p *tape, _ *ReceiveConfig) { p.chunks = p.chunks[1:] }, ErrStream, "begin"},
		"two begins":       {func(p *tape, _ *ReceiveConfig) { p.chunks[2] = p.chunks[0] }, ErrStream, "begin"},
		"empty chunk":      {func(p *tape, _ *ReceiveConfig) { p.chunks[2] = new(peerpb.SnapshotChunk) }, ErrStream, "empty"},
		"no end":           {func(p *tape, _ *ReceiveConfig) { last(p).End = nil }, ErrStream, "ends before"},
		"early end":        {func(p *tape, _ *ReceiveConfig) { p.chunks[5].End = last(p).End }, ErrFingerprint, "packs"},
		"other index":      {func(p *tape, _ *ReceiveConfig) { last(p).End.Index++ }, ErrStream, "index 78"},
		"other conf state": {func(p *tape, _ *ReceiveConfig) { last(p).End.ConfState = nil }, ErrStream, "configuration"},
		"newer format":     {func(p *tape, _ *ReceiveConfig) { p.chunks[0].Begin.Format = Format + 1 }, ErrStream, "format 2"},
		"other cluster":    {func(_ *tape, c *ReceiveConfig) { c.ClusterID = 9 }, ErrOtherMember, "cluster 9"},
		"other member":     {func(_ *tape, c *ReceiveConfig) { c.Member = 9 }, ErrOtherMember, "9"},
		"other sender":     {func(_ *tape, c *ReceiveConfig) { c.From = 9 }, ErrOtherMember, "9"},
		"no room":          {func(_ *tape, c *ReceiveConfig) { c.Room = func(n int64) bool { return n < storeBytes } }, ErrNoRoom, "bytes"},
		"huge":             {func(p *tape, _ *ReceiveConfig) { p.chunks[0].Begin.Bytes = 1 << 63 }, ErrNoRoom, "bytes"},
		"room runs out": {func(_ *tape, c *ReceiveConfig) {
			calls := 0
			c.Room = func(int64) bool { calls++; return calls < 2 }
		}, ErrNoRoom, "room"},
		"refused state": {func(_ *tape, c *ReceiveConfig) { c.Check = func(*mvccmsg.Durable) error { return lost } }, lost, ""},
		"store fails": {func(_ *tape, c *ReceiveConfig) {
			c.OpenBackend = func(backend.Config) (backend.Store, error) { return nil, lost }
		}, lost, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg, p := receiveConfig(t), good.clone()
			registry := prometheus.NewRegistry()
			cfg.Metrics = NewMetrics(registry)
			c.change(p, &cfg)
			_, err := Receive(context.Background(), cfg, p)
			var damage *backend.CorruptError
			switch {
			case c.want != nil && !errors.Is(err, c.want), c.want == nil && !errors.As(err, &damage), !strings.Contains(fmt.Sprint(err), c.text):
				t.Fatalf("got %v, want %v with %q", err, c.want, c.text)
			}
			if names := leftovers(t, cfg.Stores); len(names) > 0 {
				t.Fatalf("%v is left", names)
			}
			again := receiveConfig(t)
			again.Stores = cfg.Stores
			if _, err := Receive(context.Background(), again, good.clone()); err != nil {
				t.Fatalf("afterwards, a good snapshot: %v", err)
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		cfg, p := receiveConfig(t), good.clone()
		cut := rng.IntN(len(p.chunks))
		p.chunks, p.err = p.chunks[:cut], lost
		if _, err := Receive(context.Background(), cfg, p); !errors.Is(err, lost) {
			t.Errorf("cut after %d chunks: got %v, want %v", cut, err, lost)
		}
		if names := leftovers(t, cfg.Stores); len(names) > 0 {
			t.Errorf("cut after %d chunks: %v is left", cut, names)
		}
	}
}

func TestReceivePanics(t *testing.T) {
	cfg := receiveConfig(t)
	cfg.Progress = func(uint64, uint64) { panic("boom") }
	func() {
		defer func() { recover() }()
		Receive(context.Background(), cfg, record(t, 10))
		t.Error("Receive returned, want a panic")
	}()
	if names := leftovers(t, cfg.Stores); len(names) > 0 {
		t.Errorf("%v is left after a panic", names)
	}
	if _, err := cfg.Stores.begin(); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestOneAtATime(t *testing.T) {
	cfg := receiveConfig(t)
	good := record(t, 10)
	got, err := Receive(context.Background(), cfg, good.clone())
	must(t, err)
	if _, err := Receive(context.Background(), cfg, good.clone()); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v while a snapshot waits, want ErrBusy", err)
	}
	if removed, err := cfg.Stores.Clean(); err != nil || len(removed) > 0 {
		t.Fatalf("Clean removed %v, %v, want nothing while a snapshot waits", removed, err)
	}
	must(t, cfg.Stores.Discard(got.Index))
	if names := leftovers(t, cfg.Stores); len(names) > 0 {
		t.Fatalf("%v is left after Discard", names)
	}
	_, err = Receive(context.Background(), cfg, good.clone())
	must(t, err)
	must(t, cfg.Stores.Switch(testIndex))
	if _, err := Receive(context.Background(), cfg, good.clone()); err == nil || !strings.Contains(err.Error(), "current store") {
		t.Fatalf("got %v for the index of the current store, want an error that says so", err)
	}
	if names := leftovers(t, cfg.Stores); !slices.Equal(names, []string{currentFile, folder(testIndex)}) {
		t.Fatalf("got %v, want the current store", names)
	}
}

// growing is a store that has two more packs at each look.
type growing struct {
	*backend.Memory
	next int64
}

func (g *growing) Snapshot(backend.PackID, int64) (*backend.Snapshot, error) {
	g.next++
	snap := new(backend.Snapshot)
	for i := range int64(2) {
		id := backend.PackID{Main: g.next + i}
		snap.Packs = append(snap.Packs, backend.PackInfo{ID: id, Size: 1000})
	}
	return snap, nil
}

func (g *growing) LoadStored(p backend.PackInfo, _ []byte) ([]byte, error) {
	return make([]byte, p.Size), nil
}

func TestSendFails(t *testing.T) {
	lost := errors.New("connection lost")
	ctx, cancel := context.WithCancel(context.Background())
	hold := &fakeHold{}
	for name, c := range map[string]struct {
		change func(*SendConfig, *tape, *backend.Memory)
		want   error
	}{
		"stream": {func(_ *SendConfig, p *tape, _ *backend.Memory) { p.onSend = func(int) error { return lost } }, lost},
		"hold": {func(c *SendConfig, p *tape, _ *backend.Memory) {
			c.Hold = hold
			p.onSend = func(n int) error { hold.err = lost; return nil }
		}, lost},
		"cancelled": {func(_ *SendConfig, p *tape, _ *backend.Memory) { p.onSend = func(n int) error { cancel(); return nil } }, context.Canceled},
		"changed": {func(_ *SendConfig, p *tape, m *backend.Memory) {
			p.onSend = func(int) error {
				return m.Commit(backend.Batch{Delete: []backend.PackID{{Main: 1}, {Main: 21, Sub: 2}}})
			}
		}, backend.ErrChanged},
		"damaged":  {func(_ *SendConfig, _ *tape, m *backend.Memory) { m.Corrupt(backend.PackID{Main: 4}) }, nil},
		"no state": {func(c *SendConfig, _ *tape, _ *backend.Memory) { c.Store = backend.NewMemory() }, ErrNoState},
		"outrun":   {func(c *SendConfig, _ *tape, m *backend.Memory) { c.Store = &growing{Memory: m} }, ErrOutrun},
	} {
		t.Run(name, func(t *testing.T) {
			m, p := source(t, 30), new(tape)
			cfg := sendConfig(m)
			registry := prometheus.NewRegistry()
			cfg.Metrics = NewMetrics(registry)
			c.change(&cfg, p, m)
			_, err := Send(ctx, cfg, p)
			if ctx.Err() != nil {
				ctx = context.Background()
			}
			var damage *backend.CorruptError
			if c.want != nil && !errors.Is(err, c.want) || c.want == nil && (!errors.As(err, &damage) || damage.Pack.Main != 4) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			for _, c := range p.chunks {
				if c.End != nil {
					t.Fatal("an end was sent")
				}
			}
		})
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sendConfig(source(t, 40))
		cfg.BytesPerSecond = 10_000
		start := time.Now()
		var progress uint64
		cfg.Progress = func(sent, total uint64) { progress = sent }
		sent, err := Send(context.Background(), cfg, new(tape))
		must(t, err)
		took, want := time.Since(start), time.Duration(sent.Bytes)*time.Second/10_000
		if took < want-time.Millisecond || took > want+time.Second {
			t.Errorf("took %v for %d bytes, want %v", took, sent.Bytes, want)
		}
		if progress != sent.Bytes {
			t.Errorf("got progress %d, want %d", progress, sent.Bytes)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := Send(ctx, cfg, new(tape)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded while waiting", err)
		}
	})
}

// write appends packs to a store, with ids from and below to, until it is stopped: the last
// one grows, and then the next one begins. Its state has the number of commits.
func write(store backend.Store, from, to int64, stop <-chan struct{}) error {
	d := &mvccmsg.Durable{Format: 2, ClusterId: 1, MemberId: 2, AppliedTerm: 5, AppliedIndex: uint64(3 * from)}
	for id := from; id < to; id++ {
		for n := 1; n <= 3; n++ {
			select {
			case <-stop:
				return nil
			default:
			}
			d.AppliedIndex++
			d.Revision = id
			state, err := proto.Marshal(d)
			if err != nil {
				return err
			}
			if err := store.Commit(backend.Batch{
				Put: []backend.Pack{{ID: backend.PackID{Main: id}, Parts: [][]byte{make([]byte, n<<10)}}},
				Set: []backend.Entry{{Key: StateName, Value: state}}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// From disk to disk, while the source is written and its files are rewritten.
func TestTransferBesideWrites(t *testing.T) {
	store, err := backend.Open(backend.Config{Dir: t.TempDir(), ValueLogBytes: 1 << 20})
	must(t, err)
	defer store.Close()
	stop, stopped := make(chan struct{}), make(chan error, 2)
	must(t, write(store, 1, 50, nil))
	go func() { stopped <- write(store, 50, math.MaxInt64, stop) }()
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if _, err := store.Reclaim(context.Background(), backend.Budget{Duty: 1, Garbage: 0.05}); err != nil {
				stopped <- err
				return
			}
		}
	}()
	cfg := sendConfig(store)
	cfg.LastRoundBytes = 64 << 10
	var last uint64
	for range 4 {
		p := new(tape)
		sent, err := Send(context.Background(), cfg, p)
		must(t, err)
		if sent.Index <= last {
			t.Errorf("got a snapshot at %d after one at %d", sent.Index, last)
		}
		last = sent.Index
		got, err := Receive(context.Background(), receiveConfig(t), p)
		must(t, err)
		if got.Index != sent.Index {
			t.Errorf("received index %d, sent %d", got.Index, sent.Index)
		}
	}
	close(stop)
	for range 2 {
		must(t, <-stopped)
	}
}

// A pack that is too large for the files of the receiver's store makes it open with others.
func TestLargePack(t *testing.T) {
	m := source(t, 3)
	must(t, m.Commit(backend.Batch{Put: []backend.Pack{{ID: backend.PackID{Main: 9}, Parts: [][]byte{make([]byte, 3<<20)}}}}))
	p := new(tape)
	_, err := Send(context.Background(), sendConfig(m), p)
	must(t, err)
	cfg := receiveConfig(t)
	cfg.Backend.ValueLogBytes = 1 << 20
	_, err = Receive(context.Background(), cfg, p)
	must(t, err)
	store, err := backend.Open(backend.Config{Dir: cfg.Stores.path(folder(testIndex)), MustExist: true, ValueLogBytes: 1 << 20})
	must(t, err)
	defer store.Close()
	if content, err := store.Load(backend.PackID{Main: 9}); err != nil || len(content) != 3<<20 {
		t.Fatalf("got %d bytes, %v, want 3 MiB", len(content), err)
	}
}
