package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/pairs"
)

func runBench(ctx context.Context, args []string) (err error) {
	s := scenario.NewReported("bench", "single-member", args)
	var (
		loads   = s.Flags.String("load", "put,get", "loads, in this order, of "+strings.Join(pairs.LoadNames(), ", "))
		servers = s.Flags.String("servers", "etcd,troupe,echo", "servers; the others are compared with the first; echo is left out if there are several members")
		profile = s.Flags.Bool("profile", false, "one more turn of troupe with a CPU profile of each load (the load should last 15 s)")
		target  = s.Flags.String("target", string(pairs.OnLeader), "with several members, those that clients use: leader or all")
		secure  = s.Flags.Bool("tls", false, "TLS with certificates of clients, the same for all servers; echo is left out")
		check   = s.Flags.Bool("check", false, "exit with 1 if a bound does not hold")
		sizes   pairs.Load
		cfg     = pairs.Config{Progress: os.Stdout}
	)
	s.Flags.IntVar(&cfg.Rounds, "pairs", 5, "rounds, in each of which every server is measured once")
	s.Flags.IntVar(&cfg.Members, "members", 1, "members of each server; CPU and memory are those of all")
	s.Flags.IntVar(&sizes.Clients, "clients", 0, "concurrent clients; 0 for the load's default")
	s.Flags.IntVar(&sizes.Conns, "conns", 0, "connections; 0 for the load's default")
	s.Flags.IntVar(&sizes.Total, "total", 0, "requests per load, or puts of the watch loads; 0 for the load's default")
	s.Flags.IntVar(&sizes.Watchers.Streams, "streams", 0, "streams of the watch loads; 0 for the load's default")
	s.Flags.IntVar(&sizes.Watchers.PerStream, "watchers", 0, "watchers on each of these streams; 0 for the load's default")
	s.Flags.IntVar(&sizes.Watchers.PutRate, "put-rate", 0, "puts per second of the watch loads and of get-under-put; 0 for the load's default")
	if err := s.Parse(); err != nil {
		return err
	}
	if *secure && *profile {
		return errors.New("bench: profiles are not taken with TLS")
	}
	cfg.Dir, cfg.Target = s.Dir, pairs.Target(*target)
	if cfg.Loads, err = pairs.ChooseLoads(*loads, sizes); err != nil {
		return err
	}
	if cfg.Benchmark, err = tools.BuildOne(ctx, tools.Benchmark); err != nil {
		return err
	}
	if cfg.Contestants, err = pairs.Contestants(ctx, *servers, cfg.Members, *secure); err != nil {
		return err
	}
	facts, err := s.Facts(ctx)
	if err != nil {
		return err
	}
	if *secure {
		if cfg.TLS, err = pki.Make(s.Dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, cfg.TLS.Remove()) }()
	}
	results, err := pairs.Run(ctx, cfg)
	if err != nil {
		return err
	}
	members := ""
	if cfg.Members > 1 {
		members = fmt.Sprintf("%d members; clients on: %s. CPU and memory are those of all members. ", cfg.Members, cfg.Target)
	}
	if *secure {
		members += "TLS with certificates of clients, all of ECDSA P-256. "
	}
	body := fmt.Sprintf("%s%d rounds; median (least–greatest).\n\n%s", members, cfg.Rounds, pairs.Markdown(cfg, results))
	if *profile {
		top, err := pairs.Profiles(ctx, cfg)
		if err != nil {
			return err
		}
		body += top
	}
	title := "Benchmark: " + s.Name()
	fmt.Print("\n", s.Page(facts, title, body))
	if err := s.Save(facts, title, body); err != nil {
		return err
	}
	if *check && !verdict.AllOK(pairs.Judge(cfg, results)) {
		return scenario.ErrFailed
	}
	return nil
}
