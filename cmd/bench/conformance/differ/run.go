package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
)

const (
	// perSeedMax is the most differences that one sequence reports: after the first one,
	// others may only be its consequences.
	perSeedMax = 5
)

// Config has the two sides and the number of sequences.
type Config struct {
	Left, Right Side   // Left is the reference
	FirstSeed   uint64 // the seeds are FirstSeed, FirstSeed+1, …
	Seeds       int
	Steps       int  // calls a seed
	Members     int  // of each side; calls go to them in turn
	Auth        bool // sequences with authentication, of one member
	TLS         bool // clients and servers demand certificates of each other
	// Decisions is how many calls at a time ask what their users may do; 0 means that
	// sequences are compared instead. It needs Auth.
	Decisions int
	Parallel  int    // seeds at a time; each runs two servers
	MaxDiffs  int    // differences after which no new seed begins
	Dir       string // parent of the data folders; empty means the system's temporary folder
	Out       io.Writer
	// Rerun is the command that runs one seed again.
	Rerun func(seed uint64) string
}

func (c Config) validate() error {
	if c.Left.Binary == "" || c.Right.Binary == "" || c.Seeds < 1 || c.Steps < 1 || c.Members < 1 || c.Parallel < 1 || c.MaxDiffs < 1 || c.Auth && c.Members > 1 || c.Decisions > 0 && !c.Auth {
		return errors.New("differ: both binaries and at least 1 seed, step, member, sequence at a time and difference are needed")
	}
	return nil
}

// Difference is one step in which the replies differ.
type Difference struct {
	Seed        uint64
	Step        int
	Call        Call
	Left, Right Reply // normalised
	Logs        string
}

// Result has the differences and the coverage of a run.
type Result struct {
	Seeds       int
	Calls       int
	Differences []Difference
	Coverage    Coverage
}

// Run runs the sequences of all seeds. Differences are in the result; an error means that
// the run itself failed.
func Run(ctx context.Context, cfg Config) (result Result, err error) {
	if err := cfg.validate(); err != nil {
		return Result{}, err
	}
	secrets, err := newSecrets(cfg)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, secrets.remove()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seeds := make(chan uint64) // closed below, by the only sender
	var (
		mu     sync.Mutex // guards the two results and cfg.Out
		total  = Result{Coverage: make(Coverage)}
		failed error
		wg     sync.WaitGroup
	)
	play := runSeed
	if cfg.Decisions > 0 {
		play = decideSeed
	}
	worker := func() {
		for seed := range seeds {
			found, err := play(ctx, cfg, seed, secrets)
			mu.Lock()
			if err != nil && ctx.Err() == nil {
				failed = errors.Join(failed, fmt.Errorf("seed %d: %w", seed, err))
			}
			total.add(found)
			err = report(cfg, found)
			if failed = errors.Join(failed, err); failed != nil || len(total.Differences) >= cfg.MaxDiffs {
				cancel()
			}
			mu.Unlock()
		}
	}
	for range cfg.Parallel {
		wg.Go(worker)
	}
	for i := range cfg.Seeds {
		select {
		case seeds <- cfg.FirstSeed + uint64(i):
			continue
		case <-ctx.Done():
		}
		break
	}
	close(seeds)
	wg.Wait()
	return total, failed
}

func (r *Result) add(other Result) {
	r.Seeds += other.Seeds
	r.Calls += other.Calls
	r.Differences = append(r.Differences, other.Differences...)
	r.Coverage.Merge(other.Coverage)
}

// secrets are the keys and certificates of all sequences of a run.
type secrets struct {
	dir     string
	signers []*signer  // nil without authentication
	tls     *pki.Files // nil without TLS
}

