package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/flood"
)

func runFlood(ctx context.Context, args []string) error {
	s := scenario.NewReported("flood", "", args)
	var (
		cfg       flood.Config
		server    = s.Flags.String("server", "both", "troupe, etcd, or both; etcd is measured and not judged")
		bin       = s.Flags.String("bin", "", servers.BinUsage)
		modes     = s.Flags.String("mode", "all", "modes, separated by commas, of "+strings.Join(flood.Modes(), ", ")+"; or all")
		extra     = s.Flags.String("args", "", servers.ArgsUsage)
		memoryMax = s.Flags.Int64("memory-max", 8<<10, "MiB; a server that holds more is killed")
	)
	s.Flags.DurationVar(&cfg.Settle, "settle", 5*time.Second, "time between the last put and the flood")
	s.Flags.DurationVar(&cfg.Rest, "rest", 10*time.Second, "time between the flood and the last reading of the memory")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Modes, err = flood.ParseModes(*modes); err != nil {
		return err
	}
	if cfg.Servers, err = servers.Pair(ctx, *server, *bin); err != nil {
		return err
	}
	cfg.Args, cfg.MemoryMax, cfg.Dir = strings.Fields(*extra), *memoryMax<<20, s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return flood.Run(ctx, cfg)
	})
}
