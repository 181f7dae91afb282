package logins

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Kind is a kind of storm.
type Kind string

// The kinds of storms.
const (
	// Right is a crowd that logs in after a restart of the server, which knows no password then.
	// A client that is refused tries again.
	Right Kind = "right"
	// Wrong is a crowd that tries wrong passwords again and again.
	Wrong Kind = "wrong"
)

const (
	// retryMin and retryMax bound the pause of a client before it tries again.
	retryMin, retryMax = 50 * time.Millisecond, 500 * time.Millisecond
	// stormRest is the time after a storm until its memory is read.
	stormRest = 5 * time.Second
)

// Storm has the results of a storm.
type Storm struct {
	Kind          Kind
	In            int           // clients that have logged in
	Took          time.Duration // of all of them, or of the storm
	Attempts      int64
	Busy          int64 // attempts that were refused, because too many were waiting
	Refused       int64 // attempts that were refused because of the password
	Failed        int64 // other attempts, such as those without a connection
	LastError     error // of these
	Before, Puts  loadgen.Window
	Idle          proc.Memory // before
	Peak, Resting proc.Memory // meanwhile, and afterwards
}

// measureStorm restarts the server and measures a storm.
func measureStorm(ctx context.Context, cfg Config, server *proc.Server, kind Kind) (s Storm, err error) {
	s.Kind = kind
	server.Kill() // etcd does not stop before it has computed all hashes that are asked for
	if err := server.Restart(ctx); err != nil {
		return s, err
	}
	w, err := startWriter(ctx, cfg, server.Endpoint())
	if err != nil {
		return s, err
	}
	defer w.stop()
	if err := loadgen.Pause(ctx, warmup); err != nil {
		return s, err
	}
	w.Cut()
	if err := loadgen.Pause(ctx, cfg.Window); err != nil {
		return s, err
	}
	if s.Before, err = w.flush(ctx); err != nil {
		return s, err
	}
	if s.Idle, err = server.Memory(); err != nil {
		return s, err
	}
	memory := server.WatchMemory()
	defer memory.Stop()
	if err := s.run(ctx, cfg, server.Endpoint()); err != nil {
		return s, err
	}
	if s.Puts, err = w.flush(ctx); err != nil {
		return s, err
	}
	if s.Peak, err = memory.Cut(); err != nil {
		return s, err
	}
	if err := loadgen.Pause(ctx, stormRest); err != nil {
		return s, err
	}
	s.Resting, err = server.Memory()
	return s, err
}

// run runs the clients: until all have logged in, or with wrong passwords for as long as a
// window.
func (s *Storm) run(ctx context.Context, cfg Config, endpoint string) error {
	pool, err := loadgen.Dial(endpoint, cfg.Crowd, cfg.dialOptions()...)
	if err != nil {
		return err
	}
	length := cfg.Limit
	if s.Kind == Wrong {
		length = cfg.Window
	}
	storm, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	began := time.Now()
	var crowd sync.WaitGroup
	var in, attempts, busy, refused, failed atomic.Int64
	var lastError atomic.Pointer[error]
	for i, cc := range pool {
		name := userName(i % cfg.Users)
		text := password(name)
		if s.Kind == Wrong {
			text = fmt.Sprint("wrong password ", i) // another one for each, so that each is compared
		}
		crowd.Go(func() {
			for storm.Err() == nil {
				_, err := logIn(storm, loginTimeout, cc, name, text)
				attempts.Add(1)
				switch {
				case err == nil:
					in.Add(1)
					return
				case errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyRequests):
					busy.Add(1)
				case errors.Is(rpctypes.Error(err), rpctypes.ErrAuthFailed):
					refused.Add(1)
				case storm.Err() == nil:
					failed.Add(1)
					lastError.Store(&err)
				}
				_ = loadgen.Pause(storm, retryMin+rand.N(retryMax-retryMin)) // the loop ends then
			}
		})
	}
	crowd.Wait()
	s.In, s.Took = int(in.Load()), time.Since(began)
	s.Attempts, s.Busy, s.Refused, s.Failed = attempts.Load(), busy.Load(), refused.Load(), failed.Load()
	if err := lastError.Load(); err != nil {
		s.LastError = *err
	}
	return errors.Join(ctx.Err(), pool.Close())
}
