package simtest

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"
)

// The checks of answers use revisions, of which the members say which are whose. A sample of the
// histories is also checked without them: for each key, is there any order of the calls, each
// between its begin and its end, that explains the answers?

const (
	// recordEvery is of how many seeds one is sampled.
	recordEvery = 20
	// linearMax bounds the search for an order of the calls of a key. It takes long only if
	// many calls were lost.
	linearMax = 2 * time.Second
)

// record is a call for a key.
type record struct {
	key           string
	client        int
	kind          int
	value, expect string
	called, ended int64
	// The answer; known is false if there was none.
	known     bool
	got       string // empty if the key does not exist
	succeeded bool
}

// record records a call that has ended. Without an answer it may have its effect at any time.
func (c *cluster) record(o *op) {
	r := record{key: o.key, client: o.client, kind: o.kind, value: o.value, expect: o.expect, called: o.called, ended: c.w.now, known: o.known}
	if !o.known {
		r.ended = 1<<63 - 1
	}
	switch o.kind {
	case opPut:
	case opDelete:
		r.succeeded = o.found
	case opTxn:
		r.succeeded = o.succeeded
	case opGet:
		if len(o.kvs) > 0 {
			r.got = string(o.kvs[0].Value)
		}
	default:
		return
	}
	if o.refused || !o.known && o.kind == opGet {
		return // it has no effect
	}
	c.records = append(c.records, r)
}

// explains reports whether a call may happen while a key has a value, and the value afterwards.
func (r *record) explains(now string) (bool, string) {
	switch r.kind {
	case opPut:
		return true, r.value
	case opDelete:
		return !r.known || r.succeeded == (now != ""), ""
	case opTxn:
		holds := now == r.expect
		if !holds {
			return !r.known || !r.succeeded, now
		}
		return !r.known || r.succeeded, r.value
	}
	return r.got == now, now
}

// linearizable checks the recorded calls of each key.
func (k *checker) linearizable(records []record) {
	byKey := map[string][]porcupine.Operation{}
	for i := range records {
		r := &records[i]
		byKey[r.key] = append(byKey[r.key], porcupine.Operation{ClientId: r.client, Input: r, Call: r.called, Output: r, Return: r.ended})
	}
	model := porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) { return input.(*record).explains(state.(string)) },
	}
	for i := range k.keys {
		key := fmt.Sprintf("k%d", i)
		switch porcupine.CheckOperationsTimeout(model, byKey[key], linearMax) {
		case porcupine.Illegal:
			k.w.fail("no order of the %d calls of %s explains their answers", len(byKey[key]), key)
		case porcupine.Ok:
			k.w.beacon("a history is linearizable without its revisions")
		}
	}
}
