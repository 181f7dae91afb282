package actors

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
)

// ErrGone is returned by Child.New when a new incarnation is pointless because what
// the child served has ended (a watch stream whose client has left). The child is
// then removed. Edge.Spawn returns it when the edge has stopped.
var ErrGone = errors.New("actors: child has ended")

// Defaults of EdgeConfig.
const (
	DefaultBackoffBase = 10 * time.Millisecond
	DefaultBackoffMax  = 5 * time.Second
)

// Child is an actor at the edge. A new incarnation can replace it at any time,
// because no other actor relies on an order of messages across incarnations.
type Child struct {
	Name string // path below EdgePath
	// New makes the actor and its mailbox for an incarnation, counted from 1. It runs
	// on the supervisor's goroutine and must not block. An error is retried like a
	// failure; ErrGone ends the child.
	New func(incarnation uint64) (Stage, error)
	// Unlisted keeps the child out of the registry, and so out of the metrics and the
	// list of mailboxes. It is for kinds of children that exist by the thousand.
	Unlisted bool
}

// EdgeConfig configures the edge supervisor.
type EdgeConfig struct {
	// Base and Max bound the backoff before the next incarnation: Base after the first
	// failure, doubling up to Max, each shortened by a random amount of up to half. A
	// child that ran for longer than Max starts again at Base. Zero means the default.
	Base, Max time.Duration
	// Jitter returns a number in [0, 1); nil means Float64.
	Jitter func() float64
	// OnFailure, if set, is called for each failure, on the supervisor's goroutine.
	// Failure.Epoch is the incarnation.
	OnFailure func(Failure)
	Registry  *Registry // gets each mailbox; may be nil
	Logger    zerolog.Logger
}

func (c *EdgeConfig) complete() error {
	orDefault(&c.Base, DefaultBackoffBase)
	orDefault(&c.Max, DefaultBackoffMax)
	if c.Base < 0 || c.Max < c.Base {
		return fmt.Errorf("actors: edge backoff from %v to %v", c.Base, c.Max)
	}
	if c.Jitter == nil {
		c.Jitter = Float64
	}
	return nil
}

// backoff returns the pause after the given number of consecutive failures, from 1.
func (c *EdgeConfig) backoff(failures int) time.Duration {
	d := c.Base
	for i := 1; i < failures && d < c.Max; i++ {
		d *= 2
	}
	d = min(d, c.Max)
	return d - time.Duration(c.Jitter()*float64(d)/2)
}

// Edge supervises its children one for one: a failed child is stopped and, after a
// backoff, replaced by a new incarnation with a new mailbox. The number of restarts
// is not limited. A child that stops itself has finished and is removed.
type Edge struct {
	sys  *actor.ActorSystem
	pid  *actor.PID
	done chan struct{} // closed by the supervisor when it and all children have stopped
}

// StartEdge starts a supervisor without children.
func StartEdge(sys *actor.ActorSystem, cfg EdgeConfig) (*Edge, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	e := &Edge{sys: sys, done: make(chan struct{})}
	s := &edgeActor{cfg: cfg, handle: e, children: map[string]*edgeChild{}}
	pid, err := sys.Root.SpawnNamed(actor.PropsFromProducer(func() actor.Actor { return s }, actor.WithDispatcher(supervisor(EdgePath))), EdgePath)
	if err != nil {
		return nil, fmt.Errorf("actors: spawn %s: %w", EdgePath, err)
	}
	e.pid = pid
	return e, nil
}

// Spawn starts a child and returns when its first incarnation runs.
//
// IMPORTANT: a child's New must not call it, or the supervisor deadlocks.
func (e *Edge) Spawn(c Child) (*Handle, error) {
	answer := make(chan edgeSpawned, 1)
	e.sys.Root.Send(e.pid, edgeSpawn{c, answer})
	Park(func() bool { return len(answer) > 0 || isClosed(e.done) })
	select {
	case a := <-answer:
		return a.handle, a.err
	case <-e.done:
	}
	if len(answer) > 0 { // both: the child was started, and has ended with the edge
		a := <-answer
		return a.handle, a.err
	}
	return nil, fmt.Errorf("actors: spawn %s: %w", c.Name, ErrGone)
}

// Stop stops all children at once and then the supervisor. If ctx ends first, it
// returns the error of ctx.
func (e *Edge) Stop(ctx context.Context) error {
	if isClosed(e.done) {
		return nil
	}
	e.sys.Root.Send(e.pid, edgeStop{})
	return Wait(ctx, e.done)
}

