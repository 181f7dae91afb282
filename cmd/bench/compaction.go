package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/compaction"
)

func runCompaction(ctx context.Context, args []string) error {
	s := scenario.New("compaction", args)
	var (
		cfg    compaction.Config
		server = s.Flags.String("server", "troupe", "troupe, etcd, or the path of a binary")
		extra  = s.Flags.String("args", "--quota-backend-bytes=17179869184", "flags for the server; the store outgrows the default quota")
	)
	s.Flags.StringVar(&cfg.BackendDir, "backend-dir", "member/db", "the backend's folder below the data folder (etcd's is member/snap)")
	s.Flags.Int64Var(&cfg.LiveBytes, "live-bytes", 1<<30, "live keys and values, in bytes")
	s.Flags.IntVar(&cfg.ValueBytes, "value-size", 1024, "size of the live values, in bytes")
	s.Flags.IntVar(&cfg.Superseded, "superseded", 1_000_000, "superseded revisions")
	s.Flags.IntVar(&cfg.PutRate, "puts", 3000, "puts per second while measuring")
	s.Flags.IntVar(&cfg.GetRate, "gets", 3000, "linearizable gets per second while measuring")
	s.Flags.IntVar(&cfg.PutKeys, "put-keys", 10_000, "keys of these puts")
	s.Flags.IntVar(&cfg.PutBytes, "put-size", 128, "size of their values, in bytes")
	s.Flags.DurationVar(&cfg.Window, "window", time.Minute, "length of a window")
	s.Flags.IntVar(&cfg.Windows, "windows", 3, "windows before the compaction, and at least after it")
	s.Flags.DurationVar(&cfg.Limit, "limit", 5*time.Minute, "time for the blocks to fall to the bound")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Binary, err = servers.Binary(ctx, *server); err != nil {
		return err
	}
	cfg.Args, cfg.Dir = strings.Fields(*extra), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return compaction.Run(ctx, cfg)
	})
}
