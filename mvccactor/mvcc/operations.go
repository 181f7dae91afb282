package mvcc

import (
	"errors"
	"sync/atomic"
)

// How operations are counted: as etcd's etcd_mvcc_*_total metrics count them, which is
// recorded in cmd/internal/node/testdata/operations.txt.
//
//   - A put or a delete counts once when it is executed, within a transaction or not,
//     whatever the number of keys deleted. Ending a lease deletes each of its keys.
//   - A range counts once when it is read, even if its revision cannot be. So does each
//     lookup of another operation: of a compare, unless one before it failed; of a put or
//     delete for the previous pair; of a compaction. A put within a transaction looks the
//     previous pair up twice: to check, and to execute.
//   - A unit of more than one operation counts as a transaction. The compares and checks
//     of a transaction that may write are one unit, and the operations that it executes
//     another. Anything else is one unit.
//
// The writer counts in plain integers, which Publish adds to those of Published. Reads add
// to those of Published directly.

// Operations counts the operations executed on the keyspace.
type Operations struct {
	Puts, Deletes, Ranges int64
	Txns                  int64 // units of more than one operation
	PutBytes              int64 // of the keys and values of puts
}

// total is the number of operations. The difference over a unit is its size.
func (o *Operations) total() int64 { return o.Puts + o.Deletes + o.Ranges }

// endUnit ends a unit that began when the total was before.
func (o *Operations) endUnit(before int64) {
	if o.total()-before > 1 {
		o.Txns++
	}
}

// executed reports whether a read that ended with err counts: one that its Reading ended
// does not, because etcd has nothing like it.
func executed(err error) bool {
	return err == nil || errors.Is(err, ErrCompacted) || errors.Is(err, ErrFutureRevision)
}

// operationCounters are Operations that many goroutines add to.
type operationCounters struct {
	// Every read adds to these, and every read loads what may be next to them in memory.
	_ [64]byte

	puts, deletes, ranges, txns, putBytes atomic.Int64
}

func (c *operationCounters) add(o Operations) {
	for _, n := range []struct {
		counter *atomic.Int64
		count   int64
	}{
		{&c.puts, o.Puts}, {&c.deletes, o.Deletes}, {&c.ranges, o.Ranges}, {&c.txns, o.Txns}, {&c.putBytes, o.PutBytes},
	} {
		if n.count != 0 {
			n.counter.Add(n.count)
		}
	}
}

// Operations returns the number of operations since p was created: those of reads, and
// those of the writer up to the last publication.
func (p *Published) Operations() Operations {
	c := &p.operations
	return Operations{
		Puts: c.puts.Load(), Deletes: c.deletes.Load(), Ranges: c.ranges.Load(),
		Txns: c.txns.Load(), PutBytes: c.putBytes.Load(),
	}
}
