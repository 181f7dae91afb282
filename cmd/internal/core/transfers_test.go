package core

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestTransfers: transfers in progress are listed with their recent rate, and reported every
// ten seconds, also while nothing moves, until they end.
func TestTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(Host)
		reported := make(chan Transfer, 10)
		report := func(s Transfer) { reported <- s }
		out, in := transferKey{peer: 7}, transferKey{peer: 3, receiving: true}
		for _, k := range []transferKey{in, out} {
			if !h.transfers.begin(k, report) || h.transfers.begin(k, report) {
				t.Fatalf("%+v: want it begun once", k)
			}
		}
		begun := time.Now()
		progress := h.transfers.progress(out)
		for i := range 8 {
			time.Sleep(time.Second)
			progress(uint64(i+1)*1000, 64000)
		}
		h.transfers.end(in)
		got := h.Transfers()
		want := Transfer{Peer: 7, Bytes: 8000, Size: 64000, Rate: 1000, Since: begun}
		if len(got) != 1 || got[0] != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		time.Sleep(12*time.Second + time.Millisecond)
		if got := h.Transfers()[0].Rate; got < 0 || got > 1 {
			t.Errorf("got a rate of %v after twelve seconds without progress, want 0", got)
		}
		if len(reported) != 2 {
			t.Fatalf("got %d reports in 20 s, want 2", len(reported))
		}
		for range 2 {
			if got := <-reported; got.Peer != 7 || got.Bytes != 8000 || got.Since != begun {
				t.Errorf("got the report %+v, want 8000 bytes to 7 since %v", got, begun)
			}
		}
		h.transfers.end(out)
		time.Sleep(time.Minute)
		if len(reported) != 0 || len(h.Transfers()) != 0 {
			t.Errorf("after the end: got %d reports and %+v, want nothing more", len(reported), h.Transfers())
		}
	})
}

// TestBusy: clients write until a second after the last entry that was applied.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		index := uint64(7)
		busy := busyFunc(func() uint64 { return index })
		check := func(when string, want bool) {
			t.Helper()
			if got := busy(); got != want {
				t.Errorf("%s: got busy %v, want %v", when, got, want)
			}
		}
		check("nothing was applied", false)
		index++
		check("an entry was applied", true)
		time.Sleep(busyFor - 1)
		check("almost a second later", true)
		index += 5
		check("more entries were applied", true)
		time.Sleep(busyFor - 1)
		check("almost a second later again", true)
		time.Sleep(time.Nanosecond)
		check("a second later", false)
	})
}
