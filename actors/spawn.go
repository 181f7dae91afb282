package actors

import (
	"fmt"
	"strings"

	"github.com/asynkron/protoactor-go/actor"
)

// Ref is an actor with its mailbox. Messages are posted to the mailbox; the PID is for
// protoactor's own operations.
type Ref struct {
	PID *actor.PID
	*Mailbox
}

// Stage is an actor ready to be spawned.
type Stage struct {
	Name    string // path, from name.go; the mailbox has the same
	Actor   actor.Actor
	Mailbox *Mailbox
	// Dispatcher is a new Pinned if nil. Actors that exist by the thousand use Shared.
	Dispatcher actor.Dispatcher
	// Cancel, if set, unblocks the actor inside Receive, above all from a Post to a full
	// mailbox. It is called before the actor is stopped.
	Cancel func()
}

func (s Stage) validate() error {
	switch {
	case s.Name == "" || s.Actor == nil || s.Mailbox == nil:
		return fmt.Errorf("actors: stage %q has no name, no actor or no mailbox", s.Name)
	case s.Mailbox.Name() != s.Name:
		return fmt.Errorf("actors: stage %s has the mailbox of %s", s.Name, s.Mailbox.Name())
	}
	return nil
}

func (s Stage) cancel() {
	if s.Cancel != nil {
		s.Cancel()
	}
}

// discard closes a stage that was never spawned.
func (s Stage) discard(err error) {
	s.cancel()
	if s.Mailbox != nil {
		s.Mailbox.Close(err)
	}
}

// Spawn starts the stage as a child of parent, which is an actor's context or the root
// context of a system. The stage's name is a path below the parent's.
func Spawn(parent actor.SpawnerContext, s Stage) (Ref, error) {
	if err := s.validate(); err != nil {
		return Ref{}, err
	}
	name := s.Name
	if self := parent.Self(); self != nil {
		rest, below := strings.CutPrefix(name, self.Id+"/")
		if !below {
			return Ref{}, fmt.Errorf("actors: %s cannot be a child of %s", name, self.Id)
		}
		name = rest
	}
	pid, err := parent.SpawnNamed(s.props(), name)
	if err != nil {
		return Ref{}, fmt.Errorf("actors: spawn %s: %w", s.Name, err)
	}
	return Ref{PID: pid, Mailbox: s.Mailbox}, nil
}

func (s Stage) props() *actor.Props {
	dispatcher := s.Dispatcher
	if dispatcher == nil {
		dispatcher = NewPinned()
	}
	guard := &Guard{inner: s.Actor, box: s.Mailbox}
	options := []actor.PropsOption{
		actor.WithMailbox(func() actor.Mailbox { return s.Mailbox }),
		actor.WithDispatcher(dispatcher),
	}
	if strategy, ok := s.Actor.(actor.SupervisorStrategy); ok {
		// protoactor looks for the strategy on the actor itself, which the guard hides.
		options = append(options, actor.WithSupervisor(strategy))
	}
	return actor.PropsFromProducer(func() actor.Actor { return guard }, options...)
}

// Guard wraps every actor of the kit. It forwards all messages, closes the mailbox when the
// actor has stopped, and lets a stopping actor finish even if it panics meanwhile;
// otherwise protoactor would never send Terminated, and the supervisor would wait for ever.
type Guard struct {
	inner    actor.Actor
	box      *Mailbox
	stopping bool
}

// Receive implements actor.Actor.
func (g *Guard) Receive(ctx actor.Context) {
	switch ctx.Message().(type) {
	case *actor.Stopping:
		g.stopping = true
	case *actor.Stopped:
		defer g.box.stopped()
	}
	if g.stopping {
		g.receiveStopping(ctx)
		return
	}
	g.inner.Receive(ctx)
}

// receiveStopping only records a panic, because the actor is stopping anyway.
func (g *Guard) receiveStopping(ctx actor.Context) {
	defer func() {
		if r := recover(); r != nil {
			p := newPanic(r, ctx.Message())
			g.box.notePanic(p)
			ctx.Logger().Error("actor panicked while stopping", "actor", g.box.Name(), "reason", p, "stack", string(p.Stack))
		}
	}()
	g.inner.Receive(ctx)
}
