package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/replace"
)

func runReplace(ctx context.Context, args []string) error {
	s := scenario.NewReported("replace", "", args)
	var (
		cfg   replace.Config
		modes = s.Flags.String("mode", "replace,restart", "what happens to each member: replace, restart, or both")
		names = s.Flags.String("servers", "troupe", "servers; etcd is measured, but not judged")
		extra = s.Flags.String("args", "", servers.ArgsUsage)
	)
	s.Flags.IntVar(&cfg.Members, "members", 3, "members of each cluster")
	s.Flags.IntVar(&cfg.Writers, "writers", 64, "clients that write")
	s.Flags.IntVar(&cfg.Watchers, "watchers", 100, "watchers of all writes")
	s.Flags.IntVar(&cfg.Readers, "readers", 8, "clients that read")
	s.Flags.DurationVar(&cfg.Every, "every", 100*time.Millisecond, "time between two requests of a client")
	s.Flags.DurationVar(&cfg.Settle, "settle", 3*time.Second, "time between two members")
	s.Flags.IntVar(&cfg.Keys, "keys", 10_000, "keys that are there before, with values of 1 KiB")
	if err := s.Parse(); err != nil {
		return err
	}
	var err error
	if cfg.Servers, err = servers.List(ctx, *names); err != nil {
		return err
	}
	for _, m := range strings.Split(*modes, ",") {
		cfg.Modes = append(cfg.Modes, replace.Mode(m))
	}
	cfg.Args, cfg.Dir = strings.Fields(*extra), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return replace.Run(ctx, cfg)
	})
}
