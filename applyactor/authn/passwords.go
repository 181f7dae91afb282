package authn

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
	"golang.org/x/crypto/bcrypt"

	"github.com/troupe-db/troupe/actors"
)

// A password, in the order of the data:
//
//	Check    looks for it in the cache, or waits for a check of the same password that is in
//	         progress, and otherwise posts it to a worker
//	worker   compares it with the hash, or with one that never matches if the user has none
//	Check    adds it to the cache if it was right

var (
	// ErrWrong: the password is not the user's, or there is no such user.
	ErrWrong = errors.New("authn: wrong password")
	// ErrBusy: more passwords wait to be checked than can be in time.
	ErrBusy = errors.New("authn: too many passwords to check")
	// ErrTooLong is bcrypt's error for a password that it cannot hash.
	ErrTooLong = bcrypt.ErrPasswordTooLong
)

const (
	// PasswordMax is the length in bytes of the longest password.
	PasswordMax = 72
	// cacheMax bounds the cache: at 32 bytes each, and a map's overhead, a MiB. It is more
	// users than log in within the TTL of a token.
	cacheMax = 10_000
)

// queueLimit bounds the calls that wait for a worker. With bcrypt's default cost, 128 take seven
// seconds, which is how long a request may take.
var queueLimit = actors.Limit{Requests: 128, Bytes: 1 << 20}

// PasswordsConfig is what Passwords needs.
type PasswordsConfig struct {
	// Cost is that of bcrypt: the logarithm of the number of rounds. Outside of what bcrypt
	// accepts, the default is used, as in etcd.
	Cost int
	// Key is random, and never leaves the process: the cache is useless without it.
	Key    [sha256.Size]byte
	Faults *actors.Faults
}

// Passwords checks and hashes passwords. It is safe for concurrent use.
type Passwords struct {
	cfg     PasswordsConfig
	dummy   []byte // a hash of the configured cost, of no password
	workers []atomic.Pointer[actors.Mailbox]
	next    atomic.Uint32 // worker of the next call

	mu      sync.Mutex
	right   map[[sha256.Size]byte]struct{} // passwords that were right, by cacheKey
	flights map[[sha256.Size]byte]*flight  // checks in progress, by cacheKey

	checks, cached, refused atomic.Int64 // counts since the start
}

// workers returns how many workers there are: half of the processors, so that logging in cannot
// take those that serve requests.
func workers() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// NewPasswords returns Passwords without workers; see Children.
func NewPasswords(cfg PasswordsConfig) *Passwords {
	if cfg.Cost < bcrypt.MinCost || cfg.Cost > bcrypt.MaxCost {
		cfg.Cost = bcrypt.DefaultCost
	}
	// Salt and hash are well formed; nobody knows a password with this hash, and worker.check
	// refuses it as well.
	dummy := fmt.Sprintf("$2a$%02d$%s", cfg.Cost, strings.Repeat(".", 53))
	return &Passwords{cfg: cfg, dummy: []byte(dummy), workers: make([]atomic.Pointer[actors.Mailbox], workers()),
		right: map[[sha256.Size]byte]struct{}{}, flights: map[[sha256.Size]byte]*flight{}}
}

// Children returns the workers, as actors at the edge.
func (p *Passwords) Children() []actors.Child {
	children := make([]actors.Child, len(p.workers))
	for i := range children {
		children[i] = actors.Child{Name: actors.EdgePasswords(i), New: func(uint64) (actors.Stage, error) { return p.worker(i), nil }}
	}
	return children
}

// CheckCall asks a worker to compare a password with a hash.
type CheckCall struct {
	ctx            context.Context
	hash, password []byte
	reply          actors.Reply[error]
}

// HashCall asks a worker to hash a password.
type HashCall struct {
	ctx      context.Context
	password []byte
	reply    actors.Reply[hashed]
}

type hashed struct {
	hash []byte
	err  error
}

// Check returns nil if hash is that of the user's password. Without a hash it takes as long, and
// returns ErrWrong. Errors: ErrWrong, ErrBusy, actors.ErrClosed, and that of ctx.
func (p *Passwords) Check(ctx context.Context, user string, hash []byte, password string) error {
	p.checks.Add(1)
	password = password[:min(len(password), PasswordMax)] // bcrypt does not look at the rest
	key := p.cacheKey(user, hash, password)
	for {
		f, first := p.begin(key)
		switch {
		case f == nil:
			p.cached.Add(1)
			return nil
		case first:
			err := p.compare(ctx, hash, password)
			p.end(key, f, err)
			return err
		}
		if err := actors.Wait(ctx, f.done); err != nil {
			return err
		}
		if !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) {
			return f.err
		} // the first has given up
	}
}

// flight is a check in progress, which others of the same password wait for: clients that log in as
// the same user all at once, after a restart, cost one hash.
type flight struct {
	done chan struct{} // closed by the first, when err is set
	err  error
}

