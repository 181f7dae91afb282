package main

import (
	"context"
	"flag"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/idle"
)

func runIdle(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("idle", flag.ContinueOnError)
	var (
		server = flags.String("server", "both", "troupe, etcd, or both")
		bin    = flags.String("bin", "", "the binary to run as troupe; it is built if empty")
		pairs  = flags.Int("pairs", 3, "how often each server has its turn")
		extra  = flags.String("args", "", "flags for the servers")
		settle = flags.Duration("settle", 10*time.Second, "time between the start and the window")
		window = flags.Duration("window", 30*time.Second, "length of the window")
		dir    = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		name   = flags.String("name", "", "name of the result file; nothing is written if empty")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	list, err := pair(ctx, *server, *bin)
	if err != nil {
		return err
	}
	return report(ctx, "idle", args, *name, *dir, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg := idle.Config{Args: strings.Fields(*extra), Pairs: *pairs, Settle: *settle, Window: *window, Dir: *dir, Out: out}
		for _, s := range list {
			cfg.Servers = append(cfg.Servers, idle.Server{Name: s.Name, Binary: s.Binary})
		}
		results, err := idle.Run(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return idle.Judge(cfg, results), nil
	})
}
