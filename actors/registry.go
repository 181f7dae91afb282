package actors

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// Registry collects every mailbox by name, for the debug page and the metrics; protoactor
// hides a mailbox behind its PID. Counters of a name survive a reboot: the counters of the
// closed mailbox are added to those of its successor. A nil *Registry ignores everything.
type Registry struct {
	epoch       atomic.Uint64
	reboots     atomic.Uint64
	deadLetters atomic.Uint64

	mu      sync.Mutex
	entries map[string]*registryEntry
}

// Measured is the kind of thing that a registry shows: a Mailbox or a Gate.
type Measured interface {
	// Name is the path of the actor, or of the work that a gate bounds.
	Name() string
	Stats() MailboxStats
}

type registryEntry struct {
	box      Measured
	past     *MailboxStats // summed over earlier mailboxes of this name; nil at first
	restarts int
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{entries: map[string]*registryEntry{}} }

// Observe counts the dead letters of a system.
func (r *Registry) Observe(sys *actor.ActorSystem) {
	sys.EventStream.Subscribe(func(event any) {
		if _, dead := event.(*actor.DeadLetterEvent); dead {
			r.deadLetters.Add(1)
		}
	})
}

// Add registers a mailbox. If another mailbox of this name is registered, Add replaces it,
// keeps its counters, and counts a restart of the name. The supervisors add the mailboxes
// that they spawn.
func (r *Registry) Add(m Measured) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[m.Name()]
	switch {
	case e == nil:
		r.entries[m.Name()] = &registryEntry{box: m}
	case e.box != m:
		last := e.stats()
		e.box, e.past = m, &last
		e.restarts++
	}
}

func (e *registryEntry) stats() MailboxStats {
	s := e.box.Stats()
	if e.past != nil {
		s.inherit(e.past)
	}
	return s
}

// Remove removes a name and its counters, for short-lived actors. It does nothing if m is
// not the current mailbox of its name.
func (r *Registry) Remove(m Measured) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[m.Name()]; e != nil && e.box == m {
		delete(r.entries, m.Name())
	}
}

func (r *Registry) setEpoch(epoch uint64) {
	if r != nil {
		r.epoch.Store(epoch)
	}
}

func (r *Registry) countReboot() {
	if r != nil {
		r.reboots.Add(1)
	}
}

// ActorStats are the statistics of one name across its incarnations.
type ActorStats struct {
	MailboxStats
	Restarts int
}

