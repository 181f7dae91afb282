package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/overload"
)

func runOverload(ctx context.Context, args []string) error {
	s := scenario.New("overload", args)
	var (
		cfg    overload.Config
		server = s.Flags.String("server", "troupe", "troupe, or the path of a binary with its endpoints")
		limit  = s.Flags.String("limit-args", "--mailbox-proposer-requests=256", "the flags that set the small limit")
	)
	s.Flags.IntVar(&cfg.Few, "few", 200, "clients before and after")
	s.Flags.IntVar(&cfg.Many, "many", 2000, "clients in between")
	s.Flags.IntVar(&cfg.DefaultMany, "default-clients", 1000, "clients of which none may be refused with the default limits")
	s.Flags.IntVar(&cfg.Conns, "conns", 100, "connections")
	s.Flags.DurationVar(&cfg.Phase, "phase", 10*time.Second, "length of each phase")
	s.Flags.DurationVar(&cfg.Warmup, "warmup", 5*time.Second, "time before the first phase")
	s.Flags.DurationVar(&cfg.CompactEvery, "compact-every", time.Second, "interval of compactions, so that the heap does not grow with the history; 0 for none")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Binary, err = servers.Binary(ctx, *server); err != nil {
		return err
	}
	cfg.LimitArgs, cfg.Dir = strings.Fields(*limit), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return overload.Run(ctx, cfg)
	})
}
