package actors_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// The tests of the core supervisor run an incarnation of three small stages under fake time and
// compare the journal of events with the expected order.

// coreRig is a core whose stages write a journal. A stage panics on a string or an error,
// blocks on a chan struct{}, and stops itself on "leave".
type coreRig struct {
	t    *testing.T
	sys  *actor.ActorSystem
	core *actors.Core
	cfg  actors.CoreConfig
	reg  *actors.Registry

	mu      sync.Mutex
	journal []string
	boxes   map[string]*actors.Mailbox
	gaveUp  []error
	bootErr error
	haltErr error
	rejects int
	faults  *actors.Faults
	stages  []*rigStage // of all incarnations
}

func (c *coreRig) log(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.journal = append(c.journal, fmt.Sprintf(format, args...))
}

func (c *coreRig) entries() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.journal, " ")
}

func (c *coreRig) box(name string) *actors.Mailbox {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boxes[name]
}

func (c *coreRig) post(name string, msg any) {
	c.t.Helper()
	if err := c.box(name).TryPost(0, msg, one); err != nil {
		c.t.Fatalf("post to %s: %v", name, err)
	}
	synctest.Wait()
}

var rigNames = []string{actors.CoreProposer, actors.CoreRaft, actors.CoreWAL}

func (c *coreRig) boot(epoch uint64) (*actors.Incarnation, error) {
	c.log("boot%d", epoch)
	if c.bootErr != nil {
		return nil, c.bootErr
	}
	incarnation := &actors.Incarnation{
		Started: func() { c.log("started%d", epoch) },
		Halt:    func() error { c.log("halt%d", epoch); return c.haltErr },
	}
	for _, name := range rigNames {
		ctx, cancel := context.WithCancel(context.Background())
		box := actors.NewMailbox(actors.MailboxConfig{
			Name: name, Class: actors.Credit, Limit: actors.Limit{Requests: 10, Bytes: 1000}, Faults: c.faults,
			OnReject: func(any, error) { c.mu.Lock(); c.rejects++; c.mu.Unlock() },
		})
		c.mu.Lock()
		c.boxes[name] = box
		c.mu.Unlock()
		stage := &rigStage{rig: c, name: strings.TrimPrefix(name, "core/"), path: name, epoch: epoch, ctx: ctx, box: box}
		c.stages = append(c.stages, stage)
		incarnation.Stages = append(incarnation.Stages, actors.Stage{Name: name, Mailbox: box, Cancel: cancel, Actor: stage})
	}
	return incarnation, nil
}

type rigStage struct {
	rig        *coreRig
	name, path string
	epoch      uint64
	ctx        context.Context
	box        *actors.Mailbox
	handled    []any // owned by the stage's goroutine
}

func (s *rigStage) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Stopped:
		s.rig.log("%s.stopped%d", s.name, s.epoch)
	case *actors.Batch:
		for ; m.Done < len(m.Msgs); m.Done++ {
			s.rig.faults.Point(s.path, "handle")
			s.handle(ctx, m.Msgs[m.Done])
		}
	}
}

func (s *rigStage) handle(ctx actor.Context, msg any) {
	s.handled = append(s.handled, msg)
	switch msg := msg.(type) {
	case int:
		s.rig.log("%s:%d", s.name, msg)
	case chan struct{}:
		select {
		case <-msg:
		case <-s.ctx.Done():
		}
	case time.Duration:
		time.Sleep(msg)
	case string:
		if msg == "leave" {
			ctx.Stop(ctx.Self())
			return
		}
		panic(msg)
	case error:
		panic(msg)
	}
}

// withCore runs f in a bubble on a booted core.
func withCore(t *testing.T, change func(*actors.CoreConfig), f func(*coreRig)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoreRig(t)
		if change != nil {
			change(&c.cfg)
		}
		var err error
		c.core, err = actors.StartCore(c.sys, c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		f(c)
		_ = c.core.Stop(context.Background())
	})
}

