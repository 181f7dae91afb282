package actors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
)

// Errors of the core.
var (
	// ErrTooManyReboots is wrapped by the error passed to GiveUp when the core fails
	// more often than Limit allows.
	ErrTooManyReboots = errors.New("actors: too many core reboots")
	// ErrStuck is wrapped by the error passed to GiveUp when stages do not stop in
	// time. Go cannot interrupt a Receive, so only exiting the process ends it.
	ErrStuck = errors.New("actors: stages do not stop")
	// ErrVanished is the reason of a failure when a stage stopped without having
	// been asked to.
	ErrVanished = errors.New("actors: stage stopped unasked")
)

// Defaults of CoreConfig.
const (
	// DefaultReboots is per DefaultRebootWindow: a fault that recurs faster than
	// every twelve seconds is not cured by rebooting.
	DefaultReboots      = 5
	DefaultRebootWindow = time.Minute
	// DefaultDrainTimeout bounds an orderly stop. Queued messages take milliseconds;
	// a slow disk may take seconds.
	DefaultDrainTimeout = 5 * time.Second
	// DefaultStopTimeout bounds the wait for stages to terminate after a stop. It
	// must be longer than one slow fsync.
	DefaultStopTimeout = 10 * time.Second
)

// Failure describes the failure of a stage.
type Failure struct {
	Stage   string // path of the stage
	Reason  any    // the value passed to panic, or an error
	Stack   []byte // of the panic; nil if the stage stopped unasked
	Message any    // being handled at the panic; nil if none
	Epoch   uint64
	At      time.Time
	// Planned is set if no stage failed: Core.Reboot was called.
	Planned bool
}

// Error implements error.
func (f Failure) Error() string {
	return fmt.Sprintf("%s failed in epoch %d: %v", f.Stage, f.Epoch, f.Reason)
}

// Unwrap returns the reason if it is an error.
func (f Failure) Unwrap() error {
	err, _ := f.Reason.(error)
	return err
}

func failureOf(stage string, epoch uint64, reason any) Failure {
	f := Failure{Stage: stage, Reason: reason, Epoch: epoch, At: Wall()}
	if p, ok := reason.(*Panic); ok {
		f.Reason, f.Stack, f.Message, f.At = p.Value, p.Stack, p.Message, p.At
	}
	return f
}

// Incarnation is one life of the core, of one epoch: its stages, opened from disk and wired,
// with new mailboxes, ready to be spawned.
type Incarnation struct {
	// Stages in the order in which they are spawned and, in an orderly stop, drained:
	// those that accept work from outside come first.
	Stages []Stage
	// Started, if set, is called when all stages have been spawned.
	Started func()
	// Halt, if set, closes the files. It is called exactly once, after the last
	// stage has terminated.
	Halt func() error
}

// CoreConfig configures the core supervisor. All functions are called on its
// goroutine, one at a time, and may block.
type CoreConfig struct {
	// Boot builds the incarnation of an epoch from disk, for the first boot and for each
	// reboot. Epochs count from 1. When it is called, all stages of the previous
	// epoch have terminated and its Halt has returned.
	Boot func(epoch uint64) (*Incarnation, error)
	// Limit and Window bound the reboots: the failure after Limit reboots in Window
	// leads to GiveUp. Zero means the default.
	Limit  int
	Window time.Duration
	// GiveUp is called when the core cannot continue: too many reboots, a failed
	// Boot or Halt, a stuck stage, or a failure that Classify rejected. In a server
	// it exits the process and does not return. If it returns, as in tests, the core
	// stays down.
	GiveUp func(reason error)
	// Classify, if set, returns an error for a failure that a reboot would only
	// repeat (a second panic on the same raft entry, a failed fsync). GiveUp is then
	// called at once, while other stages are still running.
	Classify func(Failure) error
	// OnReboot, if set, is called after the old epoch has terminated and before Boot
	// of the new one. It fails the requests that the old epoch left unanswered.
	OnReboot func(epoch uint64, f Failure)

	DrainTimeout time.Duration // zero means the default
	StopTimeout  time.Duration // zero means the default
	Registry     *Registry     // gets each mailbox; may be nil
	Logger       zerolog.Logger
}

