package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/memory"
)

func runMemory(ctx context.Context, args []string) error {
	s := scenario.NewReported("memory", "", args)
	var (
		cfg    memory.Config
		server = s.Flags.String("server", "both", "troupe, etcd, or both")
		bin    = s.Flags.String("bin", "", servers.BinUsage)
		small  = s.Flags.Bool("small", false, "measure a fresh member with --small instead")
		extra  = s.Flags.String("args", "", "flags for troupe")
	)
	s.Flags.IntVar(&cfg.Keys, "keys", 1_000_000, "keys to write, of 32 bytes with values of 256")
	s.Flags.DurationVar(&cfg.Rest, "rest", 10*time.Second, "time before memory is read")
	if err := s.Parse(); err != nil {
		return err
	}
	if *small {
		*server = "troupe"
	}
	list, err := servers.Pair(ctx, *server, *bin)
	if err != nil {
		return err
	}
	cfg.Use(list, *small, strings.Fields(*extra))
	cfg.Dir = s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return memory.Run(ctx, cfg)
	})
}
