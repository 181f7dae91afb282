// Package logins measures what authentication costs the others: puts beside a steady rate of
// clients that log in, and beside thousands that log in all at once.
package logins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Config has the servers, the users and the loads.
type Config struct {
	Servers []servers.Server
	Args    []string // flags for all of them
	TLS     *pki.Files
	Users   int // with a password each
	Puts    int // a second, by one more user

	Logins int           // a second, each as one of the users
	Rounds int           // windows without logins, each followed by one with them
	Window time.Duration // length of each

	Storm []Kind        // of storms
	Crowd int           // clients of a storm, each with a connection of its own
	Limit time.Duration // for all of them to log in

	Dir string
	Out io.Writer
}

const (
	// conns and clients are the connections of the puts, and the most of them in flight;
	// loginConns and loginClients are those of the steady logins.
	conns, clients           = 20, 500
	loginConns, loginClients = 20, 200
	// loadKeys and valueBytes are the number of keys and the size of values of the puts.
	loadKeys, valueBytes = 10_000, 128
	// requestTimeout is the timeout of a put, and of logins that are not measured.
	requestTimeout = 30 * time.Second
	// warmup is the time before the first window, and rest that after a window with logins, in
	// which the server computes what nobody waits for any more.
	warmup, rest = 2 * time.Second, 3 * time.Second
)

func (c Config) validate() error {
	if len(c.Servers) == 0 || c.Users < 1 || c.Puts < 1 || c.Logins < 1 || c.Rounds < 0 || c.Window <= 0 || c.Crowd < 1 || c.Limit <= 0 {
		return errors.New("logins: servers, users, rates, windows and a crowd are needed")
	}
	for _, k := range c.Storm {
		if k != Right && k != Wrong {
			return fmt.Errorf("logins: unknown storm %q: want %s or %s", k, Right, Wrong)
		}
	}
	return nil
}

// dialOptions are those of all clients.
func (c Config) dialOptions() []grpc.DialOption {
	if c.TLS == nil {
		return nil
	}
	return []grpc.DialOption{c.TLS.DialOption()}
}

// Sample has the results of one server.
type Sample struct {
	Rounds []Round
	Storms []Storm
}

// Round is a window without logins, and one with them.
type Round struct {
	Before, During loadgen.Window // of puts
	Logins         loadgen.Window
}

// Run measures the servers and judges those to which the bounds apply.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	samples, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(cfg, samples), nil
}

// run measures the servers one after the other; the samples are in that order.
func run(ctx context.Context, cfg Config) ([]Sample, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := header(cfg); err != nil {
		return nil, err
	}
	var samples []Sample
	for _, who := range cfg.Servers {
		s, err := measure(ctx, cfg, who)
		if err != nil {
			return nil, fmt.Errorf("logins: %s: %w", who.Name, err)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func measure(ctx context.Context, cfg Config, who servers.Server) (s Sample, err error) {
	args := cfg.Args
	if cfg.TLS != nil {
		who.TLS, args = true, append(cfg.TLS.ServerArgs(), args...)
	}
	server, err := who.Start(ctx, cfg.Dir, args...)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if err := addUsers(ctx, cfg, server.Endpoint()); err != nil {
		return s, fmt.Errorf("add users: %w", err)
	}
	if s.Rounds, err = steady(ctx, cfg, who, server); err != nil {
		return s, err
	}
	for _, kind := range cfg.Storm {
		storm, err := measureStorm(ctx, cfg, server, kind)
		if err != nil {
			return s, fmt.Errorf("storm of %s passwords: %w", kind, err)
		}
		if err := stormRow(cfg, who, storm); err != nil {
			return s, err
		}
		s.Storms = append(s.Storms, storm)
	}
	return s, nil
}

// writer is an open loop of puts by a user.
type writer struct {
	loadgen.Paced
	stop func() // waits until all requests have ended
}

// startWriter logs in and starts the puts.
func startWriter(ctx context.Context, cfg Config, endpoint string) (*writer, error) {
	pool, err := loadgen.Dial(endpoint, conns, cfg.dialOptions()...)
	if err != nil {
		return nil, err
	}
	token, err := logIn(ctx, requestTimeout, pool[0], writerName, password(writerName))
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	w := &writer{Paced: loadgen.Paced{Pool: pool, Clients: clients, Rate: cfg.Puts, Op: put(token)}}
	ctx, cancel := context.WithCancel(ctx)
	var pacing sync.WaitGroup
	pacing.Go(func() { w.Run(ctx) })
	w.stop = func() {
		cancel()
		pacing.Wait()
		_ = pool.Close() // nothing is pending
	}
	return w, nil
}

// flush returns the window until now, in which all requests that were sent are answered, unless
// that takes longer than requestTimeout.
func (w *writer) flush(ctx context.Context) (loadgen.Window, error) {
	if err := w.Op(ctx, w.Pool.KV(0)); err != nil {
		return loadgen.Window{}, fmt.Errorf("put: %w", err)
	}
	return w.Cut(), nil
}

// steady measures windows without and with logins.
func steady(ctx context.Context, cfg Config, who servers.Server, server *proc.Server) (rounds []Round, err error) {
	if cfg.Rounds == 0 {
		return nil, nil
	}
	w, err := startWriter(ctx, cfg, server.Endpoint())
	if err != nil {
		return nil, err
	}
	defer w.stop()
	pool, err := loadgen.Dial(server.Endpoint(), loginConns, cfg.dialOptions()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	// Each user logs in once: the servers are measured while they know the passwords.
	err = loadgen.Each(ctx, pool, setupClients, cfg.Users, func(ctx context.Context, _ pb.KVClient, i int) error {
		_, err := logIn(ctx, requestTimeout, pool[i%len(pool)], userName(i), password(userName(i)))
		return err
	})
	if err == nil {
		err = loadgen.Pause(ctx, warmup)
	}
	if err != nil {
		return nil, err
	}
	for i := range cfg.Rounds {
		w.Cut()
		if err := loadgen.Pause(ctx, cfg.Window); err != nil {
			return nil, err
		}
		var r Round
		if r.Before, err = w.flush(ctx); err != nil {
			return nil, err
		}
		logins := &loadgen.Paced{Pool: pool, Clients: loginClients, Rate: cfg.Logins, Op: func(ctx context.Context, _ pb.KVClient) error {
			name := userName(rand.IntN(cfg.Users))
			_, err := logIn(ctx, loginTimeout, pool[rand.IntN(len(pool))], name, password(name))
			return err
		}}
		loginCtx, stop := context.WithCancel(ctx)
		var pacing sync.WaitGroup
		pacing.Go(func() { logins.Run(loginCtx) })
		err := loadgen.Pause(ctx, cfg.Window)
		if err == nil {
			r.During, err = w.flush(ctx)
		}
		r.Logins = logins.Cut()
		stop()
		pacing.Wait()
		if err == nil {
			err = roundRow(cfg, who, i, r)
		}
		if err == nil {
			err = loadgen.Pause(ctx, rest)
		}
		if err != nil {
			return nil, err
		}
		rounds = append(rounds, r)
	}
	return rounds, nil
}