// Stats returns the statistics of all names, sorted by name.
func (r *Registry) Stats() []ActorStats {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]ActorStats, 0, len(r.entries))
	for _, e := range r.entries {
		all = append(all, ActorStats{MailboxStats: e.stats(), Restarts: e.restarts})
	}
	slices.SortFunc(all, func(a, b ActorStats) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Snapshot is the content of /debug/actors. Times named just wait and service cover the
// sliding window of the last ten seconds; the total ones cover the life of the process.
type Snapshot struct {
	Epoch       uint64            `json:"epoch"`
	Reboots     uint64            `json:"reboots"`
	DeadLetters uint64            `json:"dead_letters"`
	Mailboxes   []MailboxSnapshot `json:"mailboxes"`
	// SlowestStage is the core stage with the largest service time p50 in the window. A batch
	// in progress for longer than a second counts with its age, so a stuck stage is shown.
	SlowestStage string `json:"slowest_stage"`
}

// LoadSnapshot is the part that a mailbox and a lane share.
type LoadSnapshot struct {
	Name              string `json:"name"`
	Class             string `json:"class"`
	DepthRequests     int    `json:"depth_requests"`
	LimitRequests     int    `json:"limit_requests"` // 0 when unlimited
	HighWaterRequests int    `json:"high_water_requests"`
	DepthBytes        int64  `json:"depth_bytes"`
	LimitBytes        int64  `json:"limit_bytes"` // 0 when unlimited
	HighWaterBytes    int64  `json:"high_water_bytes"`
	Queued            int    `json:"queued"`
	Waiting           int    `json:"waiting"`
	Enqueued          uint64 `json:"enqueued"`
	EnqueuedRequests  uint64 `json:"enqueued_requests"`
	Dequeued          uint64 `json:"dequeued"`
	Refused           uint64 `json:"refused"`
	Dropped           uint64 `json:"dropped"`
	Blocked           uint64 `json:"blocked"`
}

// MailboxSnapshot is one mailbox on the debug page.
type MailboxSnapshot struct {
	LoadSnapshot
	Lanes             []LoadSnapshot `json:"lanes"`
	Closed            bool           `json:"closed"`
	EnqueuedPerSecond float64        `json:"enqueued_per_s"`
	RequestsPerSecond float64        `json:"requests_per_s"`
	Batches           uint64         `json:"batches"`
	BatchAverage      float64        `json:"batch_avg"`
	BatchMax          int            `json:"batch_max"`
	BatchP50          int64          `json:"batch_p50"`
	BatchP99          int64          `json:"batch_p99"`
	BusyMicros        float64        `json:"busy_us"`
	WaitP50           float64        `json:"wait_p50_us"`
	WaitP99           float64        `json:"wait_p99_us"`
	ServiceP50        float64        `json:"service_p50_us"`
	ServiceP99        float64        `json:"service_p99_us"`
	WaitTotalP50      float64        `json:"wait_total_p50_us"`
	WaitTotalP99      float64        `json:"wait_total_p99_us"`
	ServiceTotalP50   float64        `json:"service_total_p50_us"`
	ServiceTotalP99   float64        `json:"service_total_p99_us"`
	Restarts          int            `json:"restarts"`
	LastPanic         string         `json:"last_panic,omitempty"`
	LastPanicStack    string         `json:"last_panic_stack,omitempty"`
	LastPanicAt       *time.Time     `json:"last_panic_at,omitempty"`
}

// stuckAfter is the age from which a batch in progress counts as a service time.
const stuckAfter = time.Second

// Snapshot returns the content of the debug page.
func (r *Registry) Snapshot() Snapshot {
	if r == nil {
		return Snapshot{Mailboxes: []MailboxSnapshot{}}
	}
	s := Snapshot{Epoch: r.epoch.Load(), Reboots: r.reboots.Load(), DeadLetters: r.deadLetters.Load()}
	stats := r.Stats()
	s.Mailboxes = make([]MailboxSnapshot, 0, len(stats))
	slowest := int64(0)
	for i := range stats {
		a := &stats[i]
		s.Mailboxes = append(s.Mailboxes, a.snapshot())
		if t := a.slowness(); t > slowest && strings.HasPrefix(a.Name, CorePath+"/") {
			slowest, s.SlowestStage = t, a.Name
		}
	}
	return s
}

// slowness is the stage's current typical service time, in nanoseconds.
func (a *ActorStats) slowness() int64 {
	t := a.ServiceNow.Quantile(0.5)
	if a.Busy > stuckAfter {
		t = max(t, int64(a.Busy))
	}
	return t
}

func (a *ActorStats) snapshot() MailboxSnapshot {
	m := MailboxSnapshot{
		LoadSnapshot:      a.LaneStats.snapshot(),
		Closed:            a.Closed,
		EnqueuedPerSecond: a.EnqueuedPerSecond,
		RequestsPerSecond: a.RequestsPerSecond,
		Batches:           a.Batches,
		BatchAverage:      a.BatchAverage(),
		BatchMax:          a.BatchMax,
		BatchP50:          a.SizesNow.Quantile(0.5),
		BatchP99:          a.SizesNow.Quantile(0.99),
		BusyMicros:        micros(int64(a.Busy)),
		WaitP50:           micros(a.WaitNow.Quantile(0.5)),
		WaitP99:           micros(a.WaitNow.Quantile(0.99)),
		ServiceP50:        micros(a.ServiceNow.Quantile(0.5)),
		ServiceP99:        micros(a.ServiceNow.Quantile(0.99)),
		WaitTotalP50:      micros(a.Wait.Quantile(0.5)),
		WaitTotalP99:      micros(a.Wait.Quantile(0.99)),
		ServiceTotalP50:   micros(a.Service.Quantile(0.5)),
		ServiceTotalP99:   micros(a.Service.Quantile(0.99)),
		Restarts:          a.Restarts,
	}
	for i := range a.Lanes {
		m.Lanes = append(m.Lanes, a.Lanes[i].snapshot())
	}
	if p := a.LastPanic; p != nil {
		m.LastPanic, m.LastPanicStack, m.LastPanicAt = p.Text, p.Stack, &p.At
	}
	return m
}

func (s *LaneStats) snapshot() LoadSnapshot {
	return LoadSnapshot{
		Name: s.Name, Class: s.Class.String(),
		DepthRequests: s.DepthRequests, LimitRequests: s.LimitRequests, HighWaterRequests: s.HighWaterRequests,
		DepthBytes: s.DepthBytes, LimitBytes: s.LimitBytes, HighWaterBytes: s.HighWaterBytes,
		Queued: s.Queued, Waiting: s.Waiting,
		Enqueued: s.Enqueued, EnqueuedRequests: s.Requests, Dequeued: s.Dequeued,
		Refused: s.Refused, Dropped: s.Dropped, Blocked: s.Blocked,
	}
}

func micros(nanos int64) float64 { return float64(nanos) / float64(time.Microsecond) }
