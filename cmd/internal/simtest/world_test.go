package simtest

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/troupe-db/troupe/actors"
)

// A step of the world, in the order in which it happens:
//
//	events   those that are due become tasks: timers, frames that arrive, faults
//	wake     parked tasks whose condition holds may run again
//	draw     the seed chooses one task that may run; it runs until it parks or ends
//	time     the step takes a random time. If nothing can run, time advances to the next event
//
// Each task belongs to a process, the one of the task that scheduled it. When a process
// dies, its tasks are unwound, and nothing that they do then has an effect.

// stepMax bounds the time that one step takes.
const stepMax = 20 * time.Microsecond

// traceLen is the number of steps that a report shows.
const traceLen = 200

// epoch is when simulations begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// process is a life of a member's process, or the outside.
type process struct {
	name string
	dead bool
	// doomed is set by a task that ends its own process; the world kills it after the step.
	doomed bool
	// paused is the time until which nothing of it runs; 0 if it is not paused.
	paused int64
	held   []*task // that were scheduled while it was paused
	wall   int64   // how far its wall clock is ahead of the world's
	speed  int64   // factor of the time that its steps take
}

// task is a function that runs as a coroutine.
type task struct {
	name   string
	of     *process
	run    func()
	ready  func() bool // set while it is parked
	worker *worker     // nil before it has begun
	killed bool
	ended  bool
}

// worker is a coroutine that runs one task after another.
type worker struct {
	next  func() (struct{}, bool)
	yield func(struct{}) bool
	task  *task
}

// event is something that happens at a time.
type event struct {
	world *world
	at    int64
	seq   uint64 // among those of the same time
	name  string
	of    *process
	fn    func()
	index int // in the heap; -1 if it is not pending
}

type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].index, e[j].index = i, j
}
func (e *events) Push(x any) {
	ev := x.(*event)
	ev.index = len(*e)
	*e = append(*e, ev)
}
func (e *events) Pop() any {
	old := *e
	ev := old[len(old)-1]
	*e = old[:len(old)-1]
	ev.index = -1
	return ev
}

// world is one simulation.
type world struct {
	rng     *rand.Rand
	now     int64
	seq     uint64
	events  events
	able    []*task
	parked  []*task
	idle    []*worker
	inside  *task // running; nil on the goroutine that drives
	outside *process

	steps uint64
	hash  uint32 // of the trace
	trace [traceLen]traced
	// verbose, if set, gets a line for each step.
	verbose func(string)
	// failures are the violations that were found, and kinds their formats; the run ends with
	// the first.
	failures, kinds []string
	// seen counts rare situations.
	seen map[string]int
	// onDoomed is called for a process that a task of its own has ended.
	onDoomed func(*process)
}

// traced is a step of the trace.
type traced struct {
	at   int64
	of   string
	name string
	note string
}

func newWorld(seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), now: 1, seen: map[string]int{}}
	w.outside = &process{name: "world", speed: 1}
	return w
}

// runtime is what actors use.
func (w *world) runtime() *actors.Runtime {
	return &actors.Runtime{
		Now: func() int64 { return w.now },
		Wall: func() time.Time {
			return epoch.Add(time.Duration(w.now + w.current().wall))
		},
		AfterFunc: func(d time.Duration, fn func()) actors.Timer {
			e := &event{world: w, name: "timer", of: w.current(), fn: fn, index: -1}
			e.Reset(d)
			return e
		},
		Schedule: func(name string, run func()) { w.spawn(w.current(), name, run) },
		Park:     w.park,
		Float64:  w.rng.Float64,
		Seen: func(name string) {
			if w.beacon(name); w.verbose != nil {
				w.logf("seen: %s", name)
			}
		},
	}
}

// current is the process of the running task.
func (w *world) current() *process {
	if w.inside != nil {
		return w.inside.of
	}
	return w.outside
}

// Stop implements actors.Timer.
func (e *event) Stop() bool {
	if e.index < 0 {
		return false
	}
	heap.Remove(&e.world.events, e.index)
	return true
}

// Reset implements actors.Timer.
func (e *event) Reset(d time.Duration) bool {
	pending := e.Stop()
	if !e.of.dead {
		e.at = e.world.now + max(int64(d), 0)
		e.world.seq++
		e.seq = e.world.seq
		heap.Push(&e.world.events, e)
	}
	return pending
}

// after has fn run as a task of a process, d from now.
func (w *world) after(of *process, d time.Duration, name string, fn func()) *event {
	e := &event{world: w, name: name, of: of, fn: fn, index: -1}
	e.Reset(d)
	return e
}

// spawn queues a task.
func (w *world) spawn(of *process, name string, run func()) {
	if of.dead {
		return
	}
	t := &task{name: name, of: of, run: run}
	if of.paused > 0 {
		of.held = append(of.held, t)
		return
	}
	w.able = append(w.able, t)
}

// park suspends the running task until ready returns true.
func (w *world) park(ready func() bool) {
	t := w.inside
	if t == nil {
		panic("simtest: the driver must not wait")
	}
	if !t.killed {
		t.ready = ready
		t.worker.yield(struct{}{})
	}
	if t.killed { // meanwhile, or it waits again while it is unwound
		runtime.Goexit()
	}
}

// sleep suspends the running task.
func (w *world) sleep(d time.Duration) {
	over := false
	w.after(w.current(), d, "sleep", func() { over = true })
	w.park(func() bool { return over })
}

// exit ends the process of the running task, and does not return.
func (w *world) exit() {
	w.inside.of.doomed = true
	w.park(func() bool { return false })
}

