package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/conformance/differ"
	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
)

// fastElections keeps restarts short; both sides get these flags.
const fastElections = "--heartbeat-interval=10 --election-timeout=100"

// clusterElections are slower, because an election while nothing restarts would make
// differences. etcd's strict check of changes of members depends on how long connections
// have existed.
const clusterElections = "--heartbeat-interval=50 --election-timeout=500 --strict-reconfig-check=false"

func runDiff(ctx context.Context, args []string) error {
	s := scenario.New("diff", args)
	flags := s.Flags
	var (
		left      = flags.String("left", "etcd", "the reference: etcd, troupe, or the path of a binary")
		right     = flags.String("right", "troupe", "the server under test, likewise")
		members   = flags.Int("members", 1, "members of each side")
		auth      = flags.Bool("auth", false, "sequences with authentication, of one member")
		secure    = flags.Bool("tls", false, "with TLS and certificates of clients, which name users in every second seed of -auth")
		decisions = flags.Int("decisions", 0, "with -auth: between changes of users and roles, compare only what so many calls at a time are allowed; 0 compares sequences")
		both      = flags.String("args", "", "flags for both servers (default: those that make restarts short)")
		leftArgs  = flags.String("left-args", "--unsafe-no-fsync", "further flags for the reference")
		rightArgs = flags.String("right-args", "", "further flags for the server under test")
		seed      = flags.Uint64("seed", 1, "the first seed")
		seeds     = flags.Int("seeds", 1, "number of seeds")
		steps     = flags.Int("steps", 2000, "calls per seed")
		parallel  = flags.Int("parallel", runtime.NumCPU(), "seeds at a time; each runs two servers or clusters")
		maxDiffs  = flags.Int("max-diffs", 20, "stop after so many differences")
		least     = flags.Int("min-coverage", 0, "fail when a call, option or error was exercised less often")
		table     = flags.Bool("table", true, "print the coverage table and the exempt fields")
	)
	if err := s.Parse(); err != nil {
		return err
	}
	if *both == "" {
		*both = fastElections
		if *members > 1 {
			*both = clusterElections
		}
		if *auth {
			*both += " --bcrypt-cost=4"
		}
	}
	leftBinary, err := servers.Binary(ctx, *left)
	if err != nil {
		return err
	}
	rightBinary, err := servers.Binary(ctx, *right)
	if err != nil {
		return err
	}
	began := time.Now()
	result, err := differ.Run(ctx, differ.Config{
		Left:      differ.Side{Binary: leftBinary, Args: append(strings.Fields(*both), strings.Fields(*leftArgs)...)},
		Right:     differ.Side{Binary: rightBinary, Args: append(strings.Fields(*both), strings.Fields(*rightArgs)...)},
		FirstSeed: *seed, Seeds: *seeds, Steps: *steps, Members: *members, Auth: *auth, TLS: *secure, Decisions: *decisions, Parallel: *parallel, MaxDiffs: *maxDiffs, Dir: s.Dir, Out: os.Stdout,
		Rerun: func(seed uint64) string {
			return fmt.Sprintf("go run . diff -seed %d -seeds 1 -steps %d -members %d -auth=%t -tls=%t -decisions %d -left %s -right %s -args '%s' -left-args '%s' -right-args '%s'",
				seed, *steps, *members, *auth, *secure, *decisions, *left, *right, *both, *leftArgs, *rightArgs)
		},
	})
	if err != nil {
		return err
	}
	ok, err := result.Print(os.Stdout, *table, *least, time.Since(began))
	if err == nil && (!ok || ctx.Err() != nil) {
		err = scenario.ErrFailed
	}
	return err
}