// newSecrets makes the files that the configuration needs. The caller must remove them.
func newSecrets(cfg Config) (*secrets, error) {
	dir, err := os.MkdirTemp(cfg.Dir, "bench-keys-")
	if err != nil {
		return nil, fmt.Errorf("differ: %w", err)
	}
	s := &secrets{dir: dir}
	if err := s.make(cfg); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

func (s *secrets) make(cfg Config) (err error) {
	if cfg.Auth {
		if s.signers, err = newSigners(s.dir); err != nil {
			return err
		}
	}
	if !cfg.TLS {
		return nil
	}
	if s.tls, err = pki.Make(s.dir); err != nil {
		return err
	}
	for _, client := range authClients {
		if err := s.tls.AddClient(commonName(client)); err != nil {
			return err
		}
	}
	return nil
}

func (s *secrets) remove() error { return os.RemoveAll(s.dir) }

// args are the flags of both servers of a sequence.
func (s *secrets) args(mode authMode) []string {
	args := mode.args()
	switch {
	case s.tls == nil:
	case mode.certificates:
		args = append(args, s.tls.ServerArgs()...)
	default:
		args = append(args, s.tls.NamelessArgs()...)
	}
	return args
}

// match is a sequence on two fresh servers.
type match struct {
	cfg         Config
	seed        uint64
	left, right *running
	leases      leaseTimes
	result      Result
}

// begin starts both sides. The caller must end them, even after an error.
func (m *match) begin(ctx context.Context, secrets *secrets, mode authMode) (err error) {
	m.leases, m.result = make(leaseTimes), Result{Coverage: make(Coverage)}
	if m.left, err = begin(ctx, m.cfg.Left, m.cfg.Members, m.cfg.Dir, secrets.tls, secrets.args(mode)); err != nil {
		return err
	}
	m.right, err = begin(ctx, m.cfg.Right, m.cfg.Members, m.cfg.Dir, secrets.tls, secrets.args(mode))
	return err
}

func (m *match) end() (err error) {
	for _, side := range []*running{m.left, m.right} {
		if side != nil {
			err = errors.Join(err, side.end())
		}
	}
	return err
}

// runSeed runs one sequence.
func runSeed(ctx context.Context, cfg Config, seed uint64, secrets *secrets) (result Result, err error) {
	mode := newAuthMode(seed, secrets.signers, cfg.TLS)
	m := &match{cfg: cfg, seed: seed}
	defer func() { err = errors.Join(err, m.end()) }()
	if err := m.begin(ctx, secrets, mode); err != nil {
		return m.result, err
	}
	var sequence source = NewGenerator(seed, cfg.Steps, cfg.Members)
	if cfg.Auth {
		sequence = newAuthGenerator(seed, cfg.Steps, mode)
		m.result.Coverage.want(wantedOfAuth(cfg.TLS))
	} else {
		m.result.Coverage.want(Wanted)
	}
	if cfg.Members > 1 {
		m.result.Coverage.want(wantedOfClusters())
	}
	for ctx.Err() == nil {
		call, more := sequence.Next()
		if !more || !m.step(ctx, call, sequence) {
			m.result.Seeds = 1
			break
		}
	}
	return m.result, ctx.Err()
}

// step performs one step on both sides and compares the replies. It returns false if nothing can be
// compared after it.
func (m *match) step(ctx context.Context, call Call, sequence source) bool {
	call.Member = m.result.Calls % m.cfg.Members
	began := time.Now()
	l, r := both(ctx, call, m.left, m.right)
	ended := time.Now()
	if ctx.Err() != nil { // the replies are errors of the canceled context
		return true
	}
	sequence.Observe(call, l)
	m.result.Calls++
	m.result.Coverage.Add(call, l)
	m.leases.observe(call, l, r, began, ended)
	l, r = normalise(m.left.identity(call), m.leases.arranged(l)), normalise(m.right.identity(call), m.leases.arranged(r))
	if m.cfg.Decisions > 0 {
		l, r = withoutRevision(l), withoutRevision(r)
	}
	if same(l, r) && !broken(call, l) {
		return true
	}
	m.result.Differences = append(m.result.Differences, Difference{m.seed, m.result.Calls, call, l, r, logs(m.left, m.right)})
	return len(m.result.Differences) < perSeedMax && m.left.alive() && m.right.alive()
}

// source makes the calls of a sequence.
type source interface {
	// Next returns the next call, or false when the sequence is over.
	Next() (Call, bool)
	// Observe is called with the reference's reply to each call.
	Observe(Call, Reply)
}

// broken reports whether the reference failed in a way that no sequence causes. It
// counts as a difference even if both sides fail: otherwise it would hide everything
// after it.
func broken(c Call, reference Reply) bool {
	switch reference.Code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Canceled:
		return true
	}
	switch c.Method {
	case Kill, Terminate, WatchSync:
		return reference.Irregular != ""
	}
	return false
}

// both performs a step on the two sides at the same time.
func both(ctx context.Context, c Call, left, right *running) (l, r Reply) {
	done := make(chan Reply, 1)
	go func() { done <- right.do(ctx, c) }()
	l = left.do(ctx, c)
	return l, <-done
}

// logs returns the last lines of a side that has ended.
func logs(sides ...*running) string {
	var b strings.Builder
	for _, s := range sides {
		for _, m := range s.members {
			if !m.server.Running() {
				fmt.Fprintf(&b, "%s has ended; its last lines:\n%s\n", s.side.Binary, m.server.Log())
			}
		}
	}
	return b.String()
}
