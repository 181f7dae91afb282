package actors

import (
	"context"
	"sync/atomic"
)

// Reply takes the answer to one request from an actor to the goroutine that waits for it.
// It is part of a message that stays in the process:
//
//	new      the caller makes the message, with NewReply, and posts it
//	resolve  the actor answers, exactly once, on any goroutine
//	wait     the caller receives the answer, or gives up when its context ends
//
// After Wait has returned the answer, the caller may post the message again. After it has
// given up it must not, because the actor still holds the message.
//
// The methods are safe for one caller and one actor at a time.
type Reply[T any] struct {
	value T
	state atomic.Uint32
	done  chan struct{} // capacity 1; gets one token with the answer; never closed
}

// The states of a Reply. It begins as replyPending, and Wait sets it back.
const (
	replyPending  = iota
	replyResolved // value is set
	replyGivenUp  // nobody waits any more
)

// NewReply returns a pending reply.
func NewReply[T any]() Reply[T] { return Reply[T]{done: make(chan struct{}, 1)} }

// Resolve answers the request. It reports whether the caller receives the answer: false
// means that it has given up, and that what the answer holds is the actor's to release.
// It panics if the request was answered before and the caller has not taken the answer.
func (r *Reply[T]) Resolve(value T) (received bool) {
	r.value = value
	if r.state.CompareAndSwap(replyPending, replyResolved) {
		r.done <- struct{}{}
		return true
	}
	if r.state.Load() == replyResolved {
		panic("actors: a request is answered twice")
	}
	return false
}

// Wait returns the answer, or the error of ctx. If both come at once, the answer wins.
func (r *Reply[T]) Wait(ctx context.Context) (value T, err error) {
	if replaced != nil {
		replaced.Park(func() bool { return len(r.done) > 0 || ctx.Err() != nil })
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(replyPending, replyGivenUp) {
			return value, ctx.Err()
		}
		<-r.done
	}
	return r.take(), nil
}

// Poll returns the answer if there is one.
func (r *Reply[T]) Poll() (value T, ok bool) {
	select {
	case <-r.done:
		return r.take(), true
	default:
		return value, false
	}
}

// take returns the answer and prepares r for the next one.
func (r *Reply[T]) take() (value T) {
	value, r.value = r.value, value
	r.state.Store(replyPending)
	return value
}
