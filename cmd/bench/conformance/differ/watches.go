package differ

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Each side keeps these watch streams open, each with an anchor, a watcher that
// no sequence touches. Streams differ in how it is found out that they have
// delivered everything.
const (
	// pastStream has watchers that begin in the past or now. It is asked for its
	// progress, which it tells only when every watcher has caught up.
	pastStream = iota
	// futureStream has watchers that begin now or later, which never lag. An
	// event for the anchor comes behind all events before it.
	futureStream

	watchStreams
)

// anchorKey is put by nothing but WatchSync.
const anchorKey = "anchor"

// anchorID is the id of the anchor's watcher on each stream.
const anchorID = 1 << 40

// progressEvery is how often a stream is asked for its progress: one with a
// watcher that lags says nothing.
const progressEvery = 20 * time.Millisecond

// watching is one watch stream of one side.
type watching struct {
	stream pb.Watch_WatchClient
	end    context.CancelFunc
	ended  chan struct{} // closed by the reader, which end stops

	sending   sync.Mutex     // held during a Send
	forgotten sync.WaitGroup // cancels that nobody waits for

	mu       sync.Mutex // guards the rest
	changed  chan struct{}
	created  []*pb.WatchResponse         // answers to creates that nobody took yet
	told     map[int64]*pb.WatchResponse // by watcher: all since the last sync, as one
	active   map[int64]bool
	last     map[int64]int64 // by watcher: revision of the last event
	broken   map[int64]bool  // by watcher: the last response was a fragment
	progress int64           // highest revision of a manual progress notification
	anchored int64           // revision of the anchor's last event
	strange  string          // a broken rule
	err      error           // of the stream
}

// watch opens a stream and its anchor.
func watch(ctx context.Context, conn grpc.ClientConnInterface) (*watching, error) {
	streamCtx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(conn).Watch(streamCtx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("differ: watch: %w", err)
	}
	w := &watching{stream: stream, end: cancel, ended: make(chan struct{}), changed: make(chan struct{}),
		told: map[int64]*pb.WatchResponse{}, active: map[int64]bool{}, last: map[int64]int64{}, broken: map[int64]bool{}}
	go w.read() // ends with the stream
	reply := w.create(ctx, &pb.WatchCreateRequest{Key: []byte(anchorKey), WatchId: anchorID})
	if reply.Message == nil {
		w.close()
		return nil, fmt.Errorf("differ: watch: %s", reply)
	}
	return w, nil
}

func (w *watching) close() {
	w.end()
	<-w.ended
	w.forgotten.Wait()
}

