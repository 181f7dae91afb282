package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/compaction"
)

func runCompaction(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("compaction", flag.ContinueOnError)
	var (
		server     = flags.String("server", "troupe", "troupe, etcd, or the path of a binary")
		extra      = flags.String("args", "--quota-backend-bytes=17179869184", "flags for the server; the store outgrows the default quota")
		backend    = flags.String("backend-dir", "member/db", "the backend's folder below the data folder (etcd's is member/snap)")
		live       = flags.Int64("live-bytes", 1<<30, "live keys and values, in bytes")
		size       = flags.Int("value-size", 1024, "size of the live values, in bytes")
		superseded = flags.Int("superseded", 1_000_000, "superseded revisions")
		puts       = flags.Int("puts", 3000, "puts a second while measuring")
		gets       = flags.Int("gets", 3000, "linearizable gets a second while measuring")
		putKeys    = flags.Int("put-keys", 10_000, "keys that those puts go to")
		putSize    = flags.Int("put-size", 128, "size of their values, in bytes")
		window     = flags.Duration("window", time.Minute, "length of a window")
		windows    = flags.Int("windows", 3, "windows before the compaction, and at least after it")
		limit      = flags.Duration("limit", 5*time.Minute, "time for the blocks to come down")
		dir        = flags.String("dir", "", "folder for the data folder (default: the system's temporary folder)")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	binary, err := resolve(ctx, *server)
	if err != nil {
		return err
	}
	cfg := compaction.Config{
		Binary: binary, Args: strings.Fields(*extra), BackendDir: *backend, LiveBytes: *live, ValueBytes: *size, Superseded: *superseded,
		PutRate: *puts, GetRate: *gets, PutKeys: *putKeys, PutBytes: *putSize,
		Window: *window, Windows: *windows, Limit: *limit, Dir: *dir, Out: os.Stdout,
	}
	result, err := compaction.Run(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println()
	ok, err := verdict.Print(os.Stdout, compaction.Judge(cfg, result))
	if err == nil && !ok {
		err = errFailed
	}
	return err
}
