package tidy

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// root is the repository.
func root(t *testing.T) fs.FS {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatalf("this package is not where it was: %v", err)
	}
	return os.DirFS(dir)
}

func load(t *testing.T, fsys fs.FS) *Tree {
	t.Helper()
	tree, err := Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func report(t *testing.T, findings []string) {
	t.Helper()
	for _, f := range findings {
		t.Error(f)
	}
}

// The repository itself.

func TestImportsGoDown(t *testing.T)       { report(t, load(t, root(t)).CheckImports()) }
func TestCoresArePure(t *testing.T)        { report(t, load(t, root(t)).CheckCores()) }
func TestContractsHold(t *testing.T)       { report(t, load(t, root(t)).CheckContracts()) }
func TestNothingBannedIsUsed(t *testing.T) { report(t, load(t, root(t)).CheckBanned()) }
func TestNothingIsUnused(t *testing.T)     { report(t, load(t, root(t)).CheckUnused()) }

func TestSeedsDecide(t *testing.T) { report(t, load(t, root(t)).CheckSimulated()) }

func TestArchitectureNamesWhatExists(t *testing.T) {
	findings, err := load(t, root(t)).CheckDocument(root(t), "ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	report(t, findings)
}

func TestLayout(t *testing.T) {
	repository := root(t)
	entries := map[string][]string{}
	for _, dir := range []string{".", "cmd", "cmd/internal"} {
		list, err := fs.ReadDir(repository, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			entries[dir] = append(entries[dir], e.Name())
		}
	}
	ignored, err := fs.ReadFile(repository, ".gitignore")
	if err != nil {
		t.Fatal(err)
	}
	report(t, CheckTopLevel(entries, strings.Split(string(ignored), "\n")))
}

// The checks themselves: each finds what is planted, and nothing else.

const (
	roomDoc = `// Package walactor does things.
//
// # Hears
//
//	Append    do it
//	Tick      time passes
//
// # Says
//
//	Appended, Applied  to raft
//
// # Mailbox
//
//	Credit
//
// # Supervision
//
//	core
//
// # Invariants
//
//  1. None.
//
// # Blocks
//
//	never
package walactor
`
	roomCode = `package walactor
import (
	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)
func receive(m any) any {
	switch m := m.(type) {
	case *walmsg.Append:
		return m
	case *actors.Tick:
	}
	return []any{&raftmsg.Appended{}, &raftmsg.Applied{}, &raftmsg.Result{}}
}
`
	raftDoc  = "// Package raftactor hears.\n//\n// # Hears\n//\n//\tAppended  durable\n//\tApplied   visible\n//\n// # Says\n//\n// # Mailbox\n//\n// # Supervision\n//\n// # Invariants\n//\n// # Blocks\npackage raftactor\n"
	raftCode = `package raftactor
import "github.com/troupe-db/troupe/proto/raftmsg"
func receive(m any) {
	switch m.(type) {
	case *raftmsg.Appended:
	case *raftmsg.Applied:
	}
}
`
)

func TestPlanted(t *testing.T) {
	imports := (*Tree).CheckImports
	cores := (*Tree).CheckCores
	bans := (*Tree).CheckBanned
	contracts := (*Tree).CheckContracts
	simulated := (*Tree).CheckSimulated
	for _, tc := range []struct {
		name  string
		check func(*Tree) []string
		files map[string]string
		want  []string // one for each finding: a part of it
	}{
		{"down", imports, map[string]string{
			"grpcgw/a.go":           `package grpcgw; import _ "github.com/troupe-db/troupe/mvccactor/mvcc"`,
			"leaseactor/lease/a.go": `package lease; import _ "github.com/troupe-db/troupe/mvccactor/mvcc"`,
		}, nil},
		{"up", imports, map[string]string{"walactor/wal/a.go": `package wal; import _ "github.com/troupe-db/troupe/walactor"`}, []string{"rank 1 may not import rank 3"}},
		{"sideways", imports, map[string]string{"walactor/a.go": `package walactor; import _ "github.com/troupe-db/troupe/raftactor"`}, []string{"rank 3 may not import rank 3"}},
		{"other core", imports, map[string]string{"raftactor/replica/a.go": `package replica; import _ "github.com/troupe-db/troupe/walactor/wal"`}, []string{"rank 1 may not import rank 1"}},
		{"test may", imports, map[string]string{"walactor/a_test.go": `package walactor; import _ "github.com/troupe-db/troupe/raftactor"`}, nil},
		{"no rank", imports, map[string]string{"util/a.go": `package util; import _ "github.com/troupe-db/troupe/actors"`}, []string{"has no rank"}},
		{"to no rank", imports, map[string]string{"actors/a.go": `package actors; import _ "github.com/troupe-db/troupe/util"`}, []string{"which has no rank"}},
		{"test support", imports, map[string]string{"cmd/troupe/a.go": `package main; import _ "github.com/troupe-db/troupe/actors/actorstest"`}, []string{"for tests only", "no longer", "no longer", "no longer", "no longer", "no longer"}},
		{"old exception", imports, map[string]string{"actors/actorstest/a.go": `package actorstest`}, []string{"actors/actorstest no longer imports actors"}},
		{"other module", imports, map[string]string{"x/go.mod": "module x", "x/a.go": `package x; import _ "github.com/troupe-db/troupe/actors"`}, nil},

		{"pure", cores, map[string]string{"walactor/wal/a.go": `package wal
			import ("time"; "math/rand/v2")
			func f(now time.Time, r *rand.Rand) time.Duration { _ = rand.New(rand.NewPCG(1, 2)); return time.Second }`}, nil},
		{"clock", cores, map[string]string{"walactor/wal/a.go": `package wal
			import clock "time"
			var t = clock.Now()`}, []string{"use time.Now"}},
		{"dice", cores, map[string]string{"walactor/wal/a.go": `package wal
			import "math/rand/v2"
			var t = rand.IntN(3)`}, []string{"use math/rand/v2.IntN"}},
		{"goroutine", cores, map[string]string{"walactor/wal/a.go": "package wal\nfunc f() { go f() }"}, []string{"start a goroutine"}},
		{"core with actors", cores, map[string]string{"mvccactor/backend/a.go": `package backend; import _ "github.com/asynkron/protoactor-go/actor"`}, []string{"must not use actors"}},
		{"adapter", cores, map[string]string{"mvccactor/backend/a.go": "package backend\nfunc f() { go f() }"}, nil},
		{"shell", cores, map[string]string{"walactor/a.go": "package walactor\nfunc f() { go f() }"}, nil},

		{"seeded", simulated, map[string]string{
			"walactor/a.go": `package walactor
				import ("math/rand/v2"; "time")
				func f(a, b chan int, r *rand.Rand, d time.Duration) {
					select { case <-a: default: }
					_ = time.Duration(r.IntN(3)) + d
				}`,
			"cmd/troupe/a.go":        `package main; import "time"; var t = time.Now()`,
			"mvccactor/backend/a.go": `package backend; func f() { go f() }`,
			"actors/actorstest/a.go": `package actorstest; func f() { go f() }`,
			"walactor/a_test.go":     `package walactor; func g() { go g() }`,
		}, nil},
		{"unseeded", simulated, map[string]string{"walactor/a.go": `package walactor
			import ("context"; "crypto/rand"; dice "math/rand/v2"; "time")
			func f(a, b chan int) {
				go f(a, b)
				select { case <-a: case <-b: }
				time.Sleep(1)
				_ = dice.IntN(3)
				_ = rand.Reader
				_, _ = context.WithTimeout(nil, 1)
			}`, "mvccactor/backend/memory.go": `package backend; func f() { go f() }`},
			[]string{"memory.go:1: go in code", "a.go:4: go", "a.go:5: select", "time.Sleep", "math/rand/v2.IntN", "crypto/rand.Reader", "context.WithTimeout"}},
		{"old exception of a file", simulated, map[string]string{"actors/reply.go": `package actors`}, []string{"reply.go no longer has select"}},

		{"banned function", bans, map[string]string{"walactor/a.go": `package walactor
			import "github.com/asynkron/protoactor-go/actor"
			var m = actor.Bounded(5)`}, []string{"Bounded is banned"}},
		{"banned method", bans, map[string]string{"walactor/a_test.go": `package walactor
			import a "github.com/asynkron/protoactor-go/actor"
			func f(c a.Context) { c.SetReceiveTimeout(1) }`}, []string{"SetReceiveTimeout is banned"}},
		{"allowed in the kit", bans, map[string]string{"actors/a.go": `package actors
			import "github.com/asynkron/protoactor-go/actor"
			func f(c actor.Context) { c.StopFuture(nil) }`}, nil},
		{"not allowed outside", bans, map[string]string{"walactor/a.go": `package walactor
			import "github.com/asynkron/protoactor-go/actor"
			func f(c actor.Context) { c.StopFuture(nil) }`}, []string{"StopFuture is banned"}},
		{"same name elsewhere", bans, map[string]string{"walactor/a.go": `package walactor
			import ("github.com/asynkron/protoactor-go/actor"; "x/queue")
			var m actor.Actor = queue.Bounded(5)`}, nil},
		{"banned package", bans, map[string]string{"raftactor/a.go": `package raftactor; import _ "github.com/asynkron/protoactor-go/remote"`}, []string{"no backpressure"}},

		{"contract", contracts, map[string]string{"walactor/doc.go": roomDoc, "walactor/actor.go": roomCode, "raftactor/doc.go": raftDoc, "raftactor/actor.go": raftCode}, nil},
		{"unlisted message", contracts, map[string]string{"walactor/doc.go": roomDoc,
			"walactor/actor.go": strings.Replace(roomCode, "case *walmsg.Append:", "case *walmsg.Trim:\n\tcase *walmsg.Append:", 1)},
			[]string{"handles Trim"}},
		{"message that is not handled", contracts, map[string]string{"walactor/doc.go": roomDoc,
			"walactor/actor.go": strings.Replace(roomCode, "case *walmsg.Append:", "case *walmsg.Append_Wrapper:", 1)},
			[]string{"# Hears lists Append"}},
		{"unlisted outcome", contracts, map[string]string{"walactor/doc.go": strings.Replace(roomDoc, "Appended, Applied", "Appended", 1),
			"walactor/actor.go": roomCode, "raftactor/doc.go": raftDoc, "raftactor/actor.go": raftCode},
			[]string{"makes a Applied"}},
		{"outcome that is not sent", contracts, map[string]string{"walactor/doc.go": strings.Replace(roomDoc, "Applied", "Applied, Trimmed", 1),
			"walactor/actor.go": roomCode}, []string{"# Says lists Trimmed"}},
		{"no contract", contracts, map[string]string{"leaseactor/a.go": "package leaseactor"}, []string{"must have"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, source := range tc.files {
				fsys[name] = &fstest.MapFile{Data: []byte(source)}
			}
			got := tc.check(load(t, fsys))
			ok := len(got) == len(tc.want)
			for i := 0; ok && i < len(got); i++ {
				ok = strings.Contains(got[i], tc.want[i])
			}
			if !ok {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTopLevelPlanted(t *testing.T) {
	entries := map[string][]string{
		".":   {"actors", "bin", "x.prof", "util", "README.md"},
		"cmd": {"troupe", "tool", "x.test"},
	}
	got := CheckTopLevel(entries, []string{"/bin/", "*.test", "*.prof", ""})
	if len(got) != 2 || !strings.HasPrefix(got[0], "util ") || !strings.HasPrefix(got[1], "cmd/tool ") {
		t.Errorf("found %q", got)
	}
}

func TestDocumentPlanted(t *testing.T) {
	fsys := fstest.MapFS{
		"walactor/a.go": {Data: []byte(`package walactor
			type Actor struct { Limit int }
			type Box[T any] struct{}
			type Disk interface { Sync() }
			const Max = 1
			func New() {}
			func (a *Actor) batch() {}
			func (b *Box[T]) Put() {}`)},
		"walactor/a_test.go": {Data: []byte("package walactor_test\nfunc TestNew() {}")},
		"cmd/bench/go.mod":   {Data: []byte("module bench")},
		"cmd/bench/b.go":     {Data: []byte("package main")},
	}
	for _, tc := range []struct {
		text string
		want []string // one for each finding: a part of it
	}{
		{"`walactor`, `make test`, `--data-dir`, `edge/reads`, `/metrics`, `nothing`", nil},
		{"`walactor/a.go`, `a.go`, `walactor/*_test.go`, `a*_test.go`, `cmd/bench`, `b.go`", nil},
		{"`walactor.New`, `walactor.Max`, `Actor.batch`, `walactor.Actor.Limit`, `Box.Put`, `Disk.Sync`, `TestNew`", nil},
		{"```\n`walactor.Old`\n```\n", nil},
		{"first\nsee `walactor/b.go`", []string{"DOC.md:2: `walactor/b.go`"}},
		{"`c.go` and `cmd/none`", []string{"`c.go`", "`cmd/none`"}},
		{"`walactor.Old`, `Actor.old`, `walactor.Actor.old`, `raftactor.New`, `TestOld`",
			[]string{"`walactor.Old`", "`Actor.old`", "`walactor.Actor.old`", "`raftactor.New`", "`TestOld`"}},
	} {
		fsys["DOC.md"] = &fstest.MapFile{Data: []byte(tc.text)}
		got, err := load(t, fsys).CheckDocument(fsys, "DOC.md")
		ok := err == nil && len(got) == len(tc.want)
		for i := 0; ok && i < len(got); i++ {
			ok = strings.Contains(got[i], tc.want[i])
		}
		if !ok {
			t.Errorf("%q: found %q, error %v, want %q and no error", tc.text, got, err, tc.want)
		}
	}
}

func TestRank(t *testing.T) {
	for dir, want := range map[string]int{
		"cmd/troupe": 5, "cmd/internal/node": 5, "grpcgw": 4, "walactor": 3, "actors": 2, "actors/actorstest": 2,
		"walactor/wal": 1, "walactor/wal/waltest": 1, "proto/walmsg": 0,
	} {
		if got, ok := Rank(dir); !ok || got != want {
			t.Errorf("%s: %d, %v, want %d", dir, got, ok, want)
		}
	}
	for _, dir := range []string{".", "cmd", "proto", "util", "actor", "internal/x"} {
		if got, ok := Rank(dir); ok {
			t.Errorf("%s has rank %d", dir, got)
		}
	}
}

// TestExceptionsExist: every folder and file that is excepted or expected exists.
func TestExceptionsExist(t *testing.T) {
	named := slices.Concat(slices.Collect(maps.Keys(impure)), slices.Collect(maps.Keys(inner)), testSupport, standIns, topLevel)
	for key := range unsimulated {
		named = append(named, key[0])
	}
	for dir, entries := range commands {
		for _, e := range entries {
			named = append(named, dir+"/"+e)
		}
	}
	for _, name := range named {
		if _, err := fs.Stat(root(t), name); err != nil && name != ".git" {
			t.Errorf("exceptions.go names %s: %v", name, err)
		}
	}
}

// TestExceptionsHaveReasons: every exception has a reason.
func TestExceptionsHaveReasons(t *testing.T) {
	var reasons []string
	for _, r := range sideways {
		reasons = append(reasons, r)
	}
	for _, r := range inner {
		reasons = append(reasons, r)
	}
	for _, r := range impure {
		reasons = append(reasons, r)
	}
	for _, r := range unsimulated {
		reasons = append(reasons, r)
	}
	for _, b := range banned {
		reasons = append(reasons, b.why)
	}
	if slices.Contains(reasons, "") {
		t.Error("an exception or a ban has no reason")
	}
}