func newCoreRig(t *testing.T) *coreRig {
	c := &coreRig{t: t, sys: actorstest.NewSystem(t), boxes: map[string]*actors.Mailbox{}, reg: actors.NewRegistry()}
	c.cfg = actors.CoreConfig{
		Boot: c.boot, Registry: c.reg,
		GiveUp: func(reason error) {
			c.mu.Lock()
			c.gaveUp = append(c.gaveUp, reason)
			c.mu.Unlock()
			c.log("giveup")
		},
		OnReboot: func(epoch uint64, f actors.Failure) { c.log("reboot%d", epoch) },
	}
	return c
}

func (c *coreRig) wantGiveUp(target error) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gaveUp) != 1 || !errors.Is(c.gaveUp[0], target) {
		c.t.Errorf("gave up with %v, want %v", c.gaveUp, target)
	}
}

func (c *coreRig) wantJournal(want string) {
	c.t.Helper()
	if got := c.entries(); got != want {
		c.t.Errorf("journal\n got %s\nwant %s", got, want)
	}
}

func TestCoreRebootsWhenEverybodyIsGone(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		blocked := make(chan struct{}) // never closed: only Cancel frees the stage
		c.post(actors.CoreProposer, blocked)
		c.post(actors.CoreProposer, 7) // queued behind, to be rejected
		old := c.box(actors.CoreWAL)
		c.post(actors.CoreWAL, "boom")
		got := strings.Fields(c.entries())
		// The order of the three stops is arbitrary; that of the rest is not.
		if len(got) != 9 {
			t.Fatalf("journal %v", got)
		}
		stops := slices.Sorted(slices.Values(got[2:5]))
		want := "boot1 started1 proposer.stopped1 raft.stopped1 wal.stopped1 halt1 reboot2 boot2 started2"
		if s := strings.Join(slices.Concat(got[:2], stops, got[5:]), " "); s != want {
			t.Errorf("journal\n got %s\nwant %s", s, want)
		}
		wantErr(t, old.TryPost(0, 1, one), actors.ErrClosed)
		f, ok := c.core.LastFailure()
		if !ok || f.Stage != actors.CoreWAL || f.Reason != "boom" || f.Message != "boom" || f.Epoch != 1 || !strings.Contains(string(f.Stack), "rigStage") {
			t.Errorf("failure %+v", f)
		}
		if c.core.Epoch() != 2 || c.core.Restarts() != 1 || c.rejects != 2 {
			t.Errorf("epoch %d, restarts %d, rejects %d", c.core.Epoch(), c.core.Restarts(), c.rejects)
		}
		c.post(actors.CoreRaft, 5) // the new epoch works
		if !strings.HasSuffix(c.entries(), "raft:5") {
			t.Errorf("journal %s", c.entries())
		}
	})
}

