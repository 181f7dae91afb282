package grpcgw

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// Reads bounds the reads in progress and the memory of their answers. Reads need it
// because no mailbox bounds them: they run on the goroutines of their handlers, on
// immutable views. The life of a read:
//
//  1. begin admits it to the lane of small reads, without waiting. If the lane is
//     full, the read is refused.
//  2. Before the keyspace visits more than smallKeys keys, it calls Scan. The read
//     then leaves the small lane and waits in the order of arrival, first for a place
//     among the active large reads, then for a turn. There are half as many turns as
//     processors, so that writes always find a processor.
//  3. Between slices of the scan, Step ends the read if its caller has disconnected.
//  4. Before the answer is allocated, Hold takes credit for its bytes. An answer of up
//     to smallAnswer takes it from the small lane, without waiting. A larger one takes
//     it from the lane of large answers. If there is not enough, the read gives up its
//     turn, waits until other answers have been written, and then waits for a turn
//     again. Meanwhile it keeps what it has found: 16 bytes for each key, and the
//     records if it sorts by value. The places of step 2 bound how many reads do that.
//  5. finish releases the turn and the place. The credit is released as the transport
//     writes the answer, or when the stream or its connection ends.
//
// There is no deadlock: a read with a turn waits for nothing, one with credit for a large
// answer waits only for a turn, one with a place waits only for a turn or credit, and none
// waits for credit of the small lane.
//
// The answer refers to stored records; a large one is encoded piece by piece as the
// client reads it (see rope.go). So a client that does not read costs only references
// and credit. While other reads wait for credit, a connection is closed if its client has
// read nothing of an answer for stallTimeout, or, if many reads wait, nothing at all for
// less. To read is to make room for a piece of an answer that has been encoded.
type Reads struct {
	gate  *actors.Gate
	wait  time.Duration // bounds the wait for a turn or credit of a read without a deadline
	stall time.Duration // stallTimeout, except in tests

	evicted atomic.Int64 // actors.Now when evict last searched holders
	resumed atomic.Int64 // actors.Now when evictUntil last found that the process had paused

	mu      sync.Mutex
	holders map[*reading]struct{} // the readings that hold credit
}

// Lanes of the gate.
const (
	laneSmall  = iota // small reads: those in progress, and their answers
	laneScan          // turns to scan
	laneLarge         // answers of large reads
	laneActive        // large reads that scan, wait for credit, or fetch
)

const (
	// smallAnswer bounds the answer of a small read, in bytes. gRPC queues as much of
	// one stream before it waits for the client.
	smallAnswer = 64 << 10
	// smallKeys bounds the keys that a small read visits.
	smallKeys = 1000
	// noCreditBytes is the size up to which an answer takes no credit, in bytes: its stream
	// takes more memory than that.
	noCreditBytes = 1 << 10
	// stallTimeout is how long a client may read nothing of an answer while other reads
	// wait. If it reads nothing of any answer on its connection, the time is divided by the
	// number of waiting reads, but at most by stallDivisorMax: a client on a slow line
	// still reads a piece of an answer in that time, and many clients that never read are
	// disconnected before honest reads time out.
	stallTimeout    = 5 * time.Second
	stallDivisorMax = 10
	// activePerTurn is how many large reads are active for each turn. More of them let
	// others scan while more answers wait for credit, and keep more keys in memory.
	activePerTurn = 4
	// smallDivisor determines the credit of small answers: it is one smallDivisor-th of that
	// of large ones.
	smallDivisor = 4
)

// DefaultReads are the default limits of reads: 10,000 in progress and 128 MiB of answers.
var DefaultReads = actors.Limit{Requests: 10_000, Bytes: 128 << 20}

