package backend

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// TestModel commits random batches to both stores and compares them with maps, across closes,
// kills and reclaims.
func TestModel(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		var m Store = NewMemory()
		testModel(t, func() Store { return m }, func() Store {
			r, err := m.(*Memory).Reopen(Config{})
			must(t, err)
			m = r
			return r
		})
	})
	t.Run("badger", func(t *testing.T) {
		cfg := small(t.TempDir())
		var s Store = mustOpen(t, cfg)
		kill := false
		testModel(t, func() Store { return s }, func() Store {
			if kill = !kill; kill {
				cfg.Dir = snapshot(t, cfg.Dir)
			}
			must(t, s.Close())
			s = mustOpen(t, cfg)
			return s
		})
	})
}

func testModel(t *testing.T, start, reopen func() Store) {
	const rounds = 150
	r := rand.New(rand.NewPCG(1, 2))
	packs, state := map[PackID]string{}, map[string]string{}
	s := start()
	for round := range rounds {
		var b Batch
		used := map[PackID]bool{}
		for range r.IntN(6) {
			id := PackID{Main: 1 + r.Int64N(40), Sub: r.Int32N(2)}
			if used[id] {
				continue
			}
			used[id] = true
			if r.IntN(3) == 0 {
				b.Delete = append(b.Delete, id)
				delete(packs, id)
				continue
			}
			size := []int{0, 1, 500, 1015, 1016, 5000, 40000}[r.IntN(7)]
			c := content(uint64(round)<<8|uint64(id.Main), size)
			b.Put = append(b.Put, Pack{ID: id, Parts: [][]byte{c[:size/3], c[size/3:]}})
			packs[id] = string(c)
		}
		for _, i := range r.Perm(8)[:r.IntN(4)] {
			name := fmt.Sprint("name", i)
			if r.IntN(3) == 0 {
				b.Unset = append(b.Unset, name)
				delete(state, name)
				continue
			}
			value := string(content(uint64(round), []int{0, 20, 3000}[r.IntN(3)]))
			b.Set = append(b.Set, Entry{Key: name, Value: []byte(value)})
			state[name] = value
		}
		must(t, s.Commit(b))
		if round%50 == 20 {
			_, err := s.Reclaim(t.Context(), Budget{Duty: 1})
			must(t, err)
		}
		if round%60 == 30 {
			s = reopen()
		}
		if round%20 == 0 {
			gotPacks, gotState := contents(t, s)
			if !maps.Equal(gotPacks, packs) || !maps.Equal(gotState, state) {
				t.Fatalf("round %d: contents differ from the model", round)
			}
			if n := s.Sizes().Packs; n != len(packs) {
				t.Fatalf("round %d: %d packs, want %d", round, n, len(packs))
			}
		}
		id := PackID{Main: 1 + r.Int64N(40), Sub: r.Int32N(2)}
		got, err := s.Load(id)
		if want, ok := packs[id]; ok {
			must(t, err)
			if string(got) != want {
				t.Fatalf("round %d: pack %s differs", round, id)
			}
		} else if wantCorrupt(t, err).Pack != id {
			t.Fatalf("wrong pack in %v", err)
		}
	}
}