func (c *CoreConfig) complete() error {
	if c.Boot == nil || c.GiveUp == nil {
		return errors.New("actors: core needs Boot and GiveUp")
	}
	if c.Limit < 0 || c.Window < 0 || c.DrainTimeout < 0 || c.StopTimeout < 0 {
		return errors.New("actors: negative bound in the core's configuration")
	}
	orDefault(&c.Limit, DefaultReboots)
	orDefault(&c.Window, DefaultRebootWindow)
	orDefault(&c.DrainTimeout, DefaultDrainTimeout)
	orDefault(&c.StopTimeout, DefaultStopTimeout)
	return nil
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Core runs the stages of the core. When one fails, all are stopped and, once all
// have terminated, booted again from disk with new mailboxes and the next epoch. A
// stage is never restarted in place: the message being handled is lost, and an
// ordered stream must not skip one.
type Core struct {
	sys  *actor.ActorSystem
	pid  *actor.PID
	done chan struct{} // closed by the supervisor when it is permanently down

	mu     sync.Mutex
	epoch  uint64
	reboot int
	last   *Failure
	result error // valid when done is closed
}

// StartCore boots the first epoch and returns when its stages run. On failure it
// returns the error instead of calling GiveUp, and leaves nothing running.
func StartCore(sys *actor.ActorSystem, cfg CoreConfig) (*Core, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Core{sys: sys, done: make(chan struct{})}
	first := make(chan error, 1)
	s := &coreActor{cfg: cfg, handle: c, first: first, alive: map[string]*actor.PID{}}
	pid, err := sys.Root.SpawnNamed(actor.PropsFromProducer(func() actor.Actor { return s }, actor.WithDispatcher(supervisor(CorePath))), CorePath)
	if err != nil {
		return nil, fmt.Errorf("actors: spawn %s: %w", CorePath, err)
	}
	c.pid = pid
	Park(func() bool { return len(first) > 0 })
	if err := <-first; err != nil {
		_ = Wait(context.Background(), c.done)
		return nil, err
	}
	return c, nil
}

// Stop stops the core in order: each stage delivers its queued messages and stops
// before the next one is stopped. After DrainTimeout the remaining stages are
// stopped at once. Then the files are closed. Stop returns the error of the stop or
// of an earlier GiveUp. If ctx ends first, it returns the error of ctx, and the stop
// continues.
func (c *Core) Stop(ctx context.Context) error {
	if !isClosed(c.done) {
		c.sys.Root.Send(c.pid, coreStop{})
	}
	if err := Wait(ctx, c.done); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.result
}

// Reboot stops all stages at once and boots them again from disk, as after a failure, but
// it does not count as one. If the core is not running, it does nothing: a reboot or a
// stop is under way. It does not wait.
func (c *Core) Reboot(reason error) {
	select {
	case <-c.done:
	default:
		c.sys.Root.Send(c.pid, coreReboot{reason})
	}
}

// Done is closed when the core is permanently down: stopped, or given up.
func (c *Core) Done() <-chan struct{} { return c.done }

// Epoch returns the current epoch, from 1.
func (c *Core) Epoch() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// Restarts returns how often the core was rebooted.
func (c *Core) Restarts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reboot
}

// LastFailure returns the latest failure that stopped the core. Failures that are
// only a consequence of it, in an epoch that is already stopping, do not count.
func (c *Core) LastFailure() (Failure, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		return Failure{}, false
	}
	return *c.last, true
}

// coreState is the phase of an epoch. The story of an epoch, in order:
//
//	boot       Boot opens everything, the stages are spawned, the state is running
//	failed     a stage failed: cancel and stop all stages; the state is stopping
//	reboot     Reboot was called: as failed, without counting
//	settle     the last stage has terminated: halt closes the files; then boot the
//	           next epoch, or go down
//	drain      Stop was called: stop the stages one after another, in order, and
//	           then settle; after DrainTimeout stop the rest at once
//	timeout    after StopTimeout in stopping: stuck, which gives up
//	giveUp     report the reason, stop everything, and stay down
type coreState int

