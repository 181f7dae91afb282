package crashtest

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// holdingKept is for how long holdings are kept after they were checked: longer than a client
// takes to record what it knows.
const holdingKept = time.Minute

// holdings is what clients know of the locks that they hold and of the elections that they
// have won: who holds one, by its fencing token (the create revision of the holder's key), and
// when. Unlike the ledger, which follows the events, it compares clients by the clock.
type holdings struct {
	mu    sync.Mutex
	taken map[string][]holding // by the lock's name: what clients were told to hold; at is the response
	used  map[string][]holding // writes by holders that succeeded; at is the call
}

type holding struct {
	token int64
	at    time.Duration
}

func newHoldings() *holdings {
	return &holdings{taken: map[string][]holding{}, used: map[string][]holding{}}
}

// take records when a client learned that it holds a lock.
func (h *holdings) take(name string, token int64, at time.Duration) { h.add(h.taken, name, token, at) }

// use records that a write of a holder, called at a time, succeeded.
func (h *holdings) use(name string, token int64, at time.Duration) { h.add(h.used, name, token, at) }

func (h *holdings) add(to map[string][]holding, name string, token int64, at time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to[name] = append(to[name], holding{token, at})
}

// check returns an error if there were two holders at a time: a token that two clients were
// told, or a write that a holder called after another client had been told a higher token. It
// forgets what is older than holdingKept.
func (h *holdings) check(now time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, taken := range h.taken {
		byTime := func(a, b holding) int { return cmp.Compare(a.at, b.at) }
		slices.SortFunc(taken, byTime)
		slices.SortFunc(h.used[name], byTime)
		if err := exclusive(name, taken, h.used[name]); err != nil {
			return err
		}
		h.taken[name] = forget(taken, now-holdingKept)
		h.used[name] = forget(h.used[name], now-holdingKept)
	}
	return nil
}

// exclusive checks the holdings of one lock, which are in order of time.
func exclusive(name string, taken, used []holding) error {
	holders := map[int64]bool{}
	var newest holding
	for _, t := range taken {
		if holders[t.token] {
			return fmt.Errorf("%w: two clients hold %s with the token %d", errEvents, name, t.token)
		}
		holders[t.token] = true
		for len(used) > 0 && used[0].at <= t.at {
			if used[0].token < newest.token {
				return fmt.Errorf("%w: the holder of %s with the token %d writes %v after the token %d was given out", errEvents,
					name, used[0].token, used[0].at-newest.at, newest.token)
			}
			used = used[1:]
		}
		if t.token > newest.token {
			newest = t
		}
	}
	for _, u := range used {
		if u.token < newest.token {
			return fmt.Errorf("%w: the holder of %s with the token %d writes %v after the token %d was given out", errEvents,
				name, u.token, u.at-newest.at, newest.token)
		}
	}
	return nil
}

// forget removes what is older, but the highest token of it.
func forget(list []holding, before time.Duration) []holding {
	n, _ := slices.BinarySearchFunc(list, before, func(h holding, at time.Duration) int { return cmp.Compare(h.at, at) })
	if n < 2 {
		return list
	}
	highest := slices.MaxFunc(list[:n], func(a, b holding) int { return cmp.Compare(a.token, b.token) })
	return append([]holding{highest}, list[n:]...)
}

// TestHoldings: two holders at a time are found, whichever order their clients record it in.
func TestHoldings(t *testing.T) {
	const s = time.Second
	type record struct {
		use   bool
		token int64
		at    time.Duration
	}
	for _, tc := range []struct {
		name    string
		records []record
		ok      bool
	}{
		{"nothing", nil, true},
		{"one after another", []record{{false, 5, 1 * s}, {true, 5, 2 * s}, {false, 7, 3 * s}, {true, 7, 4 * s}}, true},
		{"a former holder writes", []record{{false, 5, 1 * s}, {false, 7, 3 * s}, {true, 5, 4 * s}}, false},
		{"a former holder writes, before a third takes over", []record{{false, 5, 1 * s}, {false, 7, 3 * s}, {true, 5, 4 * s}, {false, 9, 5 * s}}, false},
		{"it was recorded late", []record{{false, 7, 3 * s}, {true, 7, 4 * s}, {false, 5, 1 * s}, {true, 5, 2 * s}}, true},
		{"it was recorded late, and is wrong", []record{{false, 7, 3 * s}, {true, 5, 4 * s}, {false, 5, 1 * s}}, false},
		{"one learns late that it held", []record{{false, 7, 3 * s}, {false, 5, 4 * s}, {true, 7, 5 * s}}, true},
		{"one learns late, and writes", []record{{false, 7, 3 * s}, {false, 5, 4 * s}, {true, 5, 5 * s}}, false},
		{"two with one token", []record{{false, 5, 1 * s}, {false, 5, 2 * s}}, false},
		{"long after", []record{{false, 5, 1 * s}, {false, 7, 2 * s}, {false, 8, 3 * holdingKept}, {true, 5, 4 * holdingKept}}, false},
	} {
		// In one check, and with one after each record.
		for _, each := range []bool{false, true} {
			h := newHoldings()
			var err error
			for _, r := range tc.records {
				if r.use {
					h.use("x", r.token, r.at)
				} else {
					h.take("x", r.token, r.at)
					h.take("y", r.token+100, r.at) // another lock, which does not matter
				}
				if each && err == nil {
					err = h.check(r.at)
				}
			}
			if !each {
				err = h.check(5 * holdingKept)
			}
			if (err == nil) != tc.ok {
				t.Errorf("%s, each %v: got %v, want an error: %v", tc.name, each, err, !tc.ok)
			}
		}
	}
	h := newHoldings()
	for i := range 1000 {
		h.take("x", int64(i), time.Duration(i)*s)
		h.use("x", int64(i), time.Duration(i)*s)
	}
	if err := h.check(1000 * s); err != nil {
		t.Fatal(err)
	}
	if got, want := max(len(h.taken["x"]), len(h.used["x"])), int(holdingKept/s)+2; got > want {
		t.Errorf("%d holdings are kept, want at most %d", got, want)
	}
}