// NewReads returns the gate of reads. limit bounds the reads that are in progress or wait
// in each lane, and the bytes of large answers; small answers may take a quarter of that
// in addition. A large answer that exceeds the limit is admitted when no other is held. A
// read waits for a turn, and for credit, until its deadline, or for wait if it has none.
func NewReads(limit actors.Limit, wait time.Duration) *Reads {
	turns := max(1, runtime.GOMAXPROCS(0)/2)
	return &Reads{
		gate: actors.NewGate(actors.EdgeReads,
			actors.GateLane{Name: "small", Limit: actors.Limit{Requests: limit.Requests, Bytes: max(limit.Bytes/smallDivisor, smallAnswer)}},
			actors.GateLane{Name: "scan", Limit: actors.Limit{Requests: turns, Bytes: 1}, Wait: limit.Requests},
			actors.GateLane{Name: "large", Limit: limit, Wait: limit.Requests},
			actors.GateLane{Name: "active", Limit: actors.Limit{Requests: activePerTurn * turns, Bytes: 1}, Wait: limit.Requests},
		),
		wait:    wait,
		stall:   stallTimeout,
		holders: make(map[*reading]struct{}),
	}
}

// Gate returns the gate, for the registry of mailboxes.
func (r *Reads) Gate() *actors.Gate { return r.gate }

// errReadsBusy is the error of a large read that did not get a turn, or credit for its
// answer, in time.
var errReadsBusy = status.Error(codes.ResourceExhausted,
	"etcdserver: too many requests: large reads in progress take all turns or all memory for answers; read in pages, or raise --mailbox-reads-bytes")

// errReadsFull is the error of a read when the lane of small reads is full.
var errReadsFull = status.Error(codes.ResourceExhausted, "etcdserver: too many requests")

// reading is one read, from its admission until its answer is written. It implements
// mvcc.Reading for its handler, which is the only caller until finish.
type reading struct {
	reads *Reads
	ctx   context.Context
	pool  mem.BufferPool // that the buffer of a small answer is returned to

	place  place
	active bool          // has a place in laneActive; kept until finish
	began  int64         // actors.Now when the turn began
	waited time.Duration // for the turn, and for credit
	client *conn         // set when credit is taken; nil if there is no connection

	// Guarded by reads.mu.
	lane     int    // of the credit
	credit   int    // bytes held
	collect  func() // releases the hold of collector; set with credit
	unsent   int    // bytes of the answer that are not written; at least credit
	sending  bool   // set when the answer is encoded: until then there is nothing to read
	progress int64  // actors.Now when sending was set, then when a part was last written
}

// place is what a reading has taken from the gate, beside credit.
type place int

const (
	placeNone  place = iota
	placeSmall       // one of the small reads
	placeTurn        // a turn to scan
)

var _ mvcc.Reading = (*reading)(nil)

// begin admits a read. IMPORTANT: the caller must call finish.
func (r *Reads) begin(ctx context.Context) (*reading, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.gate.TryEnter(laneSmall, actors.Cost{Requests: 1}) != nil {
		return nil, errReadsFull
	}
	return &reading{reads: r, ctx: ctx, place: placeSmall}, nil
}

// Scan implements mvcc.Reading.
func (rd *reading) Scan(keys int) error {
	if keys <= smallKeys || rd.place == placeTurn {
		return rd.ctx.Err()
	}
	return rd.takeTurn()
}

// Turn waits for a turn to scan, for a watch stream that catches up. It returns the
// function that releases the turn; ok is false if too many reads wait already. The bytes
// that the stream then sends are bounded by its mailbox, and take no credit.
func (r *Reads) Turn() (done func(), ok bool) {
	turn := actors.Cost{Requests: 1}
	if r.gate.Enter(context.Background(), laneScan, turn) != nil {
		return nil, false
	}
	began := actors.Now()
	return func() {
		r.gate.Leave(laneScan, turn)
		r.gate.Worked(actors.Now() - began)
	}, true
}

// takeTurn makes the read a large one: it releases its place among the small ones, and waits
// for one among the active reads and for a turn.
func (rd *reading) takeTurn() error {
	rd.leave()
	if !rd.active {
		if err := rd.enter(laneActive, actors.Cost{Requests: 1}); err != nil {
			return err
		}
		rd.active = true
	}
	if err := rd.enter(laneScan, actors.Cost{Requests: 1}); err != nil {
		return err
	}
	rd.place, rd.began = placeTurn, actors.Now()
	return nil
}