// TestCoreDeliversNothingStale: after a reboot, every way of posting to a mailbox of the
// earlier incarnation is refused, and nothing that a ticker, a timer or a blocked sender of
// that incarnation posts reaches a stage of the new one.
func TestCoreDeliversNothingStale(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		const interval = 100 * time.Millisecond
		old := slices.Clone(c.stages)
		var late []error // of the posts of timers
		for _, s := range old {
			// What an actor leaves behind that forgets to stop it, and more than that.
			periodic := actors.StartTicker(s.box, 0, interval, nil)
			defer periodic.Stop()
			once := actors.NewTicker(s.box, 0, time.Minute)
			once.Arm()
			defer once.Stop()
			time.AfterFunc(time.Second, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				late = append(late, s.box.TryPost(0, "stale timer", one))
			})
		}
		busy := c.box(actors.CoreProposer)
		c.post(actors.CoreProposer, make(chan struct{})) // until cancelled
		for range 10 {
			c.post(actors.CoreProposer, "stale message in a queue")
		}
		blocked := make(chan error, 1)
		go func() { blocked <- busy.Post(context.Background(), 0, "stale blocked message", one) }()
		synctest.Wait()

		c.post(actors.CoreWAL, "boom")
		wantErr(t, <-blocked, actors.ErrClosed)
		c.rejects = 0
		for _, s := range old {
			if now := c.box(s.path); now == s.box {
				t.Errorf("%s has the mailbox of the earlier incarnation, want a new one", s.path)
			}
			wantErr(t, s.box.TryPost(0, "stale", one), actors.ErrClosed)
			wantErr(t, s.box.Post(context.Background(), 0, "stale", one), actors.ErrClosed)
			s.box.MustPost(0, "stale", one)
			s.box.MustPostDeferrable(0, "stale", one)
			s.box.MustPostReserved(0, "stale")
			s.box.MustPostWait(context.Background(), 0, "stale", one)
		}
		if want := 3 * len(old); c.rejects != want {
			t.Errorf("got %d messages in OnReject, want %d", c.rejects, want)
		}
		time.Sleep(2 * time.Minute) // the tickers and timers fire
		synctest.Wait()
		for _, err := range late {
			wantErr(t, err, actors.ErrClosed)
		}
		if len(late) != len(old) {
			t.Errorf("got %d posts of timers, want %d", len(late), len(old))
		}
		for _, s := range c.stages[len(old):] {
			c.post(s.path, 5)
			if s.epoch != 2 || len(s.handled) != 1 || s.handled[0] != 5 {
				t.Errorf("%s of epoch %d handled %v, want only what was posted to it", s.path, s.epoch, s.handled)
			}
		}
	})
}

// TestCoreRefusesAUsedMailbox: an incarnation that is wired with a mailbox of an earlier one,
// which might hold its messages, does not start.
func TestCoreRefusesAUsedMailbox(t *testing.T) {
	withCore(t, func(cfg *actors.CoreConfig) {
		boot, used := cfg.Boot, actors.Stage{}
		cfg.Boot = func(epoch uint64) (*actors.Incarnation, error) {
			incarnation, err := boot(epoch)
			if epoch == 1 {
				used = incarnation.Stages[1]
			}
			incarnation.Stages[1].Mailbox = used.Mailbox
			return incarnation, err
		}
	}, func(c *coreRig) {
		c.post(actors.CoreWAL, "boom")
		if len(c.gaveUp) != 1 || !strings.Contains(c.gaveUp[0].Error(), "core/raft serves a second actor") {
			t.Errorf("gave up with %v, want the mailbox that serves a second actor", c.gaveUp)
		}
	})
}

func TestCoreVanishedStageIsAFailure(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		c.post(actors.CoreRaft, "leave")
		f, _ := c.core.LastFailure()
		if c.core.Epoch() != 2 || f.Stage != actors.CoreRaft {
			t.Errorf("epoch %d, failure %v", c.core.Epoch(), f)
		}
		wantErr(t, f, actors.ErrVanished)
	})
}

func TestCoreGivesUpAfterTooManyReboots(t *testing.T) {
	withCore(t, func(cfg *actors.CoreConfig) { cfg.Limit = 2; cfg.Window = time.Minute }, func(c *coreRig) {
		c.post(actors.CoreWAL, "1")
		time.Sleep(50 * time.Second)
		c.post(actors.CoreWAL, "2")
		time.Sleep(20 * time.Second) // the first reboot is out of the window
		c.post(actors.CoreWAL, "3")
		if len(c.gaveUp) != 0 || c.core.Epoch() != 4 {
			t.Fatalf("gave up %v in epoch %d", c.gaveUp, c.core.Epoch())
		}
		c.post(actors.CoreWAL, "4")
		c.wantGiveUp(actors.ErrTooManyReboots)
		<-c.core.Done()
		wantErr(t, c.core.Stop(context.Background()), actors.ErrTooManyReboots)
		if !strings.HasSuffix(c.entries(), "halt4") || strings.Contains(c.entries(), "boot5") {
			t.Errorf("journal %s", c.entries())
		}
	})
}

var errFsync = errors.New("fsync failed")

