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
	paths, err := build(ctx, programs...)
	if err != nil {
		return err
	}
	for _, p := range programs {
		fmt.Println(paths[p])
	}
	return nil
}

// build makes the programs and returns where they are.
func build(ctx context.Context, programs ...tools.Program) (map[tools.Program]string, error) {
	bench, err := tools.Open(".")
	if err != nil {
		return nil, err
	}
	paths := make(map[tools.Program]string)
	for _, p := range programs {
		if paths[p], err = bench.Build(ctx, p); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// resolve turns a server flag into a path: the name of a program that build
// makes, or the path of any binary.
func resolve(ctx context.Context, server string) (string, error) {
	for _, p := range []tools.Program{tools.Etcd, tools.Troupe} {
		if server == string(p) {
			paths, err := build(ctx, p)
			return paths[p], err
		}
	}
	return server, nil
}

// server is one server to measure.
type server struct{ Name, Binary string }

// pair resolves a -server flag, which is etcd, troupe or both, and a -bin flag,
// the path of the binary to run as troupe. etcd comes first.
func pair(ctx context.Context, which, bin string) ([]server, error) {
	var list []server
	for _, name := range []tools.Program{tools.Etcd, tools.Troupe} {
		if which != "both" && which != string(name) {
			continue
		}
		path := bin
		if name != tools.Troupe || bin == "" {
			var err error
			if path, err = resolve(ctx, string(name)); err != nil {
				return nil, err
			}
		}
		list = append(list, server{string(name), path})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("unknown server %q: etcd, troupe or both", which)
	}
	return list, nil
}
