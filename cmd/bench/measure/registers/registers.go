// Package registers checks that a cluster is linearizable: clients of all members put unique
// values under a few keys and read them, and porcupine searches for an order of the calls.
//
// A call without an answer may take effect at any later time, or never. A read without an
// answer says nothing and is not recorded. A put without an answer whose value no read
// returned is left out of the search, which does not change its result: after all other
// calls it would disturb none of them.
package registers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Sentinel errors of Check.
var (
	// ErrNotLinearizable means that no order of the calls explains what was read.
	ErrNotLinearizable = errors.New("registers: not linearizable")
	// ErrUndecided means that the search did not end in time.
	ErrUndecided = errors.New("registers: the check took too long")
)

const (
	// keys is the number of keys of a load, few enough that calls of all members conflict.
	keys = 4
	// pause is the pause of a client after a call, so that the check is not the main load.
	pause = 2 * time.Millisecond
	// failedPause is the pause after a failed call, so that clients of a member that does
	// not run do not spin.
	failedPause = 50 * time.Millisecond
	// callTimeout is longer than a server's own timeout of a proposal.
	callTimeout = 15 * time.Second
	// callsMax bounds the calls of a client.
	callsMax = 100_000
	// checkTimeout bounds the search of one key, which takes milliseconds.
	checkTimeout = time.Minute
	// never is the return time of a put without an answer.
	never = math.MaxInt64
)

// call is a recorded call.
type call struct {
	client           int
	key              string
	put              bool
	value            string // that was put or read; empty if the key did not exist
	called, returned int64  // ns since the load was started
}

// Result is what a check found.
type Result struct {
	Calls   int // that were answered
	Unknown int // puts without an answer
}

// Add adds the result of another check.
func (r *Result) Add(o Result) {
	r.Calls += o.Calls
	r.Unknown += o.Unknown
}

// Load is running clients, one for each connection. IMPORTANT: the caller must stop it.
type Load struct {
	prefix string
	began  time.Time
	halt   chan struct{} // closed by Stop
	wg     sync.WaitGroup
	all    []record // by client, which owns it until it has ended
}

// record is the calls of one client.
type record struct {
	calls []call
	fails Failures
}

// Failures are the errors of a client's calls.
type Failures struct{ Puts, Gets []error }

// Start starts a client on each connection. No other keys begin with the prefix, not even
// before.
func Start(ctx context.Context, conns []*grpc.ClientConn, prefix string) *Load {
	l := &Load{prefix: prefix, began: time.Now(), halt: make(chan struct{}), all: make([]record, len(conns))}
	for i, conn := range conns {
		l.wg.Go(func() { l.run(ctx, i, pb.NewKVClient(conn)) })
	}
	return l
}

// Stop waits until each client has finished its call.
func (l *Load) Stop() {
	close(l.halt)
	l.wg.Wait()
}

// run makes one call after another until the load is stopped.
func (l *Load) run(ctx context.Context, client int, kv pb.KVClient) {
	for n := range callsMax {
		wait := pause
		if l.call(ctx, client, n, kv) != nil {
			wait = failedPause
		}
		select {
		case <-time.After(wait):
		case <-l.halt:
			return
		}
	}
}

// call makes the n-th call of a client and records it.
func (l *Load) call(ctx context.Context, client, n int, kv pb.KVClient) error {
	c := call{client: client, key: l.key(rand.IntN(keys)), put: rand.IntN(2) == 0, returned: never}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	c.called = int64(time.Since(l.began))
	if c.put {
		c.value = fmt.Sprintf("%d.%d", client, n)
		_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte(c.key), Value: []byte(c.value)})
	} else {
		c.value, err = read(ctx, kv, c.key)
	}
	if err == nil {
		c.returned = int64(time.Since(l.began))
	}
	own := &l.all[client]
	if err == nil || c.put {
		own.calls = append(own.calls, c)
	}
	switch {
	case err != nil && c.put:
		own.fails.Puts = append(own.fails.Puts, err)
	case err != nil:
		own.fails.Gets = append(own.fails.Gets, err)
	}
	return err
}