func TestCoreClassifyGivesUpAtOnce(t *testing.T) {
	classify := func(cfg *actors.CoreConfig) {
		cfg.Classify = func(f actors.Failure) error {
			if errors.Is(f, errFsync) {
				return f
			}
			return nil
		}
	}
	withCore(t, classify, func(c *coreRig) {
		c.post(actors.CoreWAL, "harmless")
		c.post(actors.CoreWAL, fmt.Errorf("wal: %w", errFsync))
		c.wantGiveUp(errFsync)
		if !strings.Contains(c.entries(), "started2 giveup") {
			t.Errorf("did not give up before stopping the others: %s", c.entries())
		}
	})
}

func TestCoreGivesUpWhenBootOrHaltFail(t *testing.T) {
	broken := errors.New("broken")
	withCore(t, nil, func(c *coreRig) {
		c.bootErr = broken
		c.post(actors.CoreWAL, "x")
		c.wantGiveUp(broken)
	})
	withCore(t, nil, func(c *coreRig) {
		c.haltErr = broken
		c.post(actors.CoreWAL, "x")
		c.wantGiveUp(broken)
		if strings.Contains(c.entries(), "boot2") {
			t.Errorf("booted over open files: %s", c.entries())
		}
	})
	withCore(t, func(cfg *actors.CoreConfig) {
		boot := cfg.Boot
		cfg.Boot = func(epoch uint64) (*actors.Incarnation, error) {
			if epoch == 2 {
				panic(broken)
			}
			return boot(epoch)
		}
	}, func(c *coreRig) {
		c.post(actors.CoreWAL, "x")
		c.wantGiveUp(broken)
	})
	withCore(t, func(cfg *actors.CoreConfig) {
		cfg.OnReboot = func(uint64, actors.Failure) { panic(broken) }
	}, func(c *coreRig) {
		c.post(actors.CoreWAL, "x")
		c.wantGiveUp(broken)
	})
}

func TestStartCoreReturnsTheFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoreRig(t)
		c.bootErr = errors.New("no disk")
		_, err := actors.StartCore(c.sys, c.cfg)
		wantErr(t, err, c.bootErr)
		c.wantJournal("boot1")
	})
	synctest.Test(t, func(t *testing.T) {
		c := newCoreRig(t)
		boot := c.cfg.Boot
		c.cfg.Boot = func(epoch uint64) (*actors.Incarnation, error) {
			incarnation, err := boot(epoch)
			incarnation.Stages[2].Name = "elsewhere"
			return incarnation, err
		}
		_, err := actors.StartCore(c.sys, c.cfg)
		if err == nil || !strings.HasSuffix(c.entries(), "halt1") || strings.Contains(c.entries(), "giveup") {
			t.Errorf("error %v, journal %s", err, c.entries())
		}
		wantErr(t, c.box(actors.CoreWAL).TryPost(0, 1, one), actors.ErrClosed)
	})
	if _, err := actors.StartCore(nil, actors.CoreConfig{}); err == nil {
		t.Error("accepted a core without Boot")
	}
}

func TestCoreStopDrainsInOrder(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		// wal is busy for a second while raft and proposer have work queued.
		for _, name := range rigNames {
			c.post(name, time.Second)
			c.post(name, 1)
		}
		wantErr(t, c.core.Stop(context.Background()), nil)
		got := c.entries()
		var order []string
		for _, e := range strings.Fields(got) {
			if strings.Contains(e, "stopped") || e == "halt1" {
				order = append(order, e)
			}
		}
		if want := "proposer.stopped1 raft.stopped1 wal.stopped1 halt1"; strings.Join(order, " ") != want {
			t.Errorf("order %v, want %s", order, want)
		}
		for _, want := range []string{"proposer:1", "raft:1", "wal:1"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s was not delivered: %s", want, got)
			}
		}
		wantErr(t, c.core.Stop(context.Background()), nil) // stopping again has no effect
	})
}

