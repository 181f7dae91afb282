package catchup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// installMax bounds the random time between the line that announces the installation of a
// snapshot and the kill.
const installMax = 500 * time.Millisecond

// installLine returns what a server logs when it has received a snapshot and begins to
// install it.
func installLine(who servers.Server) string {
	if who.Name == string(tools.Etcd) {
		return "applying snapshot"
	}
	return "rebooting the core to install it"
}

// moment is when a member is killed: some time after its start, or after the line that
// announces the installation.
type moment struct {
	after      time.Duration
	installing bool
}

// nextMoment draws the i-th moment: in turn one within the time that catching up took, and
// one during the installation.
func nextMoment(i int, took time.Duration) moment {
	if i%2 == 1 {
		return moment{rand.N(installMax), true}
	}
	return moment{rand.N(max(took, time.Millisecond)), false}
}

// process is the part of proc.Server that cut uses.
type process interface {
	Restart(ctx context.Context) error
	Kill()
	Expect(text string) <-chan struct{}
}

// cut starts a member and kills it at a moment. late reports that it was ready before, and
// killed then. An error means that it did not come up.
func cut(ctx context.Context, p process, line string, at moment) (late bool, err error) {
	starting, kill := context.WithCancel(ctx)
	defer kill()
	installing := p.Expect(line)
	go func() { // ends with starting
		if at.installing {
			select {
			case <-installing:
			case <-starting.Done():
				return
			}
		}
		if loadgen.Pause(starting, at.after) == nil {
			kill()
		}
	}()
	switch err := p.Restart(starting); {
	case err == nil:
		p.Kill()
		return true, nil
	case ctx.Err() == nil && errors.Is(err, context.Canceled):
		return false, nil // Restart has killed it
	default:
		return false, err
	}
}

// kills lets the member miss as much again, kills it at random moments while it catches up,
// and at last lets it.
func (r *rig) kills(ctx context.Context, s *Sample) (err error) {
	if r.cfg.Kills == 0 {
		return nil
	}
	if err := r.away.Terminate(ctx); err != nil {
		return err
	}
	inStep := true
	for i := range r.cfg.Kills {
		if inStep {
			if _, err := r.fill(ctx); err != nil {
				return err
			}
		}
		at := nextMoment(i, s.Took)
		if inStep, err = cut(ctx, r.away, r.line, at); err != nil {
			return fmt.Errorf("after %d kills the member does not start: %w", i, err)
		}
		s.Kills++
		if inStep {
			s.Late++
		}
	}
	if s.Last, err = r.returns(ctx); err != nil {
		return fmt.Errorf("after %d kills the member does not catch up: %w", s.Kills, err)
	}
	return nil
}
