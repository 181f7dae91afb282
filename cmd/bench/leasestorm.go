package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/leasestorm"
)

func runLeaseStorm(ctx context.Context, args []string) error {
	s := scenario.NewReported("lease-storm", "", args)
	var (
		cfg   leasestorm.Config
		names = s.Flags.String("servers", "troupe", "servers; etcd is measured, but not judged")
		extra = s.Flags.String("args", "", servers.ArgsUsage)
	)
	s.Flags.IntVar(&cfg.Leases, "leases", 100_000, "leases, with one key each")
	s.Flags.DurationVar(&cfg.TTL, "ttl", time.Minute, "TTL of the first lease; all must be granted in less time")
	s.Flags.IntVar(&cfg.Rate, "puts", 500, "puts per second to other keys")
	s.Flags.DurationVar(&cfg.Quiet, "quiet", 5*time.Second, "length of the window before the first expiry")
	s.Flags.DurationVar(&cfg.Limit, "limit", 3*time.Minute, "time for the keys to be deleted")
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
		return leasestorm.Run(ctx, cfg)
	})
}