// leave releases the place.
func (rd *reading) leave() {
	switch rd.place {
	case placeSmall:
		rd.reads.gate.Leave(laneSmall, actors.Cost{Requests: 1})
	case placeTurn:
		rd.reads.gate.Leave(laneScan, actors.Cost{Requests: 1})
		rd.reads.gate.Worked(actors.Now() - rd.began)
	}
	rd.place = placeNone
}

// enter waits for room in a lane.
func (rd *reading) enter(lane int, c actors.Cost) error {
	ctx := rd.ctx
	if _, ok := ctx.Deadline(); !ok {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, rd.reads.wait)
		defer cancel()
	}
	began := time.Now()
	err := rd.reads.gate.Enter(ctx, lane, c)
	rd.waited += time.Since(began)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case err != nil:
		return errReadsBusy
	}
	if err := rd.ctx.Err(); err != nil { // the read ended while it waited
		rd.reads.gate.Leave(lane, c)
		return err
	}
	return nil
}

// Step implements mvcc.Reading.
func (rd *reading) Step() error { return rd.ctx.Err() }

// Hold implements mvcc.Reading.
func (rd *reading) Hold(bytes int) error {
	rd.written() // release the credit of an attempt that a compaction has passed
	if err := rd.ctx.Err(); err != nil {
		return err
	}
	if rd.place != placeTurn && bytes <= smallAnswer {
		return rd.holdSmall(bytes)
	}
	if rd.place != placeTurn {
		if err := rd.takeTurn(); err != nil {
			return err
		}
	}
	cost := rd.reads.gate.Clamp(laneLarge, actors.Cost{Requests: 1, Bytes: bytes})
	// If others wait already, TryEnter would fail, and count it as a refusal.
	if rd.reads.gate.Waiting(laneLarge) == 0 && rd.reads.gate.TryEnter(laneLarge, cost) == nil {
		rd.hold(laneLarge, cost.Bytes, bytes)
		return nil
	}
	rd.leave() // others scan while this read waits
	if err := rd.awaitCredit(cost); err != nil {
		return err
	}
	rd.hold(laneLarge, cost.Bytes, bytes)
	return rd.takeTurn()
}

// awaitCredit waits for the credit of a large answer, and disconnects stalled clients
// meanwhile.
func (rd *reading) awaitCredit(cost actors.Cost) error {
	done := make(chan struct{})
	defer close(done)
	go rd.reads.evictUntil(done)
	return rd.enter(laneLarge, cost)
}

func (rd *reading) holdSmall(bytes int) error {
	if bytes <= noCreditBytes {
		return nil
	}
	cost := actors.Cost{Bytes: bytes}
	if rd.reads.gate.TryEnter(laneSmall, cost) != nil {
		rd.reads.evict()
		if rd.reads.gate.TryEnter(laneSmall, cost) != nil {
			return errReadsFull
		}
	}
	rd.hold(laneSmall, bytes, bytes)
	return nil
}

func (rd *reading) hold(lane, credit, bytes int) {
	r := rd.reads
	rd.client = rd.conn()
	release := collector.hold(bytes)
	r.mu.Lock()
	defer r.mu.Unlock()
	rd.collect = release
	rd.lane, rd.credit, rd.unsent, rd.sending = lane, credit, bytes, false
	r.holders[rd] = struct{}{}
}

// send records that the client can read the answer from now on. Until then the member
// fetches records, which a client must not be disconnected for.
func (rd *reading) send() {
	r := rd.reads
	r.mu.Lock()
	defer r.mu.Unlock()
	rd.sending, rd.progress = true, actors.Now()
}

// finish releases the places when the handler ends. If there is no answer to send, it
// releases the credit as well.
func (rd *reading) finish(answered bool) {
	rd.leave()
	if rd.active {
		rd.active = false
		rd.reads.gate.Leave(laneActive, actors.Cost{Requests: 1})
	}
	if !answered {
		rd.written()
	}
}

// wrote releases the credit of a part of the answer that has been written.
func (rd *reading) wrote(bytes int) {
	r := rd.reads
	r.mu.Lock()
	defer r.mu.Unlock()
	rd.progressed()
	rd.unsent -= bytes
	rd.reduce(max(rd.unsent, 0))
}