func TestCoreStopCutsTheDrainShort(t *testing.T) {
	withCore(t, func(cfg *actors.CoreConfig) { cfg.DrainTimeout = 2 * time.Second }, func(c *coreRig) {
		c.post(actors.CoreRaft, make(chan struct{})) // until cancelled
		begin := time.Now()
		wantErr(t, c.core.Stop(context.Background()), nil)
		if d := time.Since(begin); d != 2*time.Second || !strings.HasSuffix(c.entries(), "halt1") {
			t.Errorf("took %v: %s", d, c.entries())
		}
	})
}

func TestCoreStopReportsAFailureOnTheWay(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		c.post(actors.CoreRaft, time.Second)
		c.post(actors.CoreRaft, errFsync)
		wantErr(t, c.core.Stop(context.Background()), errFsync)
		if strings.Contains(c.entries(), "boot2") || !strings.HasSuffix(c.entries(), "halt1") {
			t.Errorf("journal %s", c.entries())
		}
	})
}

func TestCoreStuckStage(t *testing.T) {
	stuck := func(cfg *actors.CoreConfig) { cfg.StopTimeout = 3 * time.Second; cfg.DrainTimeout = time.Second }
	withCore(t, stuck, func(c *coreRig) {
		c.post(actors.CoreRaft, time.Minute)
		c.post(actors.CoreWAL, "boom")
		time.Sleep(4 * time.Second)
		synctest.Wait()
		c.wantGiveUp(actors.ErrStuck)
		if strings.Contains(c.entries(), "halt") {
			t.Error("files closed under a running stage")
		}
		time.Sleep(time.Minute)
	})
	withCore(t, stuck, func(c *coreRig) {
		c.post(actors.CoreRaft, time.Minute)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
		defer cancel()
		wantErr(t, c.core.Stop(ctx), context.DeadlineExceeded)
		wantErr(t, c.core.Stop(context.Background()), actors.ErrStuck)
		time.Sleep(time.Minute)
	})
}

// TestCorePlannedReboot: a planned reboot boots a new incarnation as often as it is asked for,
// and is no failure. It is ignored while the core stops.
func TestCorePlannedReboot(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		const times = actors.DefaultReboots + 2
		for range times {
			c.core.Reboot(errors.New("a snapshot was received"))
			synctest.Wait()
		}
		if c.core.Epoch() != times+1 || c.core.Restarts() != 0 {
			t.Errorf("got epoch %d, restarts %d, want %d and 0", c.core.Epoch(), c.core.Restarts(), times+1)
		}
		if f, ok := c.core.LastFailure(); ok {
			t.Errorf("got failure %v, want none", f)
		}
		c.post(actors.CoreRaft, 5)
		if !strings.HasSuffix(c.entries(), "raft:5") {
			t.Errorf("journal %s, want the last incarnation to work", c.entries())
		}
		wantErr(t, c.core.Stop(context.Background()), nil)
		c.core.Reboot(errors.New("late"))
		synctest.Wait()
		if c.core.Epoch() != times+1 {
			t.Errorf("got epoch %d after the stop, want %d", c.core.Epoch(), times+1)
		}
	})
}

func TestCoreStopDuringReboot(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		c.post(actors.CoreRaft, time.Second) // delays its stop
		c.post(actors.CoreWAL, "boom")
		wantErr(t, c.core.Stop(context.Background()), nil)
		if strings.Contains(c.entries(), "boot2") || !strings.HasSuffix(c.entries(), "halt1") {
			t.Errorf("journal %s", c.entries())
		}
	})
}

