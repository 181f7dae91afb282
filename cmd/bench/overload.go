package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/overload"
)

func runOverload(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("overload", flag.ContinueOnError)
	var (
		server  = flags.String("server", "troupe", "troupe, or the path of a binary with its endpoints")
		limit   = flags.String("limit-args", "--mailbox-proposer-requests=256", "the flags that set the small limit")
		few     = flags.Int("few", 200, "clients before and after")
		many    = flags.Int("many", 2000, "clients in between")
		normal  = flags.Int("default-clients", 1000, "clients that the default limits must bear")
		conns   = flags.Int("conns", 100, "connections")
		phase   = flags.Duration("phase", 10*time.Second, "length of each phase")
		warmup  = flags.Duration("warmup", 5*time.Second, "time before the first phase")
		compact = flags.Duration("compact-every", time.Second, "interval of compactions, so that the heap does not grow with the history; 0 for none")
		dir     = flags.String("dir", "", "folder for the data folders (default: the system's temporary folder)")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	binary, err := resolve(ctx, *server)
	if err != nil {
		return err
	}
	verdicts, err := overload.Run(ctx, overload.Config{
		Binary: binary, LimitArgs: strings.Fields(*limit), Few: *few, Many: *many, DefaultMany: *normal, Conns: *conns,
		Phase: *phase, Warmup: *warmup, CompactEvery: *compact, Dir: *dir, Out: os.Stdout,
	})
	if err != nil {
		return err
	}
	fmt.Println()
	ok, err := verdict.Print(os.Stdout, verdicts)
	if err == nil && !ok {
		err = errFailed
	}
	return err
}