func TestEmptyAndMissing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "db")
	cfg := small(dir)
	cfg.MustExist = true
	if _, err := Open(cfg); !errors.Is(err, ErrMissing) {
		t.Fatalf("want ErrMissing, got %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("a refused open created the directory")
	}
	s := mustOpen(t, small(dir))
	info, err := os.Stat(dir)
	must(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Fatalf("mode %v", info.Mode())
	}
	if _, err := Open(small(dir)); !errors.Is(err, ErrInUse) {
		t.Fatalf("want ErrInUse, got %v", err)
	}
	must(t, s.Close())
	if err := s.Close(); !errors.Is(err, ErrClosed) {
		t.Fatalf("second close: %v", err)
	}
	s = mustOpen(t, cfg)
	must(t, s.Close())
	for name, err := range map[string]error{
		"commit": s.Commit(Batch{}),
		"scan":   s.Scan(nil),
		"state":  s.State(nil),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Load(PackID{Main: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("load: %v", err)
	}
	if _, err := s.Reclaim(t.Context(), Budget{}); !errors.Is(err, ErrClosed) {
		t.Errorf("reclaim: %v", err)
	}
}

func TestBadBatch(t *testing.T) {
	t.Parallel()
	cfg := small(t.TempDir())
	for _, s := range []Store{mustOpen(t, cfg), NewMemory()} {
		many := make([]Entry, 10000)
		for i := range many {
			many[i] = Entry{Key: fmt.Sprint(i)}
		}
		for name, b := range map[string]Batch{
			"id":      {Put: []Pack{{}}},
			"sub":     {Delete: []PackID{{Main: 1, Sub: -1}}},
			"twice":   {Put: []Pack{{ID: PackID{Main: 1}}}, Delete: []PackID{{Main: 1}}},
			"name":    {Set: []Entry{{}}},
			"names":   {Set: []Entry{{Key: "a"}}, Unset: []string{"a"}},
			"large":   {Put: []Pack{pack(1, make([]byte, defaultValueLogBytes/2))}},
			"state":   {Set: many},
			"long":    {Unset: []string{strings.Repeat("x", maxNameLen+1)}},
			"content": {Set: []Entry{{Key: "a", Value: make([]byte, defaultValueLogBytes/2)}}},
		} {
			if err := s.Commit(b); !errors.Is(err, ErrBatch) {
				t.Errorf("%s: %v", name, err)
			}
		}
		must(t, s.Commit(Batch{Set: []Entry{{Key: "a"}}}))
	}
}

// TestSplit interrupts a batch of many transactions after each of them.
func TestSplit(t *testing.T) {
	t.Parallel()
	var put []Pack
	var old, gone []PackID
	want := map[PackID]string{}
	base := Batch{Set: []Entry{{Key: "revision", Value: []byte("old")}}}
	for i := int64(1); i <= 1500; i++ {
		base.Put = append(base.Put, pack(i, content(uint64(i), 10)))
		old = append(old, PackID{Main: i})
	}
	gone = old[:1200]
	for i := int64(2001); i <= 2400; i++ {
		c := content(uint64(i), 6000)
		put = append(put, pack(i, c))
		want[PackID{Main: i}] = string(c)
	}
	batch := Batch{Put: put, Delete: gone, Set: []Entry{{Key: "revision", Value: []byte("new")}}}

	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	must(t, s.Commit(base))
	steps, err := planBatch(batch, s.limits)
	must(t, err)
	if len(steps) < 6 {
		t.Fatalf("only %d steps", len(steps))
	}
	for i, st := range steps {
		s.commit.Lock()
		must(t, s.apply(st, i < len(steps)-1))
		s.commit.Unlock()
		crashed := cfg
		crashed.Dir = snapshot(t, cfg.Dir)
		log := &testLogger{}
		crashed.Logger = log
		c := mustOpen(t, crashed)
		packs, state := contents(t, c)
		newState := state["revision"] == "new"
		for id, w := range want {
			if got, ok := packs[id]; ok && got != w || newState && !ok {
				t.Fatalf("step %d: pack %s, state new %v", i, id, newState)
			}
		}
		for _, id := range old {
			if _, ok := packs[id]; !ok && (!newState || id.Main > 1200) {
				t.Fatalf("step %d: pack %s is gone, state new %v", i, id, newState)
			}
		}
		if last := i == len(steps)-1; last == log.contains("interrupted") {
			t.Fatalf("step %d of %d: log %q", i, len(steps), log.lines)
		}
		// The caller deletes what is above its revision.
		if !newState {
			var b Batch
			for id := range packs {
				if id.Main > 1500 {
					b.Delete = append(b.Delete, id)
				}
			}
			must(t, c.Commit(b))
			if n := c.Sizes().Packs; n != len(old) {
				t.Fatalf("step %d: %d packs after the discard", i, n)
			}
		}
		must(t, c.Close())
	}
	packs, _ := contents(t, s)
	if len(packs) != len(put)+len(old)-len(gone) {
		t.Fatalf("%d packs", len(packs))
	}
}

// TestPlan checks the order and the limits of every plan.
func TestPlan(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		l := limits{entries: 1 + r.IntN(20), bytes: 300 + r.Int64N(5000), logBytes: 1 + r.Int64N(20000), packBytes: 30000}
		var b Batch
		for i := range r.IntN(40) {
			b.Put = append(b.Put, pack(int64(i+1), make([]byte, []int{0, 100, 250, 2000, 10000}[r.IntN(5)])))
		}
		for i := range r.IntN(60) {
			b.Delete = append(b.Delete, PackID{Main: int64(1000 + i)})
		}
		for i := range r.IntN(6) {
			b.Set = append(b.Set, Entry{Key: fmt.Sprint(i), Value: make([]byte, r.IntN(60))})
		}
		steps, err := planBatch(b, l)
		if err != nil {
			if u := 0; len(b.Set) == u {
				t.Fatal(err)
			}
			continue
		}
		var all Batch
		stage := 0
		for _, st := range steps {
			var u usage
			for _, p := range st.Put {
				u = u.plus(packKeyLen, valueLen(p.Parts...))
			}
			for _, e := range st.Set {
				u = u.plus(1+len(e.Key), valueLen(e.Value))
			}
			for range st.Delete {
				u = u.plus(packKeyLen, 0)
			}
			if !u.fits(l) && u.entries > 1 {
				t.Fatalf("%+v exceeds %+v", u, l)
			}
			if len(st.Put) > 0 && stage > 0 || len(st.Set) > 0 && stage > 1 {
				t.Fatal("out of order")
			}
			if len(st.Set) > 0 {
				stage = 1
			}
			if len(st.Delete) > 0 {
				stage = 2
			}
			all.Put = append(all.Put, st.Put...)
			all.Delete = append(all.Delete, st.Delete...)
			all.Set = append(all.Set, st.Set...)
		}
		if len(all.Put) != len(b.Put) || !slices.Equal(all.Delete, b.Delete) || len(all.Set) != len(b.Set) {
			t.Fatal("the steps are not the batch")
		}
		for i, p := range all.Put {
			if p.ID != b.Put[i].ID {
				t.Fatal("packs out of order")
			}
		}
	}
}

// TestLargePacks stores packs of 1.5 and 10 MiB and small ones.
func TestLargePacks(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), ValueLogBytes: 24 << 20}
	s := mustOpen(t, cfg)
	want := map[PackID]string{}
	for round := range 2 {
		var b Batch
		for i, n := range []int{3 << 19, 10 << 20, 100, 3 << 19, 10 << 20} {
			c := content(uint64(round*10+i), n)
			b.Put = append(b.Put, pack(int64(i+1), c))
			want[PackID{Main: int64(i + 1)}] = string(c)
		}
		must(t, s.Commit(b))
	}
	check := func(s *store) {
		for id, w := range want {
			got, err := s.Load(id)
			must(t, err)
			if string(got) != w {
				t.Fatalf("pack %s differs", id)
			}
		}
	}
	check(s)
	cfg.Dir = snapshot(t, cfg.Dir)
	check(mustOpen(t, cfg))
}

