package leaseactor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/troupe-db/troupe/proto/raftmsg"
)

// TestClientFollowsTheCore: a call that finds no actor, or one that does not lead, is
// attempted again until there is one, the timeout is over or the member stops.
func TestClientFollowsTheCore(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 100)
		box := r.ref.Mailbox
		left := func() (chan raftmsg.Code, time.Time) {
			got := make(chan raftmsg.Code, 1)
			go func() {
				_, code, _ := r.client.Left(context.Background(), 1)
				got <- code
			}()
			synctest.Wait()
			return got, time.Now()
		}
		for name, away := range map[string]func(bool){
			"no core": func(away bool) {
				if r.client.Disconnect(); !away {
					r.client.Connect(box)
				}
			},
			"no leader": func(away bool) {
				if r.term.Store(0); !away {
					r.term.Store(2)
				}
			},
		} {
			away(true)
			got, _ := left()
			away(false)
			if code := <-got; code != raftmsg.Code_OK {
				t.Errorf("%s, and then one: got %v", name, code)
			}
			away(true)
			got, began := left()
			if code, took := <-got, time.Since(began); code != raftmsg.Code_TIMED_OUT || took < r.client.cfg.Timeout {
				t.Errorf("%s: got %v after %v, want %v after %v", name, code, took, raftmsg.Code_TIMED_OUT, r.client.cfg.Timeout)
			}
			away(false)
		}

		r.client.Disconnect()
		if all, code, _ := r.client.List(context.Background()); all != nil || code != raftmsg.Code_STOPPED {
			t.Errorf("a list without a core: got %v, %v", all, code)
		}
		got, _ := left()
		r.stopped.Store(true)
		if code := <-got; code != raftmsg.Code_STOPPED {
			t.Errorf("the member stops: got %v", code)
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if _, _, err := r.client.Renew(ended, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("the caller goes: got %v", err)
		}
	})
}

// TestRenewAfterReadIndex: a lease that is not found is looked for again when all that
// was acknowledged is applied; with Slow, that comes first.
func TestRenewAfterReadIndex(t *testing.T) {
	const ok, none, stopped = raftmsg.Code_OK, raftmsg.Code_LEASE_NOT_FOUND, raftmsg.Code_STOPPED
	for _, tc := range []struct {
		name        string
		slow, alone bool
		granted     bool // by the first renewal
		read        raftmsg.Code
		want        raftmsg.Code
		reads       int
	}{
		{name: "granted", granted: true, want: ok},
		{name: "granted, slow", granted: true, slow: true, want: ok, reads: 1},
		{name: "by an entry that is not applied", want: ok, reads: 1},
		{name: "by an entry that is not applied, slow", slow: true, want: ok, reads: 1},
		{name: "never", alone: true, want: none},
		{name: "no read index", read: stopped, want: stopped, reads: 1},
		{name: "no read index, slow", slow: true, granted: true, read: stopped, want: stopped, reads: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, nil, func(r *rig) {
				reads := 0
				r.client.cfg.Slow, r.client.cfg.Alone = tc.slow, func() bool { return tc.alone }
				r.client.cfg.ReadIndex = func(context.Context) (raftmsg.Code, error) {
					if reads++; !tc.granted && tc.read == ok {
						r.grant(1, 100)
					}
					return tc.read, nil
				}
				if tc.granted {
					r.grant(1, 100)
				}
				ttl, code, err := r.client.Renew(context.Background(), 1)
				if code != tc.want || err != nil || code == ok && ttl != 100 || reads != tc.reads {
					t.Errorf("got %d, %v (%v) after %d reads, want %v after %d", ttl, code, err, reads, tc.want, tc.reads)
				}
			})
		})
	}
}