const (
	coreRunning  coreState = iota
	coreDraining           // orderly stop, stage by stage
	coreStopping           // all stages were stopped; waiting for the last Terminated
	coreDown               // permanently
)

// Messages of the supervisor to itself. A timer carries the turn in which it was
// set, so that an outdated one is recognised and ignored.
type (
	coreStop   struct{}
	coreReboot struct{ reason error }
	coreTimer  struct{ turn int }
)

// coreActor is the supervisor's actor. It uses protoactor's own mailbox, because it
// receives a handful of messages in its whole life.
type coreActor struct {
	cfg    CoreConfig
	handle *Core
	first  chan<- error // result of the first boot; nil afterwards

	state       coreState
	epoch       uint64
	incarnation *Incarnation
	alive       map[string]*actor.PID // by path; set at spawn, deleted at Terminated
	draining    string                // path of the stage being drained
	cause       *Failure              // failure that led to the stop; nil unless a reboot follows
	result      error                 // outcome if no reboot follows
	gaveUp      bool                  // GiveUp was called; never called twice
	recent      []time.Time           // reboots within the window, at most Limit
	turn        int                   // number of the latest timer; others are outdated
	timer       Timer
}

// Receive implements actor.Actor.
func (s *coreActor) Receive(ctx actor.Context) {
	s.guarded(ctx, func() {
		switch m := ctx.Message().(type) {
		case *actor.Started:
			s.boot(ctx)
		case *actor.Terminated:
			s.terminated(ctx, m.Who.Id)
		case coreStop:
			s.drain(ctx)
		case coreReboot:
			if s.state == coreRunning {
				f := failureOf(CorePath, s.epoch, m.reason)
				f.Planned = true
				s.cause = &f
				s.stopAll(ctx)
			}
		case coreTimer:
			s.timeout(ctx, m)
		}
	})
}

// HandleFailure implements actor.SupervisorStrategy. It runs on the supervisor's
// goroutine; protoactor passes the supervisor's own context.
func (s *coreActor) HandleFailure(_ *actor.ActorSystem, sup actor.Supervisor, child *actor.PID, _ *actor.RestartStatistics, reason, _ any) {
	ctx := sup.(actor.Context)
	s.guarded(ctx, func() { s.failed(ctx, failureOf(child.Id, s.epoch, reason)) })
}

// guarded turns a panic of the supervisor, or of a function from its configuration,
// into giving up. protoactor would restart the supervisor, which would then have no
// record of its children.
func (s *coreActor) guarded(ctx actor.Context, f func()) {
	defer func() {
		if r := recover(); r != nil {
			p := newPanic(r, nil)
			s.giveUp(ctx, fmt.Errorf("actors: core supervisor: %w\n%s", p, p.Stack))
		}
	}()
	f()
}

func (s *coreActor) boot(ctx actor.Context) {
	s.epoch++
	s.handle.mu.Lock()
	s.handle.epoch = s.epoch
	s.handle.mu.Unlock()
	s.cfg.Registry.setEpoch(s.epoch)
	incarnation, err := s.open()
	if err != nil {
		s.giveUp(ctx, fmt.Errorf("actors: boot core, epoch %d: %w", s.epoch, err))
		return
	}
	s.incarnation, s.state, s.cause = incarnation, coreRunning, nil
	for i, stage := range incarnation.Stages {
		ref, err := Spawn(ctx, stage)
		if err != nil {
			for _, rest := range incarnation.Stages[i:] {
				rest.discard(err)
			}
			s.giveUp(ctx, err)
			return
		}
		s.alive[ref.PID.Id] = ref.PID
		s.cfg.Registry.Add(stage.Mailbox)
	}
	if incarnation.Started != nil {
		incarnation.Started()
	}
	s.cfg.Logger.Info().Uint64("epoch", s.epoch).Int("stages", len(incarnation.Stages)).Msg("core started")
	s.reportFirst(nil)
}

