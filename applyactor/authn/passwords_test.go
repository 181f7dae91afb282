package authn

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// start returns Passwords with the cheapest hashes and running workers.
func start(t testing.TB) (*Passwords, *actors.Faults) {
	t.Helper()
	faults := actors.NewFaults()
	p := NewPasswords(PasswordsConfig{Cost: bcrypt.MinCost, Key: [32]byte{1}, Faults: faults})
	sys := actorstest.NewSystem(t)
	for i := range p.workers {
		actorstest.Spawn(t, sys, p.worker(i))
	}
	return p, faults
}

// TestCheck: the password is right or not; a password that was right is cached, and the entry is
// of no use once the hash is another one.
func TestCheck(t *testing.T) {
	p, _ := start(t)
	ctx := context.Background()
	hash := mustHash(t, p, "secret")
	other := mustHash(t, p, "secret")
	for _, tc := range []struct {
		name     string
		hash     []byte
		password string
		want     error
		cached   int64
	}{
		{"wrong", hash, "guess", ErrWrong, 0},
		{"right", hash, "secret", nil, 0},
		{"right again", hash, "secret", nil, 1},
		{"wrong after it was right", hash, "Secret", ErrWrong, 1},
		{"the same password, hashed again", other, "secret", nil, 1},
		{"no such user", nil, "secret", ErrWrong, 1},
		{"no such user, and an empty password", nil, "", ErrWrong, 1},
		{"malformed hash", []byte("hash"), "secret", ErrWrong, 1},
	} {
		if err := p.Check(ctx, "ann", tc.hash, tc.password); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
		if got := p.cached.Load(); got != tc.cached {
			t.Errorf("%s: got %d answers from the cache, want %d", tc.name, got, tc.cached)
		}
	}
	if err := p.Check(ctx, "bob", hash, "secret"); err != nil || p.cached.Load() != 1 {
		t.Errorf("another user: got %v and %d answers from the cache, want none and 1", err, p.cached.Load())
	}
}

func mustHash(t testing.TB, p *Passwords, password string) []byte {
	t.Helper()
	hash, err := p.Hash(context.Background(), password)
	if err != nil {
		t.Fatal(err)
	}
	if err := bcrypt.CompareHashAndPassword(hash, []byte(password)); err != nil {
		t.Fatalf("hash of %q: %v", password, err)
	}
	return hash
}

// TestLongPasswords: bcrypt hashes 72 bytes at most, and compares no more.
func TestLongPasswords(t *testing.T) {
	p, _ := start(t)
	long := make([]byte, PasswordMax)
	for i := range long {
		long[i] = 'x'
	}
	hash := mustHash(t, p, string(long))
	if _, err := p.Hash(context.Background(), string(long)+"y"); !errors.Is(err, ErrTooLong) {
		t.Errorf("hash a longer password: got %v, want %v", err, ErrTooLong)
	}
	longer := append(long, make([]byte, 2<<20)...)
	want := bcrypt.CompareHashAndPassword(hash, longer)
	if err := p.Check(context.Background(), "ann", hash, string(longer)); (err == nil) != (want == nil) {
		t.Errorf("check a longer password: got %v, bcrypt says %v", err, want)
	}
}

// TestDummy: the hash for users who do not exist costs as much as a real one.
func TestDummy(t *testing.T) {
	for _, given := range []int{bcrypt.MinCost, 12, 0, 32} {
		want := given
		if given < bcrypt.MinCost || given > bcrypt.MaxCost {
			want = bcrypt.DefaultCost
		}
		p := NewPasswords(PasswordsConfig{Cost: given})
		if cost, err := bcrypt.Cost(p.dummy); err != nil || cost != want {
			t.Errorf("cost %d: the dummy has cost %d, %v, want %d", given, cost, err, want)
		}
	}
	p := NewPasswords(PasswordsConfig{Cost: bcrypt.MinCost})
	if err := bcrypt.CompareHashAndPassword(p.dummy, nil); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		t.Errorf("compare with the dummy: got %v, want %v", err, bcrypt.ErrMismatchedHashAndPassword)
	}
}

// TestBusy: beyond the limit, calls are refused at once; a worker that has failed refuses what it
// had, and nobody waits forever.
func TestBusy(t *testing.T) {
	p := NewPasswords(PasswordsConfig{Cost: bcrypt.MinCost})
	if err := p.Check(context.Background(), "ann", nil, "x"); !errors.Is(err, actors.ErrClosed) {
		t.Errorf("without workers: got %v, want %v", err, actors.ErrClosed)
	}
	for i := range p.workers {
		p.worker(i) // never spawned, so nothing is handled
	}
	ctx, cancel := context.WithCancel(context.Background())
	answers := make(chan error)
	calls := queueLimit.Requests * len(p.workers)
	for i := range calls + 1 {
		go func() { answers <- p.Check(ctx, fmt.Sprint("user", i), nil, "x") }()
	}
	if err := <-answers; !errors.Is(err, ErrBusy) {
		t.Errorf("one call too many: got %v, want %v", err, ErrBusy)
	}
	cancel()
	for range calls {
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("a call that was given up: got %v, want %v", err, context.Canceled)
		}
	}
}

// TestStorm: many clients that log in as the same user at once cost one hash, and none is refused.
func TestStorm(t *testing.T) {
	p, _ := start(t)
	hash := mustHash(t, p, "secret")
	clients := 4 * queueLimit.Requests * len(p.workers)
	answers := make(chan error)
	for range clients {
		go func() { answers <- p.Check(context.Background(), "ann", hash, "secret") }()
	}
	for range clients {
		if err := <-answers; err != nil {
			t.Fatalf("got %v, want that all are right", err)
		}
	}
	if len(p.flights) != 0 {
		t.Errorf("%d checks are still in progress", len(p.flights))
	}
}

// TestFirstGivesUp: those who wait for the check of another one do not give up with it.
func TestFirstGivesUp(t *testing.T) {
	p, _ := start(t)
	hash := mustHash(t, p, "secret")
	key := p.cacheKey("ann", hash, "secret")
	f, first := p.begin(key)
	if f == nil || !first {
		t.Fatal("a check is in progress already")
	}
	answer := make(chan error)
	go func() { answer <- p.Check(context.Background(), "ann", hash, "secret") }()
	p.end(key, f, context.Canceled)
	if err := <-answer; err != nil {
		t.Errorf("got %v, want that the password is right", err)
	}
}

// TestAbandoned: a worker does not compute for callers who have given up.
func TestAbandoned(t *testing.T) {
	p, _ := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w := &worker{p: p}
	if err := w.check(&CheckCall{ctx: ctx}); !errors.Is(err, context.Canceled) {
		t.Errorf("check: got %v, want %v", err, context.Canceled)
	}
	if got := w.hash(&HashCall{ctx: ctx}); !errors.Is(got.err, context.Canceled) {
		t.Errorf("hash: got %v, want %v", got.err, context.Canceled)
	}
}

// TestCacheIsBounded: the cache never has more than cacheMax entries.
func TestCacheIsBounded(t *testing.T) {
	p := NewPasswords(PasswordsConfig{})
	for i := range cacheMax + 10 {
		p.remember([32]byte{byte(i), byte(i >> 8)})
	}
	if n := len(p.right); n == 0 || n > cacheMax {
		t.Errorf("got %d entries, want 1 to %d", n, cacheMax)
	}
}
