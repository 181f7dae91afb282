// Package servers finds the binaries of the servers that a flag names, builds them
// if need be, and starts them.
package servers

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

// Texts of flags that several subcommands have.
const (
	BinUsage  = "the binary to run as troupe; it is built if empty"
	ArgsUsage = "flags for the servers"
)

// Server is a server to measure.
type Server struct {
	Name    string
	Binary  string
	Command []string // arguments before the flags
	Args    []string // flags; none for the server's defaults
	TLS     bool     // its client URL has https; Args have the certificates
}

// Judged reports whether bounds apply to the server: etcd is measured, but not
// judged.
func (s Server) Judged() bool { return s.Name != string(tools.Etcd) }

// Start runs the server with a fresh data folder in dir, and with more flags. The
// caller must close it.
func (s Server) Start(ctx context.Context, dir string, more ...string) (*proc.Server, error) {
	args := append(append([]string{}, s.Args...), more...)
	return proc.Start(ctx, proc.Config{Binary: s.Binary, Command: s.Command, Args: args, Name: s.Name, Dir: dir, TLS: s.TLS})
}

// Binary returns the path that a name stands for: etcd and troupe are built,
// anything else is a path already.
func Binary(ctx context.Context, name string) (string, error) {
	switch p := tools.Program(name); p {
	case tools.Etcd, tools.Troupe:
		return tools.BuildOne(ctx, p)
	}
	return name, nil
}

// List resolves a comma-separated list of names and paths.
func List(ctx context.Context, names string) ([]Server, error) {
	var list []Server
	for _, name := range strings.Split(names, ",") {
		path, err := Binary(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, Server{Name: filepath.Base(name), Binary: path})
	}
	return list, nil
}

// Pair resolves which, which is etcd, troupe or both; etcd comes first. If bin is
// not empty it is the path of the binary to run as troupe.
func Pair(ctx context.Context, which, bin string) ([]Server, error) {
	var list []Server
	for _, p := range []tools.Program{tools.Etcd, tools.Troupe} {
		if which != "both" && which != string(p) {
			continue
		}
		path := bin
		if p != tools.Troupe || bin == "" {
			var err error
			if path, err = tools.BuildOne(ctx, p); err != nil {
				return nil, err
			}
		}
		list = append(list, Server{Name: string(p), Binary: path})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("servers: unknown server %q: want etcd, troupe or both", which)
	}
	return list, nil
}
