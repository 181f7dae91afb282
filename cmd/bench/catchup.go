package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/catchup"
)

func runCatchUp(ctx context.Context, args []string) error {
	s := scenario.NewReported("catchup", "", args)
	var (
		cfg   catchup.Config
		names = s.Flags.String("servers", "etcd,troupe", "servers; etcd is measured, but not judged")
		extra = s.Flags.String("args", "", servers.ArgsUsage)
	)
	s.Flags.Int64Var(&cfg.Bytes, "bytes", 2<<30, "bytes of values that the member misses")
	s.Flags.IntVar(&cfg.ValueBytes, "value-bytes", 16<<10, "size of these values")
	s.Flags.IntVar(&cfg.PutRate, "put-rate", 5000, "puts a second, of 256 bytes, meanwhile")
	s.Flags.IntVar(&cfg.Clients, "clients", 256, "how many of these puts can be in flight")
	s.Flags.DurationVar(&cfg.Window, "window", 20*time.Second, "time for which puts are measured before the member stops, while it is down, and when it is in step")
	s.Flags.IntVar(&cfg.Kills, "kills", 0, "how often the member is killed while it catches up a second time")
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
		return catchup.Run(ctx, cfg)
	})
}
