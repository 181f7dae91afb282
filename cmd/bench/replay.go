package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/replay"
)

func runReplay(ctx context.Context, args []string) error {
	s := scenario.NewReported("replay", "", args)
	var (
		cfg   = replay.Config{Rest: 2 * time.Second}
		names = s.Flags.String("servers", "etcd,troupe", "servers; the others are compared with the first")
		extra = s.Flags.String("args", "", servers.ArgsUsage)
	)
	s.Flags.IntVar(&cfg.Revisions, "revisions", 1_000_000, "puts to replay")
	s.Flags.IntVar(&cfg.Keys, "keys", 100_000, "keys of these puts")
	s.Flags.IntVar(&cfg.ValueBytes, "value-size", 128, "size of the values, in bytes")
	s.Flags.DurationVar(&cfg.Limit, "limit", 2*time.Minute, "time for one replay")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Servers, err = servers.List(ctx, *names); err != nil {
		return err
	}
	cfg.Args, cfg.Dir = strings.Fields(*extra), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return replay.Run(ctx, cfg)
	})
}
