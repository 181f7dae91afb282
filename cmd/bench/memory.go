package main

import (
	"context"
	"flag"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/memory"
)

func runMemory(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("memory", flag.ContinueOnError)
	var (
		server = flags.String("server", "both", "troupe, etcd, or both")
		bin    = flags.String("bin", "", "the binary to run as troupe; it is built if empty")
		keys   = flags.Int("keys", 1_000_000, "keys to write, of 32 bytes with values of 256")
		small  = flags.Bool("small", false, "look at a fresh member with --small instead")
		extra  = flags.String("args", "", "flags for troupe")
		rest   = flags.Duration("rest", 10*time.Second, "time before memory is read")
		dir    = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		name   = flags.String("name", "", "name of the result file; nothing is written if empty")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	which := *server
	if *small {
		which = string(tools.Troupe)
	}
	list, err := pair(ctx, which, *bin)
	if err != nil {
		return err
	}
	return report(ctx, "memory", args, *name, *dir, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg := memory.Config{Keys: *keys, Rest: *rest, Dir: *dir, Out: out}
		for _, s := range list {
			m := memory.Server{Name: s.Name, Binary: s.Binary}
			switch {
			case s.Name == string(tools.Etcd):
				cfg.Reference = m
			case *small:
				m.Name, m.Args = "small", append([]string{"--small"}, strings.Fields(*extra)...)
				cfg.Small = m
			default:
				m.Args = strings.Fields(*extra)
				cfg.Judged = m
			}
		}
		r, err := memory.Run(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return memory.Judge(cfg, r), nil
	})
}