// step does one step. It returns false if nothing can happen any more.
func (w *world) step() bool {
	w.due()
	w.wake()
	if len(w.able) == 0 {
		if len(w.events) == 0 {
			return false
		}
		w.now = max(w.now, w.events[0].at)
		return true
	}
	i := w.rng.IntN(len(w.able))
	t := w.able[i]
	last := len(w.able) - 1
	w.able[i] = w.able[last]
	w.able[last] = nil
	w.able = w.able[:last]
	w.resume(t)
	w.now += w.rng.Int64N(int64(stepMax)) * t.of.speed
	return true
}

// due makes tasks of the events that are due.
func (w *world) due() {
	for len(w.events) > 0 && w.events[0].at <= w.now {
		e := heap.Pop(&w.events).(*event)
		w.spawn(e.of, e.name, e.fn)
	}
}

// wake finds parked tasks that may run again.
func (w *world) wake() {
	kept := w.parked[:0]
	for _, t := range w.parked {
		if t.of.paused == 0 && t.ready() {
			w.able = append(w.able, t)
		} else {
			kept = append(kept, t)
		}
	}
	clear(w.parked[len(kept):])
	w.parked = kept
}

// resume runs a task until it parks or ends.
func (w *world) resume(t *task) {
	w.steps++
	w.note(t, "")
	if t.worker == nil {
		t.worker = w.takeWorker()
		t.worker.task = t
	}
	t.ready, w.inside = nil, t
	t.worker.next()
	w.inside = nil
	if t.ended {
		t.worker.task = nil
		w.idle = append(w.idle, t.worker)
	} else {
		w.parked = append(w.parked, t)
	}
	if t.of.doomed && !t.of.dead {
		w.onDoomed(t.of)
	}
}

func (w *world) takeWorker() *worker {
	if n := len(w.idle); n > 0 {
		wk := w.idle[n-1]
		w.idle = w.idle[:n-1]
		return wk
	}
	wk := new(worker)
	wk.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		wk.yield = yield
		for {
			wk.task.run()
			wk.task.ended = true
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return wk
}

// kill ends a process: its tasks are unwound, and its timers never fire.
func (w *world) kill(p *process) {
	p.dead, p.held = true, nil
	of := func(t *task) bool { return t.of == p }
	var begun []*task
	for _, t := range slices.Concat(w.able, w.parked) {
		if of(t) && t.worker != nil {
			begun = append(begun, t)
		}
	}
	w.able, w.parked = slices.DeleteFunc(w.able, of), slices.DeleteFunc(w.parked, of)
	w.events = slices.DeleteFunc(w.events, func(e *event) bool {
		if e.of == p {
			e.index = -1
		}
		return e.of == p
	})
	for i, e := range w.events {
		e.index = i
	}
	heap.Init(&w.events)
	for _, t := range begun {
		w.unwind(t)
	}
}

// unwind ends a task that is parked: its deferred functions run, with the process dead.
func (w *world) unwind(t *task) {
	t.killed = true
	outer := w.inside
	w.inside = t
	done := make(chan struct{})
	go func() { // ends with the task, which exits at once; Goexit reaches the caller of next
		defer close(done)
		t.worker.next()
	}()
	<-done
	w.inside = outer
}

// pause stops a process for a while, like SIGSTOP.
func (w *world) pause(p *process, d time.Duration) {
	if p.paused > 0 || p.dead {
		return
	}
	p.paused = w.now + int64(d)
	for i := 0; i < len(w.able); {
		if t := w.able[i]; t.of == p {
			p.held = append(p.held, t)
			w.able = slices.Delete(w.able, i, i+1)
			continue
		}
		i++
	}
	w.after(w.outside, d, "resume "+p.name, func() {
		p.paused = 0
		if !p.dead {
			w.able = append(w.able, p.held...)
		}
		p.held = nil
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// note adds a step to the trace.
func (w *world) note(t *task, text string) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(w.now))
	binary.LittleEndian.PutUint64(b[8:], w.steps)
	w.hash = crc32.Update(w.hash, castagnoli, b[:])
	w.mix(t.name)
	w.mix(t.of.name)
	tr := traced{at: w.now, of: t.of.name, name: t.name, note: text}
	w.trace[w.steps%traceLen] = tr
	if w.verbose != nil {
		w.verbose(tr.String())
	}
}

// mix makes data a part of the hash.
func (w *world) mix(s string) { w.mixBytes([]byte(s)) }

func (w *world) mixBytes(b []byte) { w.hash = crc32.Update(w.hash, castagnoli, b) }

// logf adds a line to the trace, beside the running task.
func (w *world) logf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t := w.inside
	if t == nil {
		t = &task{name: "-", of: w.outside}
	}
	w.steps++
	w.note(t, text)
}

// String formats a step.
func (t traced) String() string {
	return strings.TrimRight(fmt.Sprintf("%12.6fs %-8s %-16s %s", float64(t.at)/1e9, t.of, t.name, t.note), " ")
}

// last returns the last steps, oldest first.
func (w *world) last() []string {
	var lines []string
	for i := range uint64(traceLen) {
		if tr := w.trace[(w.steps+1+i)%traceLen]; tr.name != "" {
			lines = append(lines, tr.String())
		}
	}
	return lines
}

// fail records a violation.
func (w *world) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.failures, w.kinds = append(w.failures, text), append(w.kinds, format)
	w.logf("VIOLATION: %s", text)
}

// beacon counts a rare situation.
func (w *world) beacon(name string) { w.seen[name]++ }

// draw returns a random duration in [min, max).
func (w *world) draw(min, max time.Duration) time.Duration {
	if max <= min {
		return min
	}
	return min + time.Duration(w.rng.Int64N(int64(max-min)))
}

// chance returns true with a probability.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }
