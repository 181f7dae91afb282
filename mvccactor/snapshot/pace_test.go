package snapshot

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/peerpb"
)

func yes() bool { return true }

// resting counts the chunks after which the transfer rests.
func resting(chunks []*peerpb.SnapshotChunk) (n int) {
	for _, c := range chunks {
		if c.Rest {
			n++
		}
	}
	return n
}

// While clients write, the sender works a third of the time; a chunk that takes long does not
// make it rest much longer, and neither does a transfer of hours.
func TestSendRests(t *testing.T) {
	const packs = 600
	for name, c := range map[string]struct {
		busy  func() bool
		work  time.Duration
		rests func(chunks int) (n int, each time.Duration)
	}{
		"nobody writes":  {func() bool { return false }, 10 * time.Millisecond, func(int) (int, time.Duration) { return 0, 0 }},
		"nobody can":     {nil, 10 * time.Millisecond, func(int) (int, time.Duration) { return 0, 0 }},
		"clients write":  {yes, 10 * time.Millisecond, func(chunks int) (int, time.Duration) { return chunks - 1, 20 * time.Millisecond }},
		"it is stuck":    {yes, 5 * time.Second, func(chunks int) (int, time.Duration) { return chunks - 1, time.Second }},
		"it takes hours": {yes, 14 * time.Second, func(int) (int, time.Duration) { return 80, time.Second }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &tape{onSend: func(int) error { time.Sleep(c.work); return nil }}
				cfg := sendConfig(source(t, packs))
				cfg.Busy = c.busy
				began := time.Now()
				_, err := Send(t.Context(), cfg, p)
				must(t, err)
				n, each := c.rests(len(p.chunks))
				took, want := time.Since(began), time.Duration(len(p.chunks))*c.work+time.Duration(n)*each
				if took != want || resting(p.chunks) != n {
					t.Errorf("got %v for %d chunks, %d of them followed by a rest, want %v and %d", took, len(p.chunks), resting(p.chunks), want, n)
				}
			})
		})
	}
}

// A sender stops resting in a round that is not much smaller than the one before it, because
// writers may outrun it.
func TestSendHurries(t *testing.T) {
	for _, c := range []struct {
		written int // packs written during the first round of 30
		rests   bool
	}{{12, true}, {40, false}} {
		m := source(t, 30)
		p := &tape{onSend: func(n int) error {
			if n != 2 {
				return nil
			}
			var b backend.Batch
			for i := range c.written {
				b.Put = append(b.Put, backend.Pack{ID: backend.PackID{Main: int64(100 + i)}, Parts: [][]byte{make([]byte, 1000)}})
			}
			return m.Commit(b)
		}}
		cfg := sendConfig(m)
		cfg.Busy = yes
		_, err := Send(t.Context(), cfg, p)
		must(t, err)
		for i, chunk := range p.chunks {
			if len(chunk.Packs) == 0 || chunk.End != nil {
				continue
			}
			first, last := chunk.Packs[0].Main, chunk.Packs[len(chunk.Packs)-1].Main
			if last < 30 && !chunk.Rest {
				t.Errorf("%d packs: chunk %d of the first round has no rest", c.written, i)
			}
			if first >= 100 && last < int64(100+c.written-1) && chunk.Rest != c.rests {
				t.Errorf("%d packs: got rest %v after chunk %d of the second round, want %v", c.written, chunk.Rest, i, c.rests)
			}
		}
	}
}

// slowStore takes time for a commit.
type slowStore struct {
	backend.Store
	commits int
}

const commitTime = 10 * time.Millisecond

func (s *slowStore) Commit(b backend.Batch) error {
	time.Sleep(commitTime)
	s.commits++
	return s.Store.Commit(b)
}

// If the sender rests, the receiver commits each chunk, and works a third of the time.
func TestReceiveRests(t *testing.T) {
	for name, rest := range map[string]bool{"nobody writes": false, "clients write": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := record(t, 30)
				chunks := 0 // with packs, before the end
				for _, c := range p.chunks {
					c.Rest = rest
					if len(c.Packs) > 0 && c.End == nil {
						chunks++
					}
				}
				cfg := receiveConfig(t)
				slow := &slowStore{Store: backend.NewMemory()}
				cfg.OpenBackend = func(c backend.Config) (backend.Store, error) { return slow, os.Mkdir(c.Dir, 0o700) }
				began := time.Now()
				_, err := Receive(t.Context(), cfg, p)
				must(t, err)
				commits, rested := 2, time.Duration(0) // the last chunk, and the state with the applied index
				if rest {
					commits, rested = commits+chunks, time.Duration(chunks)*restFactor*commitTime
				}
				took, want := time.Since(began), time.Duration(commits)*commitTime+rested
				if took != want || slow.commits != commits {
					t.Errorf("got %d commits in %v, want %d in %v", slow.commits, took, commits, want)
				}
			})
		})
	}
}

// loads counts the packs that are read without a buffer.
type loads struct {
	backend.Store
	fresh int
}

func (l *loads) LoadStored(p backend.PackInfo, buf []byte) ([]byte, error) {
	if buf == nil {
		l.fresh++
	}
	return l.Store.LoadStored(p, buf)
}

// A transfer reads all packs into the memory of a few.
func TestSendReusesBuffers(t *testing.T) {
	l := &loads{Store: source(t, 300)}
	p := new(tape)
	_, err := Send(t.Context(), sendConfig(l), p)
	must(t, err)
	if l.fresh == 0 || l.fresh > 6 {
		t.Errorf("got %d buffers for 300 packs, want those of a chunk: at most 6", l.fresh)
	}
	if _, err := Receive(t.Context(), receiveConfig(t), p); err != nil {
		t.Errorf("the chunks have other content: %v", err)
	}
}

// BenchmarkTransfer sends a store to a receiver without a connection between them.
func BenchmarkTransfer(b *testing.B) {
	const packs, packBytes = 1024, 32 << 10
	store, err := backend.Open(backend.Config{Dir: b.TempDir()})
	must(b, err)
	defer store.Close()
	m := source(b, 0)
	snap, err := m.Snapshot(backend.PackID{}, 1<<20)
	must(b, err)
	content := make([]byte, packBytes)
	for i := range packs {
		must(b, store.Commit(backend.Batch{Put: []backend.Pack{{ID: backend.PackID{Main: int64(i + 1)}, Parts: [][]byte{content}}}}))
	}
	for _, e := range snap.State {
		value, err := backend.OpenState(e.Key, e.Value)
		must(b, err)
		must(b, store.Commit(backend.Batch{Set: []backend.Entry{{Key: e.Key, Value: value}}}))
	}
	b.SetBytes(packs * packBytes)
	b.ReportAllocs()
	for b.Loop() {
		cfg := sendConfig(store)
		cfg.ChunkBytes, cfg.LastRoundBytes = 0, 0
		if _, err := Send(b.Context(), cfg, discard{}); err != nil {
			b.Fatal(err)
		}
	}
}

// discard encodes chunks, as a connection does.
type discard struct{}

func (discard) Send(c *peerpb.SnapshotChunk) error {
	_, err := proto.Marshal(c)
	return err
}
