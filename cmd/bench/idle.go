package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/idle"
)

func runIdle(ctx context.Context, args []string) error {
	s := scenario.NewReported("idle", "", args)
	var (
		cfg    idle.Config
		server = s.Flags.String("server", "both", "troupe, etcd, or both")
		bin    = s.Flags.String("bin", "", servers.BinUsage)
		extra  = s.Flags.String("args", "", servers.ArgsUsage)
	)
	s.Flags.IntVar(&cfg.Pairs, "pairs", 3, "rounds, in each of which every server is measured once")
	s.Flags.DurationVar(&cfg.Settle, "settle", 10*time.Second, "time between the start and the window")
	s.Flags.DurationVar(&cfg.Window, "window", 30*time.Second, "length of the window")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Servers, err = servers.Pair(ctx, *server, *bin); err != nil {
		return err
	}
	cfg.Args, cfg.Dir = strings.Fields(*extra), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return idle.Run(ctx, cfg)
	})
}