// open calls Boot and turns its panic into an error.
func (s *coreActor) open() (incarnation *Incarnation, err error) {
	defer func() {
		if r := recover(); r != nil {
			p := newPanic(r, nil)
			err = fmt.Errorf("%w\n%s", p, p.Stack)
		}
	}()
	incarnation, err = s.cfg.Boot(s.epoch)
	if err == nil && (incarnation == nil || len(incarnation.Stages) == 0) {
		err = errors.New("no stages")
	}
	return incarnation, err
}

// failed handles the failure of a stage, depending on the state.
func (s *coreActor) failed(ctx actor.Context, f Failure) {
	s.cfg.Logger.Error().Str("stage", f.Stage).Uint64("epoch", f.Epoch).Str("reason", fmt.Sprint(f.Reason)).
		Str("message", fmt.Sprintf("%T", f.Message)).Bytes("stack", f.Stack).Msg("stage failed")
	if s.state == coreRunning || s.state == coreDraining {
		s.handle.mu.Lock()
		s.handle.last = &f
		s.handle.mu.Unlock()
	}
	switch s.state {
	case coreRunning:
		if err := s.verdict(f); err != nil {
			s.giveUp(ctx, err)
			return
		}
		s.cause = &f
		s.stopAll(ctx)
	case coreDraining:
		s.result = errors.Join(s.result, f)
		s.stopAll(ctx)
	case coreStopping, coreDown: // all stages were stopped already
	}
}

// verdict returns the reason why the core must not be rebooted after f, or nil.
func (s *coreActor) verdict(f Failure) error {
	if s.cfg.Classify != nil {
		if err := s.cfg.Classify(f); err != nil {
			return err
		}
	}
	horizon := Wall().Add(-s.cfg.Window)
	s.recent = slices.DeleteFunc(s.recent, func(t time.Time) bool { return !t.After(horizon) })
	if len(s.recent) >= s.cfg.Limit {
		return fmt.Errorf("%w: %d in %v, then %w", ErrTooManyReboots, len(s.recent), s.cfg.Window, f)
	}
	return nil
}

// stopAll cancels every stage, so that none stays blocked, and stops it.
func (s *coreActor) stopAll(ctx actor.Context) {
	s.state = coreStopping
	s.setTimer(ctx, s.cfg.StopTimeout)
	// The stops are queued first: a stage that Cancel unblocks must find its stop, and
	// not handle the message that is queued next.
	if s.incarnation != nil {
		for _, stage := range s.incarnation.Stages {
			if pid, alive := s.alive[stage.Name]; alive {
				ctx.Stop(pid)
			}
		}
		for _, stage := range s.incarnation.Stages {
			stage.cancel()
		}
	}
	s.settle(ctx)
}

func (s *coreActor) terminated(ctx actor.Context, path string) {
	if _, known := s.alive[path]; !known {
		return
	}
	delete(s.alive, path)
	switch s.state {
	case coreRunning:
		s.failed(ctx, failureOf(path, s.epoch, ErrVanished))
	case coreDraining:
		s.drainNext(ctx)
	case coreStopping:
		s.settle(ctx)
	case coreDown:
	}
}

// drain starts the orderly stop. During a reboot it only cancels the boot.
func (s *coreActor) drain(ctx actor.Context) {
	switch s.state {
	case coreRunning:
		s.state = coreDraining
		s.setTimer(ctx, s.cfg.DrainTimeout)
		s.drainNext(ctx)
	case coreStopping:
		s.cause = nil
	case coreDraining, coreDown:
	}
}

// drainNext sends a PoisonPill, once, to the first stage that is still alive.
func (s *coreActor) drainNext(ctx actor.Context) {
	for _, stage := range s.incarnation.Stages {
		if pid, alive := s.alive[stage.Name]; alive {
			if s.draining != stage.Name {
				s.draining = stage.Name
				ctx.Poison(pid)
			}
			return
		}
	}
	s.stopAll(ctx)
}

// settle continues when the last stage has terminated.
func (s *coreActor) settle(ctx actor.Context) {
	if s.state != coreStopping || len(s.alive) > 0 {
		return
	}
	s.stopTimer()
	err := s.halt()
	switch {
	case s.cause == nil:
		s.down(ctx, errors.Join(s.result, err))
	case err != nil:
		s.giveUp(ctx, fmt.Errorf("actors: halt core, epoch %d: %w", s.epoch, err))
	default:
		s.reboot(ctx, *s.cause)
	}
}

