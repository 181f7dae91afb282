package actors

import "time"

// Rates are averages over the last five complete seconds.
const (
	rateSpan  = 5
	rateSlots = rateSpan + 2 // the current second, and one slot that separates it from the oldest
)

// rate counts messages and requests per second. Guarded by Mailbox.mu.
type rate struct {
	boundary int64 // end of the current second, as Now
	slot     int
	seconds  [rateSlots]int64
	messages [rateSlots]uint64
	requests [rateSlots]uint64
}

func (r *rate) add(now int64, requests int) {
	if !statistics {
		return
	}
	if now >= r.boundary {
		r.turn(now)
	}
	r.messages[r.slot]++
	r.requests[r.slot] += uint64(requests)
}

func (r *rate) turn(now int64) {
	second := now / int64(time.Second)
	r.boundary = (second + 1) * int64(time.Second)
	r.slot = int(second % rateSlots)
	r.seconds[r.slot], r.messages[r.slot], r.requests[r.slot] = second, 0, 0
}

func (r *rate) perSecond(now int64) (messages, requests float64) {
	second := now / int64(time.Second)
	for i, s := range r.seconds {
		if s < second && s >= second-rateSpan {
			messages += float64(r.messages[i])
			requests += float64(r.requests[i])
		}
	}
	return messages / rateSpan, requests / rateSpan
}

// PanicRecord is a panic as shown on the debug page.
type PanicRecord struct {
	Text  string
	Stack string
	At    time.Time
}

// LaneStats describes one lane. Counters cover the life of the mailbox or, in results of a
// Registry, the life of the process.
type LaneStats struct {
	Name  string
	Class Class
	// Depth is the current load, Limit the bound (zero if unlimited), and HighWater the largest
	// Depth so far. Invariant: Depth <= HighWater <= Limit.
	DepthRequests, LimitRequests, HighWaterRequests int
	DepthBytes, LimitBytes, HighWaterBytes          int64
	Queued                                          int // messages not yet drained
	Waiting                                         int // posts currently blocked

	Enqueued uint64 // messages accepted
	Requests uint64 // requests in them
	Dequeued uint64 // messages delivered
	Refused  uint64 // posts that failed because the lane was full
	Dropped  uint64 // the same in a Lossy lane
	Blocked  uint64 // posts that had to wait
}

func (s *LaneStats) sum(o *LaneStats) {
	s.DepthRequests += o.DepthRequests
	s.DepthBytes += o.DepthBytes
	s.LimitRequests += o.LimitRequests
	s.LimitBytes += o.LimitBytes
	s.Queued += o.Queued
	s.Waiting += o.Waiting
	s.addCounters(o)
}

func (s *LaneStats) addCounters(o *LaneStats) {
	s.Enqueued += o.Enqueued
	s.Requests += o.Requests
	s.Dequeued += o.Dequeued
	s.Refused += o.Refused
	s.Dropped += o.Dropped
	s.Blocked += o.Blocked
}

func (s *LaneStats) inherit(o *LaneStats) {
	s.HighWaterRequests = max(s.HighWaterRequests, o.HighWaterRequests)
	s.HighWaterBytes = max(s.HighWaterBytes, o.HighWaterBytes)
	s.addCounters(o)
}

// MailboxStats describes a mailbox.
type MailboxStats struct {
	// LaneStats is the sum over the lanes; its Name is the mailbox's and its Class that of lane
	// 0. HighWater is that of the sum. Limit is zero if a lane is unlimited.
	LaneStats
	Lanes  []LaneStats
	Closed bool

	EnqueuedPerSecond float64 // messages, over the last five seconds
	RequestsPerSecond float64
	Batches           uint64
	BatchMax          int           // messages in the largest batch
	Busy              time.Duration // age of the batch in progress, 0 when idle
	LastPanic         *PanicRecord

	// Histograms since the start, and over the last ten seconds ("Now"). They are empty in a
	// Light mailbox. Wait is from post to start of batch, Service from start of batch to the end
	// of Receive, both in nanoseconds; Sizes counts messages per batch.
	Wait, WaitNow       HistogramStats
	Service, ServiceNow HistogramStats
	Sizes, SizesNow     HistogramStats
}

// BatchAverage is the mean number of messages in a batch.
func (s *MailboxStats) BatchAverage() float64 {
	if s.Batches == 0 {
		return 0
	}
	return float64(s.Dequeued) / float64(s.Batches)
}

// inherit adds the counters of an earlier mailbox of the same name.
func (s *MailboxStats) inherit(o *MailboxStats) {
	s.LaneStats.inherit(&o.LaneStats)
	for i := range min(len(s.Lanes), len(o.Lanes)) {
		s.Lanes[i].inherit(&o.Lanes[i])
	}
	s.Batches += o.Batches
	s.BatchMax = max(s.BatchMax, o.BatchMax)
	if s.LastPanic == nil {
		s.LastPanic = o.LastPanic
	}
	s.Wait.merge(&o.Wait)
	s.Service.merge(&o.Service)
	s.Sizes.merge(&o.Sizes)
}

// Stats returns a copy of all statistics. It is for pages and metrics; a hot path that only
// needs the depth uses Load. Unlike Load, the depth includes deferred messages.
func (m *Mailbox) Stats() MailboxStats {
	now := Now()
	s := m.counters(now)
	if busy := m.busySince.Load(); busy != 0 {
		s.Busy = time.Duration(max(now-busy, 0))
	}
	if m.waits != nil {
		s.Wait, s.WaitNow = m.waits.Read(now)
		s.Service, s.ServiceNow = m.services.Read(now)
		s.Sizes, s.SizesNow = m.sizes.Read(now)
	}
	return s
}

func (m *Mailbox) counters(now int64) MailboxStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := MailboxStats{
		Closed:    m.closed,
		Batches:   m.batches,
		BatchMax:  m.batchMax,
		LastPanic: m.lastPanic,
	}
	unlimited := false
	for i := range m.lanes {
		l := m.lanes[i].stats()
		s.Lanes = append(s.Lanes, l)
		s.sum(&l)
		unlimited = unlimited || m.lanes[i].Unlimited
	}
	s.Name, s.Class = m.cfg.Name, m.lanes[0].Class
	s.HighWaterRequests, s.HighWaterBytes = m.highWater.requests, m.highWater.bytes
	if unlimited {
		s.LimitRequests, s.LimitBytes = 0, 0
	}
	s.EnqueuedPerSecond, s.RequestsPerSecond = m.rate.perSecond(now)
	return s
}

func (l *lane) stats() LaneStats {
	return LaneStats{
		Name: l.Name, Class: l.Class,
		DepthRequests: l.taken.requests, LimitRequests: l.Limit.Requests, HighWaterRequests: l.highWater.requests,
		DepthBytes: l.taken.bytes, LimitBytes: l.Limit.Bytes, HighWaterBytes: l.highWater.bytes,
		Queued: l.queue.n, Waiting: l.waiters,
		Enqueued: l.enqueued, Requests: l.requests, Dequeued: l.dequeued,
		Refused: l.refused, Dropped: l.dropped, Blocked: l.blocked,
	}
}