// Failures returns the errors of a client, given the index of its connection. The load must
// have stopped.
func (l *Load) Failures(client int) Failures { return l.all[client].fails }

func (l *Load) key(i int) string { return fmt.Sprintf("%s%d", l.prefix, i) }

// read returns the value of a key; empty if it does not exist.
func read(ctx context.Context, kv pb.KVClient, key string) (string, error) {
	resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	return string(resp.Kvs[0].Value), nil
}

// Check reads all keys through each connection and checks all calls. The load must have
// stopped, and the members behind the connections must answer.
func (l *Load) Check(ctx context.Context, conns []*grpc.ClientConn) (Result, error) {
	var calls []call
	for _, own := range l.all {
		calls = append(calls, own.calls...)
	}
	for i, conn := range conns {
		for k := range keys {
			c := call{client: len(l.all) + i, key: l.key(k), called: int64(time.Since(l.began))}
			var err error
			if c.value, err = read(ctx, pb.NewKVClient(conn), c.key); err != nil {
				return Result{}, fmt.Errorf("registers: read %s: %w", c.key, err)
			}
			c.returned = int64(time.Since(l.began))
			calls = append(calls, c)
		}
	}
	return check(calls)
}

// model is a register. Its state is the value; empty before the first put.
var model = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		c := input.(call)
		if c.put {
			return true, c.value
		}
		return c.value == state.(string), state
	},
}

// check searches for an order of the calls, key by key.
func check(calls []call) (Result, error) {
	var r Result
	seen := map[string]bool{} // values that were read
	for _, c := range calls {
		if !c.put {
			seen[c.value] = true
		}
	}
	histories := map[string][]porcupine.Operation{}
	for _, c := range calls {
		if c.returned != never {
			r.Calls++
		} else if r.Unknown++; !seen[c.value] {
			continue
		}
		histories[c.key] = append(histories[c.key], porcupine.Operation{ClientId: c.client, Input: c, Call: c.called, Return: c.returned})
	}
	for key, history := range histories {
		switch porcupine.CheckOperationsTimeout(model, history, checkTimeout) {
		case porcupine.Illegal:
			return Result{}, fmt.Errorf("%w: %s\n%s", ErrNotLinearizable, key, explain(history))
		case porcupine.Unknown:
			return Result{}, fmt.Errorf("%w: %s, %d calls", ErrUndecided, key, len(history))
		}
	}
	return r, nil
}

// explainMax is the most calls in an explanation.
const explainMax = 20

// explain lists the calls in order of time around the first one that has no place in the
// longest order that was found.
func explain(history []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(model, history, checkTimeout)
	placed := map[int]bool{}
	longest := 0
	for _, partial := range info.PartialLinearizations()[0] {
		if len(partial) > longest {
			longest = len(partial)
			clear(placed)
			for _, i := range partial {
				placed[i] = true
			}
		}
	}
	order := make([]int, len(history))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return int(history[a].Call - history[b].Call) })
	first := max(0, slices.IndexFunc(order, func(i int) bool { return !placed[i] })-explainMax/2)
	var text []byte
	for _, i := range order[first:min(len(order), first+explainMax)] {
		mark := ' '
		if !placed[i] {
			mark = '?'
		}
		text = fmt.Appendf(text, "%c %v\n", mark, history[i].Input)
	}
	return string(text)
}

// String describes the call for a failure.
func (c call) String() string {
	what, until := "get", fmt.Sprint("to ", time.Duration(c.returned))
	if c.put {
		what = "put"
	}
	if c.returned == never {
		until = "without an answer"
	}
	return fmt.Sprintf("client %d: %s %q at %v %s", c.client, what, c.value, time.Duration(c.called), until)
}
