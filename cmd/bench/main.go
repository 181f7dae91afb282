// Command bench compares Troupe with real etcd: behaviour, cost under load, and extreme
// cases. The README describes the subcommands and their output; -h lists the flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
)

// command is one subcommand.
type command struct {
	name  string
	about string
	run   func(ctx context.Context, args []string) error
}

// group is the subcommands of one folder.
type group struct {
	name     string
	commands []command
}

var groups = []group{
	{"programs", []command{
		{"build", "build the programs that the others use into bin/", runBuild},
	}},
	{"conformance: does Troupe answer as etcd does?", []command{
		{"diff", "find differences in behaviour between two servers", runDiff},
	}},
	{"measure: what does it cost?", []command{
		{"bench", "measure servers in turn under etcd's own load generator", runBench},
		{"echo", "serve constant replies, as the lower limit of cost", runEcho},
		{"overload", "check what happens with more clients than the queues take", runOverload},
		{"compaction", "measure a large compaction under load", runCompaction},
		{"flood", "measure the effect of floods of expensive reads", runFlood},
		{"memory", "measure the memory of keys, and of a small member", runMemory},
		{"idle", "measure the cost of a member without requests", runIdle},
		{"fanout", "measure the effect of watchers that stop reading", runFanout},
		{"replay", "measure a watch over a long history", runReplay},
		{"lease-storm", "measure a second in which very many leases expire", runLeaseStorm},
		{"auth", "measure puts beside clients that log in, and beside thousands of them", runAuth},
		{"failover", "measure the time without writes when the leader fails", runFailover},
		{"catchup", "measure how a member catches up by a snapshot under load", runCatchUp},
		{"replace", "replace and restart all members under load", runReplace},
	}},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := dispatch(ctx, os.Args[1:]); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, scenario.ErrFailed):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		for _, g := range groups {
			for _, c := range g.commands {
				if c.name == args[0] {
					return c.run(ctx, args[1:])
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr, "usage: bench <subcommand> [flags]")
	for _, g := range groups {
		fmt.Fprintln(os.Stderr, g.name)
		for _, c := range g.commands {
			fmt.Fprintf(os.Stderr, "  %-12s %s\n", c.name, c.about)
		}
	}
	return scenario.ErrFailed
}