// Handle refers to a child across its incarnations.
type Handle struct {
	name     string
	edge     *Edge
	box      atomic.Pointer[Mailbox]
	restarts atomic.Int64
	done     chan struct{} // closed by the supervisor when the child is removed

	mu   sync.Mutex
	last *Failure
}

// Name returns the child's path.
func (h *Handle) Name() string { return h.name }

// Mailbox returns the mailbox of the current incarnation, never nil. Between a failure
// and the next incarnation it returns the old one, which is closed, so that posts fail
// with ErrClosed. Callers load it for each post and must not keep it.
func (h *Handle) Mailbox() *Mailbox { return h.box.Load() }

// Restarts returns the number of incarnations that replaced a failed one.
func (h *Handle) Restarts() int { return int(h.restarts.Load()) }

// LastFailure returns the child's latest failure.
func (h *Handle) LastFailure() (Failure, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		return Failure{}, false
	}
	return *h.last, true
}

// Stop ends the child permanently, without waiting; Done is closed when it has ended.
func (h *Handle) Stop() { h.edge.sys.Root.Send(h.edge.pid, edgeEnd{h}) }

// Done is closed when the child has stopped and will not be replaced.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Messages to the edge supervisor. Its mailbox is protoactor's unbounded one: each
// caller waits for its answer, and each child has at most one timer, which bounds them.
type (
	edgeSpawn struct {
		child  Child
		answer chan<- edgeSpawned // capacity 1
	}
	edgeSpawned struct {
		handle *Handle
		err    error
	}
	edgeEnd   struct{ handle *Handle }
	edgeStop  struct{}
	edgeRetry struct {
		child       *edgeChild
		incarnation uint64
	}
)

// edgeActor is the supervisor's actor.
type edgeActor struct {
	cfg      EdgeConfig
	handle   *Edge
	children map[string]*edgeChild // by path
	stopping bool
}

// edgeChild is the supervisor's record of a child. A child is running (pid set),
// stopping after a failure (pid and failed set), or waiting for its backoff (timer
// set).
type edgeChild struct {
	spec        Child
	handle      *Handle
	incarnation uint64
	pid         *actor.PID // set by incarnate; nil while no incarnation runs
	stage       Stage      // of the current incarnation
	started     time.Time  // of the current incarnation
	failed      bool       // the current incarnation failed and is stopping
	failures    int        // consecutive; reset after a run longer than Max
	timer       Timer      // pending backoff; nil while an incarnation runs
	ending      bool       // the child must not be replaced
}

// Receive implements actor.Actor.
func (s *edgeActor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case edgeSpawn:
		h, err := s.spawn(ctx, m.child)
		m.answer <- edgeSpawned{h, err}
	case edgeRetry:
		s.retry(ctx, m)
	case edgeEnd:
		s.end(ctx, m.handle)
	case *actor.Terminated:
		s.terminated(ctx, m.Who.Id)
	case edgeStop:
		s.stopAll(ctx)
	}
}

// HandleFailure implements actor.SupervisorStrategy; it runs on the supervisor's
// goroutine.
func (s *edgeActor) HandleFailure(_ *actor.ActorSystem, sup actor.Supervisor, pid *actor.PID, _ *actor.RestartStatistics, reason, _ any) {
	c := s.children[pid.Id]
	if c == nil {
		sup.StopChildren(pid)
		return
	}
	s.note(c, reason)
	c.failed = true
	c.stage.cancel()
	sup.StopChildren(pid)
}

func (s *edgeActor) note(c *edgeChild, reason any) {
	f := failureOf(c.spec.Name, c.incarnation, reason)
	c.handle.mu.Lock()
	c.handle.last = &f
	c.handle.mu.Unlock()
	s.cfg.Logger.Warn().Str("actor", f.Stage).Uint64("incarnation", c.incarnation).Str("reason", fmt.Sprint(f.Reason)).
		Str("message", fmt.Sprintf("%T", f.Message)).Bytes("stack", f.Stack).Msg("edge actor failed")
	s.notify(f)
}

// notify calls OnFailure. A panic there must not cost the supervisor its children.
func (s *edgeActor) notify(f Failure) {
	if s.cfg.OnFailure == nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			p := newPanic(r, nil)
			s.cfg.Logger.Error().Err(p).Bytes("stack", p.Stack).Msg("OnFailure of the edge panicked")
		}
	}()
	s.cfg.OnFailure(f)
}