func (w *watching) read() {
	defer close(w.ended)
	for {
		resp, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.err = err
		} else {
			w.take(resp)
		}
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// take files a response. It runs with mu held.
func (w *watching) take(resp *pb.WatchResponse) {
	id := resp.WatchId
	switch {
	case resp.Created:
		w.created = append(w.created, resp)
		if !resp.Canceled {
			w.active[id], w.last[id], w.broken[id] = true, 0, false
		}
	case resp.Canceled && !w.active[id]: // see forget
	case resp.Canceled:
		if resp.CompactRevision != 0 {
			w.forget(id)
		}
		t := w.transcript(id)
		t.Canceled, t.CancelReason, t.CompactRevision = true, resp.CancelReason, resp.CompactRevision
		w.active[id] = false
	case len(resp.Events) > 0:
		w.events(resp)
	case id == -1:
		w.progress = max(w.progress, resp.GetHeader().GetRevision())
	}
}

// forget cancels a watcher that the server has ended. As long as it is not, etcd
// counts it among those that lag, and tells no progress any more. It answers with
// another end, which is no part of what a watcher is told.
func (w *watching) forget(id int64) {
	w.forgotten.Go(func() {
		// An error is the reader's to find.
		_ = w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{
			CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	})
}

// send sends a request; a stream takes one at a time.
func (w *watching) send(req *pb.WatchRequest) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	return w.stream.Send(req)
}

// events checks the rules that hold for every response, and files its events.
func (w *watching) events(resp *pb.WatchResponse) {
	id := resp.WatchId
	if !w.active[id] {
		w.strange = fmt.Sprintf("events for watcher %d, which is not there", id)
	}
	for i, e := range resp.Events {
		rev := e.GetKv().GetModRevision()
		switch {
		case rev < w.last[id], rev == w.last[id] && i == 0 && !w.broken[id]:
			w.strange = fmt.Sprintf("watcher %d: an event of revision %d after a response up to %d", id, rev, w.last[id])
		case rev > resp.GetHeader().GetRevision():
			w.strange = fmt.Sprintf("watcher %d: an event of revision %d under a header of %d", id, rev, resp.GetHeader().GetRevision())
		}
		w.last[id] = rev
	}
	w.broken[id] = resp.Fragment
	if id == anchorID {
		w.anchored = w.last[id]
		return
	}
	for _, e := range resp.Events {
		// Whether others hear of a sync before the anchor does is open.
		if e.Type != mvccpb.Event_PUT || string(e.Kv.GetKey()) != anchorKey {
			t := w.transcript(id)
			t.Events = append(t.Events, e)
		}
	}
}

func (w *watching) transcript(id int64) *pb.WatchResponse {
	if w.told[id] == nil {
		w.told[id] = &pb.WatchResponse{WatchId: id}
	}
	return w.told[id]
}

// await returns once ok, called with mu held, is true.
func (w *watching) await(ctx context.Context, ok func() bool) error {
	for {
		w.mu.Lock()
		done, err, changed := ok(), w.err, w.changed
		w.mu.Unlock()
		switch {
		case done:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// create makes a watcher and returns the response that says so.
func (w *watching) create(ctx context.Context, req *pb.WatchCreateRequest) Reply {
	err := w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
	if err != nil {
		return failure(err)
	}
	var resp *pb.WatchResponse
	err = w.await(ctx, func() bool {
		if len(w.created) == 0 {
			return false
		}
		resp, w.created = w.created[0], w.created[1:]
		return true
	})
	if err != nil {
		return failure(err)
	}
	return Reply{Message: resp}
}

// cancel cancels a watcher. One that is not there is no reason to answer.
func (w *watching) cancel(ctx context.Context, id int64) Reply {
	w.mu.Lock()
	active := w.active[id]
	w.mu.Unlock()
	err := w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{
		CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	if err == nil && active {
		err = w.await(ctx, func() bool { return !w.active[id] })
	}
	if err != nil {
		return failure(err)
	}
	return Reply{}
}

// caughtUp returns once the stream has delivered everything up to a revision.
func (w *watching) caughtUp(ctx context.Context, revision int64) error {
	for ctx.Err() == nil {
		err := w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{
			ProgressRequest: &pb.WatchProgressRequest{}}})
		if err != nil {
			return err
		}
		turn, cancel := context.WithTimeout(ctx, progressEvery)
		err = w.await(turn, func() bool { return w.progress >= revision })
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return ctx.Err()
}

// transcripts returns what the watchers were told since the last call, one
// message for each that was told anything, and the first broken rule.
func (w *watching) transcripts() (all []proto.Message, strange string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.told)) {
		all = append(all, w.told[id])
	}
	w.told, strange, w.strange = map[int64]*pb.WatchResponse{}, w.strange, ""
	return all, strange
}

// sync returns what a stream's watchers were told, once that is everything.
func (r *running) sync(ctx context.Context, stream int) Reply {
	w := r.watches[stream]
	// A revision that no progress notification of before can have told.
	resp, err := pb.NewKVClient(r.conn).Put(ctx, &pb.PutRequest{Key: []byte(anchorKey)})
	switch {
	case err != nil:
	case stream == pastStream:
		err = w.caughtUp(ctx, resp.Header.Revision)
	default:
		err = w.await(ctx, func() bool { return w.anchored >= resp.Header.Revision })
	}
	if err != nil {
		return failure(err)
	}
	reply := Reply{Message: resp} // the sequence has to know of its revision
	reply.Messages, reply.Irregular = w.transcripts()
	return reply
}

// doWatch performs a step on a watch stream.
func (r *running) doWatch(ctx context.Context, c Call) Reply {
	switch req := c.Request.(type) {
	case *pb.WatchCreateRequest:
		return r.watches[c.Stream].create(ctx, req)
	case *pb.WatchCancelRequest:
		return r.watches[c.Stream].cancel(ctx, req.WatchId)
	default:
		return r.sync(ctx, c.Stream)
	}
}

// eventKinds names what a transcript holds, for the coverage table.
func eventKinds(m proto.Message) (kinds []string) {
	t, ok := m.(*pb.WatchResponse)
	if !ok {
		return nil
	}
	for _, e := range t.Events {
		kind := "event " + e.Type.String()
		switch {
		case e.Type == mvccpb.Event_PUT && e.Kv.GetVersion() > 1:
			kind += " of a key that exists"
		case e.Type == mvccpb.Event_PUT:
			kind += " of a new key"
		}
		if e.PrevKv != nil {
			kind += " with prev_kv"
		}
		kinds = append(kinds, kind)
	}
	if t.Canceled && t.CompactRevision != 0 {
		kinds = append(kinds, "canceled by compaction")
	}
	return kinds
}