// begin returns the check in progress of a password, and whether the caller is the first, who must
// call end. It returns nil if the password was right before.
func (p *Passwords) begin(key [sha256.Size]byte) (f *flight, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.right[key]; ok {
		return nil, false
	}
	if f = p.flights[key]; f == nil {
		f, first = &flight{done: make(chan struct{})}, true
		p.flights[key] = f
	}
	return f, first
}

func (p *Passwords) end(key [sha256.Size]byte, f *flight, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flights, key)
	if err == nil {
		p.remember(key)
	}
	f.err = err
	close(f.done)
}

// remember adds a password to the cache. It is called with mu held.
func (p *Passwords) remember(key [sha256.Size]byte) {
	if len(p.right) >= cacheMax {
		clear(p.right) // the old passwords of users who have changed them are in it too
	}
	p.right[key] = struct{}{}
}

// compare has a worker compare a password with a hash.
func (p *Passwords) compare(ctx context.Context, hash []byte, password string) error {
	c := &CheckCall{ctx: ctx, hash: hash, password: []byte(password), reply: actors.NewReply[error]()}
	if err := p.post(c, len(password)); err != nil {
		return err
	}
	answer, err := c.reply.Wait(ctx)
	if err != nil {
		return err
	}
	return answer
}

// Hash returns the hash of a password. Errors: ErrTooLong, ErrBusy, actors.ErrClosed, and that of
// ctx.
func (p *Passwords) Hash(ctx context.Context, password string) ([]byte, error) {
	if len(password) > PasswordMax {
		return nil, ErrTooLong
	}
	c := &HashCall{ctx: ctx, password: []byte(password), reply: actors.NewReply[hashed]()}
	if err := p.post(c, len(password)); err != nil {
		return nil, err
	}
	answer, err := c.reply.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return answer.hash, answer.err
}

// post posts a call to the next worker that has room.
func (p *Passwords) post(call any, bytes int) error {
	first := p.next.Add(1)
	err := error(actors.ErrClosed)
	for i := range uint32(len(p.workers)) {
		box := p.workers[(first+i)%uint32(len(p.workers))].Load()
		if box == nil {
			continue
		}
		if err = box.TryPost(0, call, actors.Cost{Requests: 1, Bytes: bytes}); err == nil {
			return nil
		}
	}
	p.refused.Add(1)
	if errors.Is(err, actors.ErrFull) {
		return ErrBusy
	}
	return err
}

// cacheKey identifies a password together with the hash that it was checked against.
func (p *Passwords) cacheKey(user string, hash []byte, password string) (key [sha256.Size]byte) {
	h := hmac.New(sha256.New, p.cfg.Key[:])
	for _, part := range [][]byte{[]byte(user), hash, []byte(password)} {
		h.Write(binary.AppendUvarint(nil, uint64(len(part))))
		h.Write(part)
	}
	h.Sum(key[:0])
	return key
}

// worker is an actor that computes hashes.
type worker struct{ p *Passwords }

func (p *Passwords) worker(i int) actors.Stage {
	w := &worker{p: p}
	box := actors.NewMailbox(actors.MailboxConfig{
		Name: actors.EdgePasswords(i), Class: actors.Refuse, Limit: queueLimit,
		MaxBatch: actors.BatchLimit{Messages: 1}, OnReject: rejectCall, Faults: p.cfg.Faults,
	})
	p.workers[i].Store(box)
	return actors.Stage{Name: actors.EdgePasswords(i), Actor: w, Mailbox: box}
}

// Receive implements actor.Actor.
func (w *worker) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	for ; b.Done < len(b.Msgs); b.Done++ {
		w.p.cfg.Faults.Point(passwordWorker, "entry")
		switch c := b.Msgs[b.Done].(type) {
		case *CheckCall:
			c.reply.Resolve(w.check(c))
		case *HashCall:
			c.reply.Resolve(w.hash(c))
		}
	}
}

// passwordWorker is the name under which tests inject faults into workers.
const passwordWorker = "edge/passwords"

func (w *worker) check(c *CheckCall) error {
	if err := c.ctx.Err(); err != nil {
		return err // nobody waits any more
	}
	hash := c.hash
	if len(hash) == 0 {
		hash = w.p.dummy
	}
	if bcrypt.CompareHashAndPassword(hash, c.password) != nil || len(c.hash) == 0 {
		return ErrWrong
	}
	return nil
}

func (w *worker) hash(c *HashCall) hashed {
	if err := c.ctx.Err(); err != nil {
		return hashed{err: err}
	}
	hash, err := bcrypt.GenerateFromPassword(c.password, w.p.cfg.Cost)
	return hashed{hash, err}
}

// rejectCall fails a call that its worker will not handle.
func rejectCall(msg any, err error) {
	switch c := msg.(type) {
	case *CheckCall:
		c.reply.Resolve(err)
	case *HashCall:
		c.reply.Resolve(hashed{err: err})
	}
}