// written releases all credit: nothing of the answer is left to write.
func (rd *reading) written() {
	r := rd.reads
	r.mu.Lock()
	defer r.mu.Unlock()
	rd.progressed()
	rd.reduce(0)
}

// progressed records that a part of the answer has been written, if it is being sent. The
// caller holds reads.mu.
func (rd *reading) progressed() {
	if !rd.sending {
		return
	}
	rd.progress = actors.Now()
	if rd.client != nil {
		rd.client.progress.Store(rd.progress)
	}
}

// reduce releases all credit but the given bytes. The caller holds reads.mu.
func (rd *reading) reduce(left int) {
	if rd.credit <= left {
		return
	}
	cost := actors.Cost{Bytes: rd.credit - left}
	rd.credit = left
	if left == 0 {
		delete(rd.reads.holders, rd)
		rd.collect()
		if rd.lane == laneLarge {
			cost.Requests = 1
		}
	}
	rd.reads.gate.Leave(rd.lane, cost)
}

// Get implements mem.BufferPool; gRPC does not call it.
func (rd *reading) Get(length int) *[]byte { return rd.pool.Get(length) }

// Put implements mem.BufferPool: the transport has written a small answer.
func (rd *reading) Put(buf *[]byte) {
	rd.pool.Put(buf)
	rd.written()
}

// dropConn releases the credit of all answers on a connection that is closed, because gRPC
// does not free the buffers that it had queued there.
func (r *Reads) dropConn(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rd := range r.holders {
		if rd.client == c {
			rd.reduce(0)
		}
	}
}

// conn returns the connection of the client; nil if there is none.
func (rd *reading) conn() *conn {
	p, ok := peer.FromContext(rd.ctx)
	if !ok {
		return nil
	}
	addr, _ := p.Addr.(clientAddr)
	return addr.conn
}

// evictUntil calls evict periodically until done is closed. If it is called late, the
// process had no time, for its connections neither: their clients are not to blame.
func (r *Reads) evictUntil(done <-chan struct{}) {
	ticker := time.NewTicker(r.evictPeriod())
	defer ticker.Stop()
	last := actors.Now()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			now := actors.Now()
			if now-last > 2*int64(r.evictPeriod()) {
				r.resumed.Store(now)
			}
			last = now
			r.evict()
		}
	}
}

// evictPeriod is the least time between two searches for clients to disconnect: half the
// shortest time that a client may read nothing.
func (r *Reads) evictPeriod() time.Duration { return r.stall / (2 * stallDivisorMax) }

// stallLimit returns how long a client may currently read nothing of all its answers.
func (r *Reads) stallLimit() time.Duration {
	waiting := r.gate.Waiting(laneActive) + r.gate.Waiting(laneScan) + r.gate.Waiting(laneLarge)
	return r.stall / time.Duration(min(max(waiting, 1), stallDivisorMax))
}

// evict closes the connections of clients whose answers hold credit and are stalled. It
// does nothing if it has searched for them within evictPeriod: every small read that finds
// no room calls it, and a search passes over all answers.
func (r *Reads) evict() {
	now, last := actors.Now(), r.evicted.Load()
	if now-last < int64(r.evictPeriod()) || !r.evicted.CompareAndSwap(last, now) {
		return
	}
	stallLimit := int64(r.stallLimit())
	var stalled []*conn
	r.mu.Lock()
	for rd := range r.holders {
		if rd.client != nil && rd.stalled(now, stallLimit) {
			stalled = append(stalled, rd.client)
		}
	}
	r.mu.Unlock()
	for _, c := range stalled {
		port.Sever(c.Conn) // it does not read: it would not hear of the end
		_ = c.Close()      // releases the credit
	}
}

// stalled reports whether the client has read nothing of this answer for the full time, or
// nothing of all its answers for stallLimit. Answers on one connection share its line, so a
// client that reads many of them all the time reads little of each. Time begins anew after a
// pause of the process. The caller holds reads.mu, and the answer has a client.
func (rd *reading) stalled(now, stallLimit int64) bool {
	answer := max(rd.progress, rd.reads.resumed.Load())
	anything := max(answer, rd.client.progress.Load())
	return rd.sending && (now-anything > stallLimit || now-answer > int64(rd.reads.stall))
}
