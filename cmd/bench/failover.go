package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/failover"
)

func runFailover(ctx context.Context, args []string) error {
	s := scenario.NewReported("failover", "", args)
	var (
		cfg   failover.Config
		kind  = s.Flags.String("kind", string(failover.Terminated), "what happens to the leader: sigterm, sigkill or partition")
		names = s.Flags.String("servers", "etcd,troupe", "servers; etcd is measured, but not judged")
		extra = s.Flags.String("args", "", servers.ArgsUsage)
	)
	s.Flags.IntVar(&cfg.Rounds, "rounds", 50, "faults of each server")
	s.Flags.IntVar(&cfg.EtcdRounds, "etcd-rounds", 0, "faults of etcd, evenly among the rounds; 0 for as many as the others")
	s.Flags.IntVar(&cfg.Members, "members", 3, "members of each cluster")
	s.Flags.IntVar(&cfg.Writers, "writers", 8, "clients of each member")
	s.Flags.DurationVar(&cfg.Before, "before", 500*time.Millisecond, "time between the first writes and the fault")
	s.Flags.DurationVar(&cfg.After, "after", time.Second, "time between the election and the repair")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Servers, err = servers.List(ctx, *names); err != nil {
		return err
	}
	cfg.Kind, cfg.Args, cfg.Dir = failover.Kind(*kind), strings.Fields(*extra), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return failover.Run(ctx, cfg)
	})
}
