package core

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDisk has room or not.
type fakeDisk struct {
	Disk
	room atomic.Bool
}

func (d *fakeDisk) Room(int64) bool { return d.room.Load() }

// TestKeepLogEnds: while a member waits for a snapshot that replaces its store, its log keeps
// all entries, but only as long as the disk has room for them.
func TestKeepLogEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{}
		d.room.Store(true)
		h := &Host{cfg: Config{Disk: d}}
		h.keepLog.Store(true)
		if !h.transfers.begin(transferKey{peer: 7, receiving: true}, func(Transfer) {}) {
			t.Fatal("the transfer was not begun")
		}
		ended := make(chan error, 1)
		go func() { ended <- h.awaitTransfer(t.Context(), 7, func() bool { return false }) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if !h.keepLog.Load() {
			t.Error("the log is not kept, although there is room")
		}
		d.room.Store(false)
		time.Sleep(2 * repairPoll)
		synctest.Wait()
		if h.keepLog.Load() {
			t.Error("the log is kept without room for it")
		}
		h.transfers.end(transferKey{peer: 7, receiving: true})
		if err := <-ended; !errors.Is(err, errTransfer) {
			t.Errorf("got %v when the transfer ended, want %v", err, errTransfer)
		}
	})
}
