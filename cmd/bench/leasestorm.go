package main

import (
	"context"
	"flag"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/leasestorm"
)

func runLeaseStorm(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("lease-storm", flag.ContinueOnError)
	var (
		servers = flags.String("servers", "troupe", "servers; etcd is measured, but the bounds are not for it")
		extra   = flags.String("args", "", "flags for the servers")
		leases  = flags.Int("leases", 100_000, "leases, with one key each")
		ttl     = flags.Duration("ttl", time.Minute, "time of the lease that is granted first; all must be granted in less")
		puts    = flags.Int("puts", 500, "puts a second to other keys")
		quiet   = flags.Duration("quiet", 5*time.Second, "length of the window before the first lease ends")
		limit   = flags.Duration("limit", 3*time.Minute, "time for the keys to go")
		dir     = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		name    = flags.String("name", "", "name of the result file; nothing is written if empty")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	list, err := contestants(ctx, *servers)
	if err != nil {
		return err
	}
	return report(ctx, "lease-storm", args, *name, *dir, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg := leasestorm.Config{
			Args: strings.Fields(*extra), Leases: *leases, TTL: *ttl, Rate: *puts, Quiet: *quiet, Limit: *limit, Dir: *dir, Out: out,
		}
		for _, s := range list {
			cfg.Servers = append(cfg.Servers, leasestorm.Server{Name: s.Name, Binary: s.Binary, Judged: s.Name != string(tools.Etcd)})
		}
		samples, err := leasestorm.Run(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return leasestorm.Judge(cfg, samples), nil
	})
}