func TestRegistrySurvivesReboots(t *testing.T) {
	withCore(t, nil, func(c *coreRig) {
		c.reg.Observe(c.sys)
		for i := range 5 {
			c.post(actors.CoreWAL, i)
		}
		c.post(actors.CoreWAL, 10*time.Millisecond)
		time.Sleep(20 * time.Millisecond)
		c.post(actors.CoreWAL, "boom")
		c.post(actors.CoreWAL, 9)
		c.sys.Root.Send(c.sys.NewLocalPID("nobody"), "lost")
		s := c.reg.Snapshot()
		if s.Epoch != 2 || s.Reboots != 1 || s.DeadLetters != 1 || len(s.Mailboxes) != 3 {
			t.Fatalf("snapshot %+v", s)
		}
		w := wal(s)
		if w.Name != actors.CoreWAL || w.Class != "credit" || w.Enqueued != 8 || w.Dequeued != 8 || w.Batches != 8 ||
			w.Restarts != 1 || w.LastPanic != "panic: boom" || w.LastPanicStack == "" || w.LastPanicAt == nil ||
			w.LimitRequests != 10 || w.HighWaterRequests != 1 || w.HighWaterBytes != 10 || len(w.Lanes) != 1 || w.Lanes[0].Enqueued != 8 {
			t.Errorf("wal %+v", w)
		}
		if w.ServiceTotalP99 < 9_000 || w.ServiceTotalP99 > 11_000 {
			t.Errorf("service p99 %v µs, want 10 ms from the first epoch", w.ServiceTotalP99)
		}
	})
}

// wal returns the WAL's entry in a snapshot.
func wal(s actors.Snapshot) actors.MailboxSnapshot {
	i := slices.IndexFunc(s.Mailboxes, func(m actors.MailboxSnapshot) bool { return m.Name == actors.CoreWAL })
	return s.Mailboxes[i]
}

func TestSlowestStageAndFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoreRig(t)
		c.faults = actors.NewFaults()
		var err error
		c.core, err = actors.StartCore(c.sys, c.cfg)
		wantErr(t, err, nil)
		c.faults.Delay(actors.CoreRaft, 3*time.Millisecond)
		// Not a stage of the core, so it cannot be the slowest one.
		edge := box(actors.Lossy, 5, func(cfg *actors.MailboxConfig) { cfg.Name = actors.EdgeHash })
		c.reg.Add(edge)
		spawnBox(t, c.sys, edge, onBatch(func(actor.Context, *actors.Batch) { time.Sleep(time.Second) }))
		wantErr(t, edge.TryPost(0, 1, one), nil)
		time.Sleep(2 * time.Second)
		for i := range 10 {
			for _, name := range rigNames {
				c.post(name, i)
			}
			time.Sleep(10 * time.Millisecond)
		}
		s := c.reg.Snapshot()
		if s.SlowestStage != actors.CoreRaft {
			t.Errorf("slowest stage %q", s.SlowestStage)
		}
		for _, m := range s.Mailboxes {
			if m.Name == actors.CoreRaft && (m.ServiceP50 < 2600 || m.ServiceP50 > 3400) {
				t.Errorf("service p50 %v µs, want 3 ms", m.ServiceP50)
			}
		}
		time.Sleep(time.Minute) // out of the window
		if s := c.reg.Snapshot(); s.SlowestStage != "" {
			t.Errorf("slowest stage %q of an idle core", s.SlowestStage)
		}
		c.post(actors.CoreWAL, 5*time.Second)
		time.Sleep(2 * time.Second) // a batch in progress
		if s := c.reg.Snapshot(); s.SlowestStage != actors.CoreWAL || wal(s).BusyMicros != 2e6 {
			t.Errorf("slowest stage %q, busy %v µs", s.SlowestStage, wal(s).BusyMicros)
		}
		time.Sleep(5 * time.Second)
		c.faults.Arm(actors.CoreProposer, "handle", 2)
		c.post(actors.CoreProposer, 1)
		if c.core.Epoch() != 1 {
			t.Fatal("panicked at the first hit")
		}
		c.post(actors.CoreProposer, 2)
		f, _ := c.core.LastFailure()
		if c.core.Epoch() != 2 || f.Reason != (actors.Fault{Stage: actors.CoreProposer, Point: "handle"}) {
			t.Errorf("epoch %d, failure %v", c.core.Epoch(), f)
		}
		c.post(actors.CoreProposer, 3) // once only
		if c.core.Epoch() != 2 {
			t.Error("an armed point panicked twice")
		}
		wantErr(t, c.core.Stop(context.Background()), nil)
	})
}
