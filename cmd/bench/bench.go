package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/host"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
	"github.com/troupe-db/troupe/cmd/bench/measure/pairs"
)

func runBench(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var (
		rounds   = flags.Int("pairs", 5, "how often each server has its turn")
		loads    = flags.String("load", "put,get", "loads, in this order, of "+strings.Join(pairs.LoadNames(), ", "))
		clients  = flags.Int("clients", 0, "concurrent clients; 0 for what fits the load")
		conns    = flags.Int("conns", 0, "connections; 0 for what fits the load")
		total    = flags.Int("total", 0, "requests a load, of the watch loads puts; 0 for what fits the load")
		streams  = flags.Int("streams", 0, "streams of the watch loads; 0 for what fits the load")
		watchers = flags.Int("watchers", 0, "watchers on each of these streams; 0 for what fits the load")
		putRate  = flags.Int("put-rate", 0, "puts a second of the watch loads; 0 for what fits the load")
		servers  = flags.String("servers", "etcd,troupe,echo", "servers; the first is what the others are compared with")
		dir      = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		profile  = flags.Bool("profile", false, "one more turn of troupe with a CPU profile of each load (the load should last 15 s)")
		name     = flags.String("name", "single-member", "name of the result file; nothing is written if empty")
		check    = flags.Bool("check", false, "exit with 1 if a bound does not hold")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := chooseLoads(*loads, pairs.Load{
		Clients: *clients, Conns: *conns, Total: *total,
		Watchers: loadtool.Watchers{Streams: *streams, PerStream: *watchers, PutRate: *putRate},
	})
	if err != nil {
		return err
	}
	paths, err := build(ctx, tools.Benchmark)
	if err != nil {
		return err
	}
	contestants, err := contestants(ctx, *servers)
	if err != nil {
		return err
	}
	facts, err := host.Describe(ctx, *dir)
	if err != nil {
		return err
	}
	cfg := pairs.Config{Contestants: contestants, Rounds: *rounds, Loads: chosen, Benchmark: paths[tools.Benchmark], Dir: *dir, Progress: os.Stdout}
	results, err := pairs.Run(ctx, cfg)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("# Benchmark: %s\n\n%s\n%d rounds; median (least–greatest).\n\n%s",
		*name, facts.Markdown("go run . bench "+strings.Join(args, " ")), *rounds, pairs.Markdown(cfg, results))
	if *profile {
		top, err := profiles(ctx, cfg)
		if err != nil {
			return err
		}
		text += top
	}
	fmt.Print("\n", text)
	if err := save(*name, facts.Date, text); err != nil {
		return err
	}
	broken := func(v pairs.Verdict) bool { return !v.OK }
	if *check && slices.ContainsFunc(pairs.Judge(cfg, results), broken) {
		return errFailed
	}
	return nil
}

// chooseLoads resolves the names of loads. Sizes that are not 0 replace what
// fits each load.
func chooseLoads(names string, sizes pairs.Load) ([]pairs.Load, error) {
	var list []pairs.Load
	for _, name := range strings.Split(names, ",") {
		l, err := pairs.DefaultLoad(name)
		if err != nil {
			return nil, err
		}
		list = append(list, pairs.Load{
			Name: name, Clients: cmp.Or(sizes.Clients, l.Clients), Conns: cmp.Or(sizes.Conns, l.Conns), Total: cmp.Or(sizes.Total, l.Total),
			Watchers: loadtool.Watchers{
				Streams:   cmp.Or(sizes.Watchers.Streams, l.Watchers.Streams),
				PerStream: cmp.Or(sizes.Watchers.PerStream, l.Watchers.PerStream),
				PutRate:   cmp.Or(sizes.Watchers.PutRate, l.Watchers.PutRate),
			},
		})
	}
	return list, nil
}

// contestants resolves the names of servers.
func contestants(ctx context.Context, names string) ([]pairs.Contestant, error) {
	var list []pairs.Contestant
	for _, name := range strings.Split(names, ",") {
		c := pairs.Contestant{Name: name}
		var err error
		if name == "echo" {
			c.Command = []string{"echo"}
			c.Lacks = []string{pairs.RangeLoad, pairs.WatchLoad, pairs.WatchLatencyLoad}
			c.Binary, err = os.Executable()
		} else {
			c.Binary, err = resolve(ctx, name)
			c.Name = filepath.Base(name)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// profiles takes Troupe's CPU profiles and returns their heaviest functions.
func profiles(ctx context.Context, cfg pairs.Config) (_ string, err error) {
	paths, err := build(ctx, tools.Troupe)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "bench-profile-")
	if err != nil {
		return "", fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := func(load string) string { return filepath.Join(dir, load+".pprof") }
	troupe := pairs.Contestant{Name: "troupe", Binary: paths[tools.Troupe], Args: []string{"--enable-pprof"}}
	if err := pairs.Profile(ctx, cfg, troupe, file); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, load := range cfg.Loads {
		for _, order := range []string{"-flat", "-cum"} {
			top, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=40", order, file(load.Name)).Output()
			if err != nil {
				return "", fmt.Errorf("bench: read the profile of %s: %w", load.Name, err)
			}
			fmt.Fprintf(&b, "## Profile of troupe under %s (%s)\n\n```\n%s```\n\n", load.Name, order[1:], withoutBuild(string(top)))
		}
	}
	return b.String(), nil
}

// withoutBuild drops the lines of a profile that name the binary's file.
func withoutBuild(top string) string {
	var b strings.Builder
	for line := range strings.Lines(top) {
		if !strings.HasPrefix(line, "File:") && !strings.HasPrefix(line, "Build ID:") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// save writes a result file.
func save(name, date, text string) error {
	if name == "" {
		return nil
	}
	bench, err := tools.Open(".")
	if err != nil {
		return err
	}
	path := filepath.Join(bench.Dir, "results", date+"-"+name+".md")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	fmt.Println("written:", path)
	return nil
}
