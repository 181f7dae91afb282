package watchactor_test

import (
	"context"
	"fmt"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/watchactor"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// Example watches a key: the hub is a child of the edge, each client has a stream, and
// each publication wakes the hub.
func Example() {
	ctx, published := context.Background(), mvcc.NewPublished()
	store := mvcc.NewStore(mvcc.Config{Published: published})
	store.Publish(mvcc.Applied{})
	edge, err := actors.StartEdge(actors.NewSystem(zerolog.Nop()), actors.EdgeConfig{})
	if err != nil {
		panic(err)
	}
	streams := watchactor.NewStreams(watchactor.Config{
		Published: published, Spawn: edge.Spawn, Unpinned: func() {}, Reason: error.Error,
	})
	published.Notify(streams.Wake)
	if _, err := edge.Spawn(actors.Child{Name: actors.EdgeWatchHub, New: streams.Hub}); err != nil {
		panic(err)
	}

	sent := make(chan string)
	stream, err := streams.Open(watchactor.StreamConfig{Send: func(r *watch.Response) error {
		sent <- fmt.Sprintf("watch %d at revision %d: created %t, %d events", r.WatchID, r.Revision, r.Created, len(r.Events))
		return nil
	}})
	if err != nil {
		panic(err)
	}
	create := &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}
	if err := stream.Request(ctx, &pb.WatchRequest{RequestUnion: create}); err != nil {
		panic(err)
	}
	fmt.Println(<-sent)
	if _, err := store.Put(&pb.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
		panic(err)
	}
	store.Publish(mvcc.Applied{})
	fmt.Println(<-sent)

	stream.Close()
	<-stream.Done()
	fmt.Println("stopped:", edge.Stop(ctx))
	// Output:
	// watch 0 at revision 1: created true, 0 events
	// watch 0 at revision 2: created false, 1 events
	// stopped: <nil>
}
