// Package ledger records which writes of unique keys were acknowledged, and compares the
// record with the store.
package ledger

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

const (
	// valueBytes is the size of a value.
	valueBytes = 256
	// pageKeys is the number of keys that Compare reads at a time.
	pageKeys = 5000
	// readTimeout is the timeout of one of these reads.
	readTimeout = 15 * time.Second
)

// Writer is the record of one client, which writes every key once. Its methods may be
// called concurrently.
type Writer struct {
	prefix string

	mu    sync.Mutex // guards the rest
	acked []bool     // by number of the write
	last  int        // the last acknowledged write; -1 for none
}

// NewWriter returns the record of a client whose keys begin with prefix, which must be
// no other client's.
func NewWriter(prefix string) *Writer { return &Writer{prefix: prefix, last: -1} }

// Next returns the number of the next write with its request.
func (w *Writer) Next() (int, *pb.PutRequest) {
	w.mu.Lock()
	n := len(w.acked)
	w.acked = append(w.acked, false)
	w.mu.Unlock()
	key := w.key(n)
	return n, &pb.PutRequest{Key: key, Value: value(key)}
}

// Acknowledge records that a write was acknowledged.
func (w *Writer) Acknowledge(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[n], w.last = true, n
}

// Last returns the key of the write that was acknowledged last; nil for none.
func (w *Writer) Last() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last < 0 {
		return nil
	}
	return w.key(w.last)
}

func (w *Writer) key(n int) []byte { return fmt.Appendf(nil, "%s%08d", w.prefix, n) }

// value returns the value of a key: the key, repeated.
func value(key []byte) []byte {
	v := make([]byte, 0, valueBytes+len(key))
	for len(v) < valueBytes {
		v = append(v, key...)
	}
	return v[:valueBytes]
}

// Balance is what became of the writes.
type Balance struct {
	Acknowledged int
	Lost         int // acknowledged writes that are not in the store
	Twice        int // writes that were applied more than once
	Wrong        int // keys with another value than the one written, or that nobody wrote
}

// Add adds another balance.
func (b *Balance) Add(other Balance) {
	b.Acknowledged += other.Acknowledged
	b.Lost += other.Lost
	b.Twice += other.Twice
	b.Wrong += other.Wrong
}

// stored is a key of the store.
type stored struct {
	version int64
	right   bool // it has the value that was written
}

// Compare compares the records with the keys of the store that begin with prefix, which
// must be the beginning of all the writers' keys. All writes must have ended.
func Compare(ctx context.Context, conn grpc.ClientConnInterface, prefix string, writers []*Writer) (Balance, error) {
	store := map[string]stored{}
	kv := pb.NewKVClient(conn)
	end := []byte(prefix)
	end[len(end)-1]++
	for from := []byte(prefix); ; {
		call, cancel := context.WithTimeout(ctx, readTimeout)
		page, err := kv.Range(call, &pb.RangeRequest{Key: from, RangeEnd: end, Limit: pageKeys})
		cancel()
		if err != nil {
			return Balance{}, fmt.Errorf("ledger: read the writes: %w", err)
		}
		for _, p := range page.Kvs {
			store[string(p.Key)] = stored{version: p.Version, right: string(p.Value) == string(value(p.Key))}
		}
		if !page.More || len(page.Kvs) == 0 {
			break
		}
		from = append(slices.Clone(page.Kvs[len(page.Kvs)-1].Key), 0)
	}
	return balance(store, writers), nil
}

// balance compares the records with the store, which it empties.
func balance(store map[string]stored, writers []*Writer) Balance {
	var b Balance
	for _, w := range writers {
		for n, acked := range w.acked {
			key := string(w.key(n))
			found, exists := store[key]
			delete(store, key)
			if acked {
				b.Acknowledged++
				if !exists {
					b.Lost++
				}
			}
			if exists && found.version != 1 {
				b.Twice++
			}
			if exists && !found.right {
				b.Wrong++
			}
		}
	}
	b.Wrong += len(store) // keys that no writer has sent
	return b
}
