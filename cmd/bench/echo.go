package main

import (
	"context"
	"flag"
	"os"

	"github.com/troupe-db/troupe/cmd/bench/measure/echo"
)

// runEcho accepts the flags that every measured server gets, and uses only one of them.
func runEcho(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	listen := flags.String("listen-client-urls", "http://127.0.0.1:2379", "where to listen")
	for _, ignored := range []string{"name", "data-dir", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls", "initial-cluster"} {
		flags.String(ignored, "", "ignored")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	return echo.Serve(ctx, *listen, os.Stdout)
}
