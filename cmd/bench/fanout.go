package main

import (
	"context"
	"io"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/fanout"
)

func runFanout(ctx context.Context, args []string) error {
	s := scenario.NewReported("fanout", "", args)
	var (
		cfg    fanout.Config
		server = s.Flags.String("server", "troupe", "troupe, etcd, or the path of a binary")
		loads  = s.Flags.String("load", "10000:100:5,100:100:500", "loads, each as watchers:streams:puts a second")
	)
	s.Flags.IntVar(&cfg.Rounds, "rounds", 1, "rounds, each with one run in which all streams are read and one in which some are frozen")
	s.Flags.DurationVar(&cfg.Warmup, "warmup", 5*time.Second, "time before a window, under the same load")
	s.Flags.DurationVar(&cfg.Window, "window", time.Minute, "length of a window")
	s.Flags.DurationVar(&cfg.Limit, "limit", time.Minute, "time for the thawed watchers to catch up")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Loads, err = fanout.ParseLoads(*loads); err != nil {
		return err
	}
	if cfg.Binary, err = servers.Binary(ctx, *server); err != nil {
		return err
	}
	cfg.Dir = s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return fanout.Run(ctx, cfg)
	})
}
