package main

import (
	"context"
	"flag"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/replay"
)

func runReplay(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	var (
		servers   = flags.String("servers", "etcd,troupe", "servers; the first, if there are several, is what the others are compared with")
		extra     = flags.String("args", "", "flags for the servers")
		revisions = flags.Int("revisions", 1_000_000, "puts to replay")
		keys      = flags.Int("keys", 100_000, "keys that they go to")
		size      = flags.Int("value-size", 128, "size of the values, in bytes")
		limit     = flags.Duration("limit", 2*time.Minute, "time for one replay")
		dir       = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		name      = flags.String("name", "", "name of the result file; nothing is written if empty")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	list, err := contestants(ctx, *servers)
	if err != nil {
		return err
	}
	return report(ctx, "replay", args, *name, *dir, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg := replay.Config{
			Args: strings.Fields(*extra), Revisions: *revisions, Keys: *keys, ValueBytes: *size, Limit: *limit, Rest: 2 * time.Second, Dir: *dir, Out: out,
		}
		for _, s := range list {
			cfg.Servers = append(cfg.Servers, replay.Server{Name: s.Name, Binary: s.Binary})
		}
		results, err := replay.Run(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return replay.Judge(cfg, results), nil
	})
}