// halt closes the incarnation's files, once, and turns a panic into an error.
func (s *coreActor) halt() (err error) {
	incarnation := s.incarnation
	s.incarnation = nil
	if incarnation == nil || incarnation.Halt == nil {
		return nil
	}
	defer func() {
		if r := recover(); r != nil {
			p := newPanic(r, nil)
			err = fmt.Errorf("%w\n%s", p, p.Stack)
		}
	}()
	return incarnation.Halt()
}

func (s *coreActor) reboot(ctx actor.Context, f Failure) {
	if f.Planned {
		s.cfg.Logger.Info().Uint64("epoch", s.epoch+1).Interface("reason", fmt.Sprint(f.Reason)).Msg("rebooting the core from disk as planned")
	} else {
		s.countFailure(f)
	}
	if s.cfg.OnReboot != nil {
		s.cfg.OnReboot(s.epoch+1, f)
	}
	s.boot(ctx)
}

func (s *coreActor) countFailure(f Failure) {
	s.recent = append(s.recent, Wall())
	s.handle.mu.Lock()
	s.handle.reboot++
	s.handle.mu.Unlock()
	s.cfg.Registry.countReboot()
	s.cfg.Logger.Warn().Uint64("epoch", s.epoch+1).Str("after", f.Stage).Msg("rebooting the core from disk")
}

// giveUp calls GiveUp, or reports to StartCore during the first boot. If GiveUp
// returns, everything is stopped.
func (s *coreActor) giveUp(ctx actor.Context, reason error) {
	if s.state == coreDown {
		return
	}
	s.cause, s.result = nil, errors.Join(s.result, reason)
	s.cfg.Logger.Error().Err(reason).Uint64("epoch", s.epoch).Msg("core gives up")
	if s.first == nil && !s.gaveUp {
		s.gaveUp = true
		s.cfg.GiveUp(reason)
	}
	s.reportFirst(reason)
	s.stopAll(ctx)
}

func (s *coreActor) reportFirst(err error) {
	if s.first != nil {
		s.first <- err
		s.first = nil
	}
}

// down ends the supervisor with a result.
func (s *coreActor) down(ctx actor.Context, result error) {
	s.state = coreDown
	s.stopTimer()
	s.handle.mu.Lock()
	s.handle.result = result
	s.handle.mu.Unlock()
	close(s.handle.done)
	ctx.Stop(ctx.Self())
}

func (s *coreActor) timeout(ctx actor.Context, m coreTimer) {
	if m.turn != s.turn {
		return
	}
	switch s.state {
	case coreDraining:
		s.cfg.Logger.Warn().Str("stage", s.draining).Dur("after", s.cfg.DrainTimeout).Msg("drain timed out, stopping the remaining stages at once")
		s.stopAll(ctx)
	case coreStopping:
		s.stuck(ctx)
	case coreRunning, coreDown:
	}
}

// stuck gives up on stages that do not return from Receive. Their files stay open,
// because the stages may still write to them.
func (s *coreActor) stuck(ctx actor.Context) {
	var names []string
	for path := range s.alive {
		names = append(names, path)
	}
	slices.Sort(names)
	err := fmt.Errorf("%w: %v after %v", ErrStuck, names, s.cfg.StopTimeout)
	s.cfg.Logger.Error().Err(err).Msg("core did not stop in time")
	s.state = coreDown
	if s.cause != nil {
		s.cfg.GiveUp(fmt.Errorf("%w, after %w", err, *s.cause))
	}
	s.down(ctx, errors.Join(s.result, err))
}

func (s *coreActor) setTimer(ctx actor.Context, d time.Duration) {
	s.stopTimer()
	s.turn++
	root, self, m := ctx.ActorSystem().Root, ctx.Self(), coreTimer{s.turn}
	s.timer = AfterFunc(d, func() { root.Send(self, m) })
}

func (s *coreActor) stopTimer() {
	s.turn++
	if s.timer != nil {
		s.timer.Stop()
	}
}
