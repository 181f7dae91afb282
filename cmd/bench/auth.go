package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/scenario"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/logins"
)

func runAuth(ctx context.Context, args []string) (err error) {
	s := scenario.NewReported("auth", "", args)
	var (
		cfg    logins.Config
		names  = s.Flags.String("servers", "etcd,troupe", "servers; etcd is measured, but not judged")
		extra  = s.Flags.String("args", "", servers.ArgsUsage)
		secure = s.Flags.Bool("tls", true, "TLS with certificates of clients")
		storms = s.Flags.String("storms", string(logins.Right)+","+string(logins.Wrong), "storms of clients with right and with wrong passwords; none if empty")
	)
	s.Flags.IntVar(&cfg.Users, "users", 100, "users with a password each")
	s.Flags.IntVar(&cfg.Puts, "puts", 1000, "puts per second")
	s.Flags.IntVar(&cfg.Logins, "logins", 200, "logins per second, without a storm")
	s.Flags.IntVar(&cfg.Rounds, "rounds", 5, "windows without logins, each followed by one with them")
	s.Flags.DurationVar(&cfg.Window, "window", 10*time.Second, "length of a window, and of a storm with wrong passwords")
	s.Flags.IntVar(&cfg.Crowd, "crowd", 2000, "clients of a storm, each with a connection of its own")
	s.Flags.DurationVar(&cfg.Limit, "limit", 2*time.Minute, "time for all clients of a storm to log in")
	if err := s.Parse(); err != nil {
		return err
	}
	if cfg.Servers, err = servers.List(ctx, *names); err != nil {
		return err
	}
	if *secure {
		if cfg.TLS, err = pki.Make(s.Dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, cfg.TLS.Remove()) }()
	}
	for _, kind := range strings.FieldsFunc(*storms, func(r rune) bool { return r == ',' }) {
		cfg.Storm = append(cfg.Storm, logins.Kind(kind))
	}
	cfg.Args, cfg.Dir = strings.Fields(*extra), s.Dir
	return s.Report(ctx, func(out io.Writer) ([]verdict.Verdict, error) {
		cfg.Out = out
		return logins.Run(ctx, cfg)
	})
}