// TestLoadDuringCommit reads packs while they are replaced and their value logs rewritten:
// every read returns one of the versions, none fails.
func TestLoadDuringCommit(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, small(t.TempDir()))
	const ids = 8
	value := func(version byte) []byte { return slices.Repeat([]byte{version}, 20000) }
	put := func(version byte) {
		var b Batch
		for i := range int64(ids) {
			b.Put = append(b.Put, pack(i+1, value(version)))
		}
		must(t, s.Commit(b))
	}
	put(0)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var loads atomic.Int64
	for g := range 3 {
		wg.Go(func() {
			for i := int64(g); !stop.Load(); i++ {
				got, err := s.Load(PackID{Main: i%ids + 1})
				if err != nil {
					t.Error(err)
					return
				}
				if string(got) != string(value(got[0])) {
					t.Error("torn value")
					return
				}
				loads.Add(1)
			}
		})
	}
	for v := range 40 {
		put(byte(v))
		if v%20 == 10 {
			_, err := s.Reclaim(t.Context(), Budget{Duty: 1, Garbage: minGarbage})
			must(t, err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if loads.Load() == 0 {
		t.Fatal("no loads")
	}
}

// TestFailure logs the lines that badger logs for failures.
func TestFailure(t *testing.T) {
	t.Parallel()
	cfg := small(t.TempDir())
	failed := make(chan error, 10)
	cfg.OnFailure = func(err error) { failed <- err }
	s := mustOpen(t, cfg)
	must(t, s.Commit(Batch{Put: []Pack{pack(1, content(1, 5000))}}))
	s.bridge.Errorf("Unable to read: Key: %v, Version : %v, meta: %v, userMeta: %v Error: %v", 1, 2, 3, 4, 5)
	s.bridge.Errorf("Invalid read: vp: %+v", 1)
	must(t, s.Commit(Batch{}))
	s.bridge.Errorf("Error while curlf sync: %v\n", errors.New("input/output error"))
	s.bridge.Errorf("writeRequests: %v", errors.New("second"))
	err := s.Commit(Batch{Set: []Entry{{Key: "a"}}})
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "input/output error") {
		t.Fatalf("commit after a failure: %v", err)
	}
	if got := <-failed; !strings.Contains(got.Error(), "input/output error") {
		t.Fatalf("callback got %v", got)
	}
	if _, err := s.Load(PackID{Main: 1}); err != nil {
		t.Fatalf("load after a failure: %v", err)
	}
	if _, err := s.Reclaim(t.Context(), Budget{}); !errors.Is(err, ErrFailed) {
		t.Fatalf("reclaim after a failure: %v", err)
	}
	must(t, s.Close())
	if len(failed) != 0 {
		t.Fatal("the callback fired twice")
	}
}

// TestTransactionTooBig makes badger refuse a transaction that exceeds its limits: the store
// fails, and nothing of the transaction is stored.
func TestTransactionTooBig(t *testing.T) {
	t.Parallel()
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	var st step
	for i := int64(1); i < 3000; i++ {
		st.Put = append(st.Put, pack(i, nil))
	}
	s.commit.Lock()
	err := s.apply(st, false)
	s.commit.Unlock()
	if !errors.Is(err, ErrFailed) || !errors.Is(err, badger.ErrTxnTooBig) {
		t.Fatalf("got %v", err)
	}
	if err := s.Commit(Batch{}); !errors.Is(err, ErrFailed) {
		t.Fatalf("next commit: %v", err)
	}
	must(t, s.Close())
	if n := mustOpen(t, cfg).Sizes().Packs; n != 0 {
		t.Fatalf("%d packs", n)
	}
}

func TestVisit(t *testing.T) {
	t.Parallel()
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	must(t, s.Commit(Batch{
		Put: []Pack{pack(300, []byte("b")), pack(2, []byte("a"))},
		Set: []Entry{{Key: "y", Value: []byte("1")}, {Key: "x", Value: []byte("2")}},
	}))
	must(t, s.Close())
	var seen []string
	cfg.VisitState = func(e Entry) error { seen = append(seen, e.Key+string(e.Value)); return nil }
	cfg.VisitPack = func(id PackID, b []byte) error { seen = append(seen, id.String()+string(b)); return nil }
	must(t, mustOpen(t, cfg).Close())
	if got := strings.Join(seen, " "); got != "x2 y1 2.0a 300.0b" {
		t.Fatalf("visited %q", got)
	}
	boom := errors.New("boom")
	cfg.VisitPack = func(PackID, []byte) error { return boom }
	if _, err := Open(cfg); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	cfg.VisitPack = nil
	mustOpen(t, cfg)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{
		{},
		{Dir: "x", MemTableBytes: 1},
		{Dir: "x", ValueLogBytes: 1},
		{Dir: "x", ValueLogBytes: 1 << 40},
	} {
		if _, err := Open(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	for _, b := range []Budget{{Duty: -1}, {Duty: 2}, {Garbage: 0.01}, {Garbage: 1}} {
		if _, err := b.withDefaults(); err == nil {
			t.Errorf("%+v was accepted", b)
		}
	}
}
