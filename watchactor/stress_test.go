package watchactor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/watchactor/watch"
)

var stressPuts = flag.Int("stress-puts", 1000, "revisions that TestStress makes")

// TestStress covers what the model cannot: real mailboxes and goroutines. One writer
// writes revisions; clients read, pause, add and cancel watches, and request progress;
// hubs panic. Each watch of all keys receives every revision, and no progress
// notification comes early. Run it with -race.
func TestStress(t *testing.T) {
	defer func(limit actors.Limit) { eventsLimit = limit }(eventsLimit)
	eventsLimit = actors.Limit{Requests: 16, Bytes: 256 << 10} // so that it is full often
	r := newRig(t)
	var clients sync.WaitGroup
	stop := make(chan struct{}) // closed when the writer is done
	for i := range 8 {
		c := &stressClient{t: t, rng: rand.New(rand.NewPCG(uint64(i), 1)), last: map[int64]int64{}}
		var err error
		c.stream, err = r.streams.Open(StreamConfig{Send: c.receive, SplitBytes: 100_000, HeaderBytes: func(int64) int { return 20 },
			Progress: 5 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() { c.play(r, stop) })
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for i := range *stressPuts {
		size := rng.IntN(500)
		if rng.IntN(100) == 0 {
			size = rng.IntN(500 << 10) // some do not fit beside others
		}
		if _, err := r.store.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "k%d", rng.IntN(5)), Value: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(3) > 0 {
			r.store.Publish(mvcc.Applied{})
		}
		switch n := rng.IntN(300); {
		case n == 0:
			r.faults.Arm(actors.EdgeWatchHub, []string{"entry", "middle", "post", "batch"}[i%4], 1+rng.IntN(3))
		case n < 150:
			time.Sleep(100 * time.Microsecond) // let them keep step
		}
	}
	r.store.Publish(mvcc.Applied{})
	close(stop)
	clients.Wait()
	t.Logf("%+v, %d fresh hubs", r.streams.Stats(), r.hub.Restarts())
	if r.streams.Stats().Lost == 0 {
		t.Error("no mailbox was ever full")
	}
}

type stressClient struct {
	t      *testing.T
	stream *Stream

	mu   sync.Mutex
	rng  *rand.Rand
	last map[int64]int64 // by watch: everything up to it has come
	// hurry is set at the end: the client no longer pauses.
	hurry bool
}

func (c *stressClient) receive(r *watch.Response) error {
	c.mu.Lock()
	n, hurry := c.rng.IntN(1000), c.hurry
	c.mu.Unlock()
	switch {
	case hurry:
	case n == 0:
		time.Sleep(50 * time.Millisecond) // some hundred revisions
	case n < 3:
		time.Sleep(time.Millisecond)
	}
	if r.Splits {
		return r.Split(100_000, 20, c.check)
	}
	return c.check(r)
}

func (c *stressClient) check(r *watch.Response) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := decode(c.t, r)
	switch {
	case m.Created && !m.Canceled:
		c.last[m.WatchId] = m.Header.Revision
	case m.Canceled:
		delete(c.last, m.WatchId)
	case len(m.Events) == 0:
		for id, last := range c.last {
			if (m.WatchId == watch.InvalidID || m.WatchId == id) && last != m.Header.Revision {
				c.t.Errorf("progress %d for watch %d, which has what is up to %d", m.Header.Revision, id, last)
			}
		}
	}
	for _, e := range m.Events {
		if want := c.last[m.WatchId] + 1; e.Kv.ModRevision != want {
			c.t.Errorf("watch %d: revision %d, want %d", m.WatchId, e.Kv.ModRevision, want)
			return errors.New("enough")
		}
		c.last[m.WatchId]++
	}
	return nil
}

func (c *stressClient) play(r *rig, stop chan struct{}) {
	defer func() {
		c.stream.Close()
		<-c.stream.Done()
	}()
	send := func(req *pb.WatchRequest) bool {
		err := c.stream.Request(context.Background(), req)
		if err != nil {
			c.t.Errorf("request: %v; %v", err, c.stream.Err())
		}
		return err == nil
	}
	create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, ProgressNotify: true, Fragment: true}}}
	if !send(create) {
		return
	}
	for id := int64(1); ; {
		select {
		case <-stop:
			c.finish(r)
			return
		case <-time.After(2 * time.Millisecond):
		}
		c.mu.Lock()
		n := c.rng.IntN(10)
		c.mu.Unlock()
		ok := true
		switch {
		case n < 2 && id < 20:
			ok = send(create)
			id++
		case n < 3:
			ok = send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id - 1}}})
		case n < 6:
			ok = send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
		}
		if !ok {
			return
		}
	}
}

// finish waits until all watches have received everything.
func (c *stressClient) finish(r *rig) {
	c.mu.Lock()
	c.hurry = true
	c.mu.Unlock()
	revision := r.pub.View().Revision
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		var lacking []string
		c.mu.Lock()
		for id, last := range c.last {
			if last != revision {
				lacking = append(lacking, fmt.Sprintf("%d has %d", id, last))
			}
		}
		c.mu.Unlock()
		if len(lacking) == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Errorf("at %d: %s", revision, strings.Join(lacking, ", "))
			return
		}
	}
}
