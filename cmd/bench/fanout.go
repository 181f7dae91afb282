package main

import (
	"context"
	"flag"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/fanout"
)

func runFanout(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("fanout", flag.ContinueOnError)
	var (
		server = flags.String("server", "troupe", "troupe, etcd, or the path of a binary")
		loads  = flags.String("load", "10000:100:5,100:100:500", "loads, each as watchers:streams:puts a second")
		rounds = flags.Int("rounds", 1, "how often each load is measured, once with all reading and once with some frozen")
		warmup = flags.Duration("warmup", 5*time.Second, "time before a window, under the same load")
		window = flags.Duration("window", time.Minute, "length of a window")
		limit  = flags.Duration("limit", time.Minute, "time for the thawed watchers to catch up")
		dir    = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		name   = flags.String("name", "", "name of the result file; nothing is written if empty")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	binary, err := resolve(ctx, *server)
	if err != nil {
		return err
	}
	return report(ctx, "fanout", args, *name, *dir, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg := fanout.Config{
			Binary: binary, Rounds: *rounds, Warmup: *warmup, Window: *window, Limit: *limit, Dir: *dir, Out: out,
		}
		for _, text := range strings.Split(*loads, ",") {
			l, err := fanout.ParseLoad(text)
			if err != nil {
				return nil, err
			}
			cfg.Loads = append(cfg.Loads, l)
		}
		results, err := fanout.Run(ctx, cfg)
		if err != nil {
			return nil, err
		}
		var verdicts []verdict.Verdict
		for _, l := range cfg.Loads {
			verdicts = append(verdicts, fanout.Judge(cfg, l, results[l])...)
		}
		return verdicts, nil
	})
}
