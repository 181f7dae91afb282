// Package tools builds the programs that the comparisons run: real etcd with
// its command-line tools, etcd's own load generator, and Troupe itself.
//
// etcd's programs come from pinned Go modules. The server and the load
// generator do not resolve in one module graph, so each has a mod file of its
// own beside go.mod (etcd.mod, load.mod).
package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoModule is returned by Open when no folder at or above the starting
// point holds the bench module's mod files.
var ErrNoModule = errors.New("tools: not inside the bench module")

// Program is one thing that Build can make. The value is the file name under
// bin/.
type Program string

// The programs that the subcommands use.
const (
	Etcd      Program = "etcd"      // the reference server, 3.7.3
	Etcdctl   Program = "etcdctl"   // its command-line client
	Etcdutl   Program = "etcdutl"   // its offline tool
	Benchmark Program = "benchmark" // its load generator, 3.6.8
	Troupe    Program = "troupe"    // the server under test
)

// recipe says how a pinned program is built.
type recipe struct {
	modFile string // beside go.mod
	pkg     string // import path of the main package
}

var recipes = map[Program]recipe{
	Etcd:      {"etcd.mod", "go.etcd.io/etcd/server/v3"},
	Etcdctl:   {"etcd.mod", "go.etcd.io/etcd/etcdctl/v3"},
	Etcdutl:   {"etcd.mod", "go.etcd.io/etcd/etcdutl/v3"},
	Benchmark: {"load.mod", "go.etcd.io/etcd/v3/tools/benchmark"},
}

// All lists every program, in the order in which they are built.
func All() []Program { return []Program{Etcd, Etcdctl, Etcdutl, Benchmark, Troupe} }

// Bench is the checked-out bench module.
type Bench struct {
	Dir  string // the folder that holds etcd.mod and load.mod
	Root string // the root module, which holds cmd/troupe
}

// Open finds the bench module at or above dir.
func Open(dir string) (Bench, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Bench{}, fmt.Errorf("tools: %w", err)
	}
	for at := abs; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "etcd.mod")); err == nil {
			return Bench{Dir: at, Root: filepath.Join(at, "..", "..")}, nil
		}
		if at == filepath.Dir(at) {
			return Bench{}, fmt.Errorf("%w (looked upwards from %s)", ErrNoModule, abs)
		}
	}
}

// Path returns the path of the built program.
func (b Bench) Path(p Program) string { return filepath.Join(b.Dir, "bin", string(p)) }

// Build makes the program and returns its path. A pinned program is built only if it
// is missing or older than its mod file; for Troupe the go command is always run, which
// does nothing if the sources have not changed.
func (b Bench) Build(ctx context.Context, p Program) (string, error) {
	if p == Troupe {
		return b.buildTroupe(ctx)
	}
	r, ok := recipes[p]
	if !ok {
		return "", fmt.Errorf("tools: unknown program %q", p)
	}
	out := b.Path(p)
	if upToDate(out, filepath.Join(b.Dir, r.modFile)) {
		return out, nil
	}
	return out, goBuild(ctx, b.Dir, "-modfile="+r.modFile, "-o", out, r.pkg)
}

// BuildOne makes a program of the bench module that the working directory is in, and
// returns its path.
func BuildOne(ctx context.Context, p Program) (string, error) {
	bench, err := Open(".")
	if err != nil {
		return "", err
	}
	return bench.Build(ctx, p)
}

func (b Bench) buildTroupe(ctx context.Context) (string, error) {
	out := b.Path(Troupe)
	return out, goBuild(ctx, b.Root, "-o", out, "./cmd/troupe")
}

// upToDate reports whether the binary exists and its mod file has not changed
// since.
func upToDate(binary, modFile string) bool {
	made, err := os.Stat(binary)
	if err != nil {
		return false
	}
	pinned, err := os.Stat(modFile)
	return err == nil && !pinned.ModTime().After(made.ModTime())
}

func goBuild(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tools: go build %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
