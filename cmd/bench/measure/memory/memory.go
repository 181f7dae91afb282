// Package memory measures the memory of a server per key, after the keys were written
// and after a restart, and the memory and disk space of a fresh small member.
package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Config has the servers and the number of keys.
type Config struct {
	Reference servers.Server // what Judged is compared with; none if Binary is empty
	Judged    servers.Server // none if Binary is empty
	Small     servers.Server // measured without keys; none if Binary is empty
	Keys      int
	Rest      time.Duration // before memory is read
	Dir       string
	Out       io.Writer
}

const (
	// fillConns and fillers are the connections and clients that write the keys.
	fillConns, fillers = 50, 400
	// keyBytes and valueBytes are the sizes of a pair.
	keyBytes, valueBytes = 32, 256
)

func (c Config) validate() error {
	if c.Reference.Binary == "" && c.Judged.Binary == "" && c.Small.Binary == "" {
		return errors.New("memory: a server is needed")
	}
	if c.Keys < 1 || c.Rest < 0 {
		return errors.New("memory: keys are needed")
	}
	return nil
}

// Result has the results of all servers.
type Result struct {
	Reference, Judged Sample
	Small             Small
}

// Sample has the results of a server with keys.
type Sample struct {
	Loaded    proc.Memory // at rest after the last put
	Restarted proc.Memory // at rest after a restart
	Disk      int64       // bytes, at that time
}

// Small has the results of a fresh member.
type Small struct {
	Disk   int64 // bytes
	Memory proc.Memory
}

// Use adds servers to the configuration: etcd as the reference, and any other as the
// judged server or, if small is set, as the small one. The latter two get args.
func (c *Config) Use(list []servers.Server, small bool, args []string) {
	for _, s := range list {
		switch {
		case !s.Judged():
			c.Reference = s
		case small:
			s.Name, s.Args = "small", append([]string{"--small"}, args...)
			c.Small = s
		default:
			s.Args = args
			c.Judged = s
		}
	}
}

// Run measures the servers that the configuration names and judges them.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	r, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(cfg, r), nil
}

// run measures the servers one after the other.
func run(ctx context.Context, cfg Config) (r Result, err error) {
	if err := cfg.validate(); err != nil {
		return r, err
	}
	if cfg.Reference.Binary != "" || cfg.Judged.Binary != "" {
		if err := header(cfg); err != nil {
			return r, err
		}
	}
	for _, one := range []struct {
		server servers.Server
		sample *Sample
	}{{cfg.Reference, &r.Reference}, {cfg.Judged, &r.Judged}} {
		if one.server.Binary == "" {
			continue
		}
		if *one.sample, err = measure(ctx, cfg, one.server); err != nil {
			return r, fmt.Errorf("memory: %s: %w", one.server.Name, err)
		}
	}
	if cfg.Small.Binary != "" {
		if r.Small, err = fresh(ctx, cfg); err != nil {
			return r, fmt.Errorf("memory: %s: %w", cfg.Small.Name, err)
		}
	}
	return r, nil
}

func measure(ctx context.Context, cfg Config, who servers.Server) (s Sample, err error) {
	server, err := who.Start(ctx, cfg.Dir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	began := time.Now()
	err = loadgen.Fill(ctx, server.Endpoint(), fillConns, fillers, cfg.Keys, func(i int) (key, value []byte) {
		return fmt.Appendf(nil, "%0*d", keyBytes, i), loadgen.Value(valueBytes)
	})
	if err != nil {
		return s, err
	}
	took := time.Since(began)
	if s.Loaded, err = atRest(ctx, cfg, server); err != nil {
		return s, err
	}
	if err := row(cfg, who, fmt.Sprintf("loaded in %.0f s", took.Seconds()), s.Loaded); err != nil {
		return s, err
	}
	if err := server.Terminate(ctx); err != nil {
		return s, err
	}
	began = time.Now()
	if err := server.Restart(ctx); err != nil {
		return s, err
	}
	took = time.Since(began)
	if s.Restarted, err = atRest(ctx, cfg, server); err != nil {
		return s, err
	}
	if s.Disk, err = proc.DiskUsage(server.DataDir()); err != nil {
		return s, err
	}
	return s, row(cfg, who, fmt.Sprintf("restarted in %.1f s", took.Seconds()), s.Restarted)
}

func atRest(ctx context.Context, cfg Config, server *proc.Server) (proc.Memory, error) {
	if err := loadgen.Pause(ctx, cfg.Rest); err != nil {
		return proc.Memory{}, err
	}
	return server.Memory()
}

// fresh measures a member without keys.
func fresh(ctx context.Context, cfg Config) (s Small, err error) {
	server, err := cfg.Small.Start(ctx, cfg.Dir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if s.Memory, err = atRest(ctx, cfg, server); err != nil {
		return s, err
	}
	s.Disk, err = proc.DiskUsage(server.DataDir())
	return s, err
}
