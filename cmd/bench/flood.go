package main

import (
	"context"
	"flag"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/flood"
)

func runFlood(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("flood", flag.ContinueOnError)
	var (
		server    = flags.String("server", "both", "troupe, etcd, or both; etcd is measured and not judged")
		bin       = flags.String("bin", "", "the binary to run as troupe; it is built if empty")
		mode      = flags.String("mode", "all", "modes, separated by commas, of "+strings.Join(flood.Modes(), ", ")+"; or all")
		extra     = flags.String("args", "", "flags for the servers")
		settle    = flags.Duration("settle", 5*time.Second, "time between the filling and the flood")
		rest      = flags.Duration("rest", 10*time.Second, "time between the flood and the last look at the memory")
		memoryMax = flags.Int64("memory-max", 8<<10, "MiB; a server that holds more is killed, to spare the machine")
		dir       = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		name      = flags.String("name", "", "name of the result file; nothing is written if empty")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	list, err := pair(ctx, *server, *bin)
	if err != nil {
		return err
	}
	return report(ctx, "flood", args, *name, *dir, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg := flood.Config{Args: strings.Fields(*extra), Settle: *settle, Rest: *rest, MemoryMax: *memoryMax << 20, Dir: *dir, Out: out}
		names := flood.Modes()
		if *mode != "all" {
			names = strings.Split(*mode, ",")
		}
		for _, n := range names {
			m, err := flood.DefaultMode(n)
			if err != nil {
				return nil, err
			}
			cfg.Modes = append(cfg.Modes, m)
		}
		for _, s := range list {
			cfg.Servers = append(cfg.Servers, flood.Server{Name: s.Name, Binary: s.Binary, Judged: s.Name != string(tools.Etcd)})
		}
		samples, err := flood.Run(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return flood.Judge(samples), nil
	})
}
