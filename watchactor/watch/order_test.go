package watch

import (
	"fmt"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
)

// The order of what leaves this package must depend on its input alone, so that a
// simulation can be repeated. The tests compare many runs of the same calls: the order of
// a map would differ between them.

const runs = 30

// sameOrder fails the test if fn does not always return the same.
func sameOrder(t *testing.T, fn func() []string) {
	t.Helper()
	want := fn()
	if len(want) < 3 {
		t.Fatalf("got %q, want at least three, to have an order", want)
	}
	for range runs {
		if got := fn(); !slices.Equal(got, want) {
			t.Fatalf("got the orders %q and %q, want the same", got, want)
		}
	}
}

// watching returns a table with watchers of eight ranges, from a start revision on.
func watching(start int64) *Table {
	table := NewTable()
	for i := range 8 {
		key := []byte{'a' + byte(i)}
		table.Create(&pb.WatchCreateRequest{Key: key, StartRevision: start, ProgressNotify: true}, 9)
	}
	return table
}

func ranges(m *watchmsg.Subscribe) (keys []string) {
	for _, r := range m.Add {
		keys = append(keys, string(r.Key))
	}
	return keys
}

func discard(*Response) error { return nil }

// collector returns a function that appends the ids of responses to ids.
func collector(ids *[]string) Emit {
	return func(r *Response) error {
		*ids = append(*ids, fmt.Sprint(r.WatchID))
		return nil
	}
}

func TestOrderOfRenewal(t *testing.T) {
	sameOrder(t, func() []string {
		table := watching(0)
		table.Subscribe()
		table.Renewed(9, false)
		return ranges(table.Subscribe())
	})
}

func TestOrderOfLoss(t *testing.T) {
	sameOrder(t, func() (groups []string) {
		table := watching(0)
		table.Subscribe()
		if err := table.Joined(9, discard); err != nil {
			t.Fatal(err)
		}
		table.Lost(9)
		for _, g := range table.lag.groups {
			groups = append(groups, g.Key)
		}
		return groups
	})
}

func TestOrderOfProgress(t *testing.T) {
	sameOrder(t, func() (ids []string) {
		table := watching(0)
		table.Subscribe()
		if err := table.Joined(9, discard); err != nil {
			t.Fatal(err)
		}
		table.Tick()
		table.Tick()
		table.Subscribe()
		if err := table.Joined(9, collector(&ids)); err != nil {
			t.Fatal(err)
		}
		return ids
	})
}

func TestOrderOfCancellation(t *testing.T) {
	sameOrder(t, func() (ids []string) {
		if err := watching(1).Compacted(5, 9, collector(&ids)); err != nil {
			t.Fatal(err)
		}
		return ids
	})
}

// TestOrderOfEvents: streams with overlapping ranges, of which one has left that had two
// subscriptions to the same range.
func TestOrderOfEvents(t *testing.T) {
	sameOrder(t, func() (posts []string) {
		f := NewFanout()
		all := func(stream uint64, id uint32, prev bool) {
			f.Add(stream, &watchmsg.Range{Id: id, Key: []byte("a"), End: []byte("\x00"), PrevKv: prev})
		}
		all(1, 1, false)
		all(1, 2, true)
		for stream := uint64(2); stream < 5; stream++ {
			all(stream, 1, false)
			f.Add(stream, &watchmsg.Range{Id: 2, Key: []byte("a"), End: []byte(fmt.Sprint("z", stream))})
		}
		f.RemoveStream(1)
		e := mvcc.Event{Revision: mvcc.Revision{Main: 7}, Record: marshal(t, &mvccpb.KeyValue{Key: []byte("b"), ModRevision: 7})}
		if _, err := f.Match(e, nil); err != nil {
			t.Fatal(err)
		}
		f.Flush(9, func(stream uint64, m *watchmsg.Matched) {
			for _, hit := range m.Hits {
				posts = append(posts, fmt.Sprint(stream, "/", hit.Range))
			}
		})
		return posts
	})
}
