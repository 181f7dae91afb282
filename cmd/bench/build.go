package main

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

func runBuild(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	only := flags.String("only", "", "comma-separated programs; all of them if empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	programs := tools.All()
	if *only != "" {
		programs = nil
		for _, name := range strings.Split(*only, ",") {
			programs = append(programs, tools.Program(name))
		}
	}
	for _, p := range programs {
		path, err := tools.BuildOne(ctx, p)
		if err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}
