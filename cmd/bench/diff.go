package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/conformance/differ"
)

// fastElections keeps restarts short; both sides get these flags.
const fastElections = "--heartbeat-interval=10 --election-timeout=100"

func runDiff(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("diff", flag.ContinueOnError)
	var (
		left      = flags.String("left", "etcd", "the reference: etcd, troupe, or the path of a binary")
		right     = flags.String("right", "troupe", "the server under test, likewise")
		both      = flags.String("args", fastElections, "flags for both servers")
		leftArgs  = flags.String("left-args", "--unsafe-no-fsync", "further flags for the reference")
		rightArgs = flags.String("right-args", "", "further flags for the server under test")
		seed      = flags.Uint64("seed", 1, "the first seed")
		seeds     = flags.Int("seeds", 1, "how many seeds")
		steps     = flags.Int("steps", 2000, "calls a seed")
		parallel  = flags.Int("parallel", runtime.NumCPU(), "seeds at a time; each runs two servers")
		maxDiffs  = flags.Int("max-diffs", 20, "stop after so many differences")
		least     = flags.Int("min-coverage", 0, "fail when a call, option or error was exercised less often")
		dir       = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
		table     = flags.Bool("table", true, "print the coverage table and the exempt fields")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	leftBinary, err := resolve(ctx, *left)
	if err != nil {
		return err
	}
	rightBinary, err := resolve(ctx, *right)
	if err != nil {
		return err
	}
	began := time.Now()
	result, err := differ.Run(ctx, differ.Config{
		Left:      differ.Side{Binary: leftBinary, Args: append(strings.Fields(*both), strings.Fields(*leftArgs)...)},
		Right:     differ.Side{Binary: rightBinary, Args: append(strings.Fields(*both), strings.Fields(*rightArgs)...)},
		FirstSeed: *seed, Seeds: *seeds, Steps: *steps, Parallel: *parallel, MaxDiffs: *maxDiffs, Dir: *dir, Out: os.Stdout,
		Rerun: func(seed uint64) string {
			return fmt.Sprintf("go run . diff -seed %d -seeds 1 -steps %d -left %s -right %s -args '%s' -left-args '%s' -right-args '%s'",
				seed, *steps, *left, *right, *both, *leftArgs, *rightArgs)
		},
	})
	if err != nil {
		return err
	}
	if *table {
		if err := printTables(result); err != nil {
			return err
		}
	}
	fmt.Printf("\n%d seeds, %d calls, %d differences, %s\n", result.Seeds, result.Calls, len(result.Differences), time.Since(began).Round(time.Second))
	short := result.Coverage.Below(*least)
	for _, line := range short {
		fmt.Printf("below %d: %s\n", *least, line)
	}
	if len(result.Differences) > 0 || len(short) > 0 || ctx.Err() != nil {
		return errFailed
	}
	return nil
}

func printTables(result differ.Result) error {
	fmt.Println("\nCoverage: how often each call, option and error was exercised")
	if err := result.Coverage.Print(os.Stdout); err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	fmt.Println("\nExempt fields")
	for _, e := range differ.Exemptions {
		fmt.Printf("  %s\n      because: %s\n      checked: %s\n", e.Field, e.Reason, e.Check)
	}
	return nil
}
