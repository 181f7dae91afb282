package snapshot

import (
	"context"
	"time"
)

// A transfer must not make clients wait that write meanwhile. While they do, sender and
// receiver rest after each chunk for restFactor times as long as it took them. So whatever
// bounds the transfer (a processor, the disk, the connection) is free for others most of the
// time; and if it is congested, a chunk takes longer, and so does the rest. A constant rate
// would be too high on one machine and needlessly low on another.
//
// The sender decides, because it leads and knows whether clients write. Its chunks tell the
// receiver, whose disk may be that of another member. The connection buffers some chunks, so
// the rests of the sender do not spare the receiver.

const (
	// restFactor is the length of a rest as a multiple of the work before it.
	restFactor = 2
	// restMax bounds a rest: work that took that long was waiting for something else.
	restMax = time.Second
	// restingMax bounds the time for which a transfer rests at all: dead records occupy
	// the disk of the sender meanwhile, and mvccactor.Holds allows an hour.
	restingMax = 20 * time.Minute
)

// Clock is what a transfer measures and waits with. The zero value is that of the process.
type Clock struct {
	// Now is monotonic, in nanoseconds.
	Now func() int64
	// Sleep waits, or returns the error of ctx if that ends before.
	Sleep func(ctx context.Context, d time.Duration) error
}

// clockBase is some time before every reading of the clock of the process.
var clockBase = time.Now()

func (c Clock) now() int64 {
	if c.Now != nil {
		return c.Now()
	}
	return int64(time.Since(clockBase))
}

// since returns how long ago a reading was.
func (c Clock) since(began int64) time.Duration { return time.Duration(c.now() - began) }

// rest pauses after work that began at a moment.
func (c Clock) rest(ctx context.Context, began int64) error {
	return c.sleep(ctx, min(restFactor*c.since(began), restMax))
}

func (c Clock) sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	if c.Sleep != nil {
		return c.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