// spawn starts the first incarnation. On error the caller gets it, without a retry.
func (s *edgeActor) spawn(ctx actor.Context, spec Child) (*Handle, error) {
	if s.stopping {
		return nil, fmt.Errorf("actors: spawn %s: %w", spec.Name, ErrGone)
	}
	if s.children[spec.Name] != nil {
		return nil, fmt.Errorf("actors: spawn %s: %w", spec.Name, actor.ErrNameExists)
	}
	c := &edgeChild{spec: spec, handle: &Handle{name: spec.Name, edge: s.handle, done: make(chan struct{})}}
	if err := s.incarnate(ctx, c); err != nil {
		return nil, err
	}
	s.children[spec.Name] = c
	return c.handle, nil
}

// incarnate makes and spawns the next incarnation.
func (s *edgeActor) incarnate(ctx actor.Context, c *edgeChild) error {
	c.incarnation++
	stage, err := c.make()
	if err != nil {
		return fmt.Errorf("actors: make %s: %w", c.spec.Name, err)
	}
	ref, err := Spawn(ctx, stage)
	if err != nil {
		stage.discard(err)
		return err
	}
	if !c.spec.Unlisted {
		s.cfg.Registry.Add(stage.Mailbox)
	}
	c.pid, c.stage, c.started, c.failed = ref.PID, stage, Wall(), false
	c.handle.box.Store(stage.Mailbox)
	return nil
}

// make calls New and turns its panic into an error.
func (c *edgeChild) make() (stage Stage, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = newPanic(r, nil)
		}
	}()
	stage, err = c.spec.New(c.incarnation)
	if err == nil && stage.Name != c.spec.Name {
		err = fmt.Errorf("stage is named %q", stage.Name)
	}
	return stage, err
}

func (s *edgeActor) terminated(ctx actor.Context, path string) {
	c := s.children[path]
	if c == nil {
		return
	}
	c.pid = nil
	if !c.failed || c.ending {
		s.forget(ctx, c)
		return
	}
	if Wall().Sub(c.started) > s.cfg.Max {
		c.failures = 0
	}
	s.schedule(ctx, c)
}

func (s *edgeActor) schedule(ctx actor.Context, c *edgeChild) {
	c.failures++
	root, self, m := ctx.ActorSystem().Root, ctx.Self(), edgeRetry{c, c.incarnation}
	c.timer = AfterFunc(s.cfg.backoff(c.failures), func() { root.Send(self, m) })
}

func (s *edgeActor) retry(ctx actor.Context, m edgeRetry) {
	c := m.child
	if c.timer == nil || m.incarnation != c.incarnation {
		return // the child has ended in the meantime
	}
	c.timer = nil
	err := s.incarnate(ctx, c)
	switch {
	case err == nil:
		c.handle.restarts.Add(1)
	case errors.Is(err, ErrGone):
		s.forget(ctx, c)
	default:
		s.note(c, err)
		s.schedule(ctx, c)
	}
}

func (s *edgeActor) end(ctx actor.Context, h *Handle) {
	if c := s.children[h.name]; c != nil && c.handle == h {
		s.endChild(ctx, c)
	}
}

func (s *edgeActor) endChild(ctx actor.Context, c *edgeChild) {
	c.ending = true
	switch {
	case c.pid != nil:
		c.stage.cancel()
		ctx.Stop(c.pid)
	case c.timer != nil:
		c.timer.Stop()
		c.timer = nil
		s.forget(ctx, c)
	}
}

func (s *edgeActor) forget(ctx actor.Context, c *edgeChild) {
	delete(s.children, c.spec.Name)
	s.cfg.Registry.Remove(c.handle.Mailbox())
	close(c.handle.done)
	s.settle(ctx)
}

func (s *edgeActor) stopAll(ctx actor.Context) {
	s.stopping = true
	for _, path := range slices.Sorted(maps.Keys(s.children)) {
		s.endChild(ctx, s.children[path])
	}
	s.settle(ctx)
}

// settle ends the supervisor when it is stopping and its last child has ended.
func (s *edgeActor) settle(ctx actor.Context) {
	if !s.stopping || len(s.children) > 0 {
		return
	}
	if !isClosed(s.handle.done) { // by an earlier call in the same stopAll
		close(s.handle.done)
		ctx.Stop(ctx.Self())
	}
}
