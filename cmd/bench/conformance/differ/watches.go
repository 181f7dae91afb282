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

// Each side keeps these watch streams open, each with an anchor: a watcher that no
// sequence cancels. The streams differ in how the runner detects that they have delivered
// everything.
const (
	// pastStream has watchers that begin in the past or now. The runner requests its
	// progress, which the server sends only when every watcher has caught up.
	pastStream = iota
	// futureStream has watchers that begin now or later, which never lag. An event for
	// the anchor arrives after all events before it.
	futureStream

	watchStreams
)

// anchorKey is put only by WatchSync.
const anchorKey = "anchor"

// anchorID is the id of the anchor's watcher on each stream.
const anchorID = 1 << 40

// progressEvery is the interval of progress requests: the server does not answer while
// a watcher of the stream lags.
const progressEvery = 20 * time.Millisecond

// watchStream is one watch stream of one side. The reader goroutine adds responses to it.
type watchStream struct {
	stream pb.Watch_WatchClient
	end    context.CancelFunc
	ended  chan struct{} // closed by the reader, which end stops

	sending   sync.Mutex     // held during a Send
	forgotten sync.WaitGroup // pending sends of forget

	mu        sync.Mutex // guards the rest
	changed   chan struct{}
	created   []*pb.WatchResponse         // responses to creates that create has not taken yet
	received  map[int64]*pb.WatchResponse // by watcher: all responses since the last sync, joined
	active    map[int64]bool
	last      map[int64]int64 // by watcher: revision of the last event
	broken    map[int64]bool  // by watcher: the last response was a fragment
	progress  int64           // highest revision of a manual progress notification
	anchored  int64           // revision of the anchor's last event
	violation string          // a violated rule
	err       error           // of the stream
}

// watch opens a stream and creates its anchor. It ends with close, not with ctx.
func watch(ctx context.Context, conn grpc.ClientConnInterface) (*watchStream, error) {
	w, err := openWatch(context.WithoutCancel(ctx), conn)
	if err != nil {
		return nil, fmt.Errorf("differ: watch: %w", err)
	}
	reply := w.create(ctx, &pb.WatchCreateRequest{Key: []byte(anchorKey), WatchId: anchorID})
	if reply.Message == nil {
		w.close()
		return nil, fmt.Errorf("differ: watch: %s", reply)
	}
	return w, nil
}

// openWatch opens a stream, which ends with ctx or with close. IMPORTANT: the caller must close it.
func openWatch(ctx context.Context, conn grpc.ClientConnInterface) (*watchStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchStream{stream: stream, end: cancel, ended: make(chan struct{}), changed: make(chan struct{}),
		received: map[int64]*pb.WatchResponse{}, active: map[int64]bool{}, last: map[int64]int64{}, broken: map[int64]bool{}}
	go w.read() // ends with the stream
	return w, nil
}

func (w *watchStream) close() {
	w.end()
	<-w.ended
	w.forgotten.Wait()
}

func (w *watchStream) read() {
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

// take adds a response. The caller must hold mu.
func (w *watchStream) take(resp *pb.WatchResponse) {
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

// forget cancels a watcher that the server has canceled because of a compaction. Until
// then, etcd counts the watcher as lagging and sends no progress notifications. The
// response to the cancel is not part of the watcher's transcript.
func (w *watchStream) forget(id int64) {
	w.forgotten.Go(func() {
		// The reader gets the same error.
		_ = w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{
			CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	})
}

// send sends a request. Sends on a stream must not be concurrent.
func (w *watchStream) send(req *pb.WatchRequest) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	return w.stream.Send(req)
}

// events checks the rules for every response, and adds its events.
func (w *watchStream) events(resp *pb.WatchResponse) {
	id := resp.WatchId
	if !w.active[id] {
		w.violation = fmt.Sprintf("events for watcher %d, which does not exist", id)
	}
	for i, e := range resp.Events {
		rev := e.GetKv().GetModRevision()
		switch {
		case rev < w.last[id], rev == w.last[id] && i == 0 && !w.broken[id]:
			w.violation = fmt.Sprintf("watcher %d: an event of revision %d after a response up to %d", id, rev, w.last[id])
		case rev > resp.GetHeader().GetRevision():
			w.violation = fmt.Sprintf("watcher %d: an event of revision %d under a header of %d", id, rev, resp.GetHeader().GetRevision())
		}
		w.last[id] = rev
	}
	w.broken[id] = resp.Fragment
	if id == anchorID {
		w.anchored = w.last[id]
		return
	}
	for _, e := range resp.Events {
		// Other watchers may receive the put of a sync before or after the transcripts
		// are taken.
		if e.Type != mvccpb.Event_PUT || string(e.Kv.GetKey()) != anchorKey {
			t := w.transcript(id)
			t.Events = append(t.Events, e)
		}
	}
}

func (w *watchStream) transcript(id int64) *pb.WatchResponse {
	if w.received[id] == nil {
		w.received[id] = &pb.WatchResponse{WatchId: id}
	}
	return w.received[id]
}

// await returns when ok returns true. It calls ok with mu held.
func (w *watchStream) await(ctx context.Context, ok func() bool) error {
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

// create creates a watcher and returns the server's response.
func (w *watchStream) create(ctx context.Context, req *pb.WatchCreateRequest) Reply {
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

// cancel cancels a watcher. It waits for a response only if the watcher exists, because
// the server sends none otherwise.
func (w *watchStream) cancel(ctx context.Context, id int64) Reply {
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

// caughtUp returns when the stream has delivered everything up to a revision.
func (w *watchStream) caughtUp(ctx context.Context, revision int64) error {
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

// transcripts returns one message for each watcher that received anything since the last
// call, and a violated rule, if any.
func (w *watchStream) transcripts() (all []proto.Message, violation string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.received)) {
		all = append(all, w.received[id])
	}
	w.received, violation, w.violation = map[int64]*pb.WatchResponse{}, w.violation, ""
	return all, violation
}

// sync waits until a stream has delivered everything, and returns the transcripts.
func (r *running) sync(ctx context.Context, stream int) Reply {
	w := r.watches[stream]
	// The put makes a revision that no earlier progress notification has.
	resp, err := pb.NewKVClient(r.watched(stream).conn).Put(ctx, &pb.PutRequest{Key: []byte(anchorKey)})
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
	reply := Reply{Message: resp} // the generator needs its revision
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

// eventKinds lists the kinds of events in a transcript, for the coverage table.
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
