package tidy

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strings"
)

// Rank returns the rank of a package by its folder; see ARCHITECTURE.md. Imports
// go from a higher rank to a lower one.
func Rank(dir string) (int, bool) {
	first, rest, deeper := strings.Cut(dir, "/")
	switch {
	case first == "cmd" && deeper:
		return 5, true
	case first == "grpcgw":
		return 4, true
	case first == "actors":
		return 2, true
	case first == "proto" && deeper:
		return 0, true
	case isRoom(first) && (rest == "" || inner[dir] != ""):
		return 3, true
	case isRoom(first):
		return 1, true
	}
	return 0, false
}

// isRoom reports whether a folder at the root belongs to an actor.
func isRoom(dir string) bool { return strings.HasSuffix(dir, "actor") && dir != "actor" }

// CheckImports finds production imports that do not go down the ranks, and exceptions
// that are no longer needed.
func (t *Tree) CheckImports() (findings []string) {
	used := map[[2]string]bool{}
	for _, f := range t.production() {
		for _, p := range slices.Sorted(maps.Values(f.imports)) {
			if to, ok := inside(p); ok {
				findings = append(findings, checkImport(f, to, used)...)
			}
		}
	}
	for _, e := range slices.SortedFunc(maps.Keys(sideways), compareKeys) {
		if !used[e] && t.has(e[0]) {
			findings = append(findings, fmt.Sprintf("%s no longer imports %s: delete the exception from cmd/internal/tidy/exceptions.go", e[0], e[1]))
		}
	}
	return findings
}

func compareKeys(a, b [2]string) int { return slices.Compare(a[:], b[:]) }

func (t *Tree) has(dir string) bool {
	return slices.ContainsFunc(t.files, func(f *File) bool { return f.Dir == dir })
}

func checkImport(f *File, to string, used map[[2]string]bool) []string {
	from, ok := Rank(f.Dir)
	if !ok {
		return []string{fmt.Sprintf("%s: the folder %s has no rank: put the package into a room of ARCHITECTURE.md, or give it a rank in cmd/internal/tidy/checks.go", f.Path, f.Dir)}
	}
	down, ok := Rank(to)
	if !ok {
		return []string{fmt.Sprintf("%s imports %s, which has no rank", f.Path, to)}
	}
	if slices.Contains(testSupport, to) && !slices.Contains(testSupport, f.Dir) {
		return []string{fmt.Sprintf("%s imports %s, which is for tests only", f.Path, to)}
	}
	key := [2]string{f.Dir, to}
	switch {
	case sideways[key] != "":
		used[key] = true
		return nil
	case from > down, from == 1 && to == viewCore:
		return nil
	}
	return []string{fmt.Sprintf("%s imports %s, but imports go down: rank %d may not import rank %d. Pass it in as an interface or a function, or move what is shared down", f.Path, to, from, down)}
}

// impurities are functions that a core must not use, by the import path of their
// package.
var impurities = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
}

// seeded are the functions of math/rand that make a new source. All others use the
// global one.
var seeded = []string{"New", "NewSource", "NewPCG", "NewChaCha8", "NewZipf"}

// CheckCores finds cores that import protoactor, start goroutines, read the clock, or
// use the global source of random numbers.
func (t *Tree) CheckCores() (findings []string) {
	for _, f := range t.production() {
		if rank, ok := Rank(f.Dir); !ok || rank != 1 {
			continue
		}
		for _, p := range slices.Sorted(maps.Values(f.imports)) {
			if isProtoactor(p) {
				findings = append(findings, fmt.Sprintf("%s imports %s: a core must not use actors", f.Path, p))
			}
		}
		if impure[f.Dir] == "" && !slices.Contains(testSupport, f.Dir) {
			findings = append(findings, t.impurities(f)...)
		}
	}
	return findings
}

func isProtoactor(importPath string) bool {
	return strings.HasPrefix(importPath, "github.com/asynkron/protoactor-go")
}

func (t *Tree) impurities(f *File) (findings []string) {
	complain := func(n ast.Node, what, instead string) {
		findings = append(findings, fmt.Sprintf("%s: a core must not %s: %s, so that a test controls it", t.at(n), what, instead))
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			complain(n, "start a goroutine", "let the actor around it call it")
		case *ast.SelectorExpr:
			switch p, name, ok := f.selector(n); {
			case !ok:
			case slices.Contains(impurities[p], name):
				complain(n, "use "+p+"."+name, "take the time as an argument")
			case strings.HasPrefix(p, "math/rand") && usesGlobalSource(name):
				complain(n, "use "+p+"."+name, "take a seeded *rand.Rand as an argument")
			}
		}
		return true
	})
	return findings
}

// usesGlobalSource reports whether a name of math/rand is a function that uses the
// global source, and not a type or a function that makes a source.
func usesGlobalSource(name string) bool {
	types := []string{"Rand", "Source", "Source64", "Zipf", "PCG", "ChaCha8"}
	return !slices.Contains(seeded, name) && !slices.Contains(types, name)
}

// CheckBanned finds uses of the banned parts of protoactor-go, in tests too.
func (t *Tree) CheckBanned() (findings []string) {
	for _, f := range t.files {
		knows := false
		for _, p := range slices.Sorted(maps.Values(f.imports)) {
			if !isProtoactor(p) {
				continue
			}
			knows = true
			name, _, _ := strings.Cut(strings.TrimPrefix(p, "github.com/asynkron/protoactor-go/"), "/")
			if why := bannedPackages[name]; why != "" {
				findings = append(findings, fmt.Sprintf("%s imports %s: %s", f.Path, p, why))
			}
		}
		if knows {
			findings = append(findings, t.bannedIn(f)...)
		}
	}
	return findings
}

func (t *Tree) bannedIn(f *File) (findings []string) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		b, ok := banned[s.Sel.Name]
		if p, _, isPackage := f.selector(s); isPackage && !isProtoactor(p) {
			ok = false // of another package
		}
		if ok && !slices.Contains(b.allowed, f.Dir) {
			findings = append(findings, fmt.Sprintf("%s: %s is banned: %s", t.at(s), s.Sel.Name, b.why))
		}
		return true
	})
	return findings
}

// CheckTopLevel finds entries at the root, and commands, that are not part of the
// layout. Ignored are patterns of .gitignore.
func CheckTopLevel(entries map[string][]string, ignored []string) (findings []string) {
	for _, dir := range slices.Sorted(maps.Keys(entries)) {
		allowed := topLevel
		if dir != "." {
			allowed = commands[dir]
		}
		for _, name := range entries[dir] {
			if !slices.Contains(allowed, name) && !isIgnored(path.Join(dir, name), ignored) {
				findings = append(findings, fmt.Sprintf("%s is not part of the layout: move it into a room of ARCHITECTURE.md, or add it to cmd/internal/tidy/exceptions.go", path.Join(dir, name)))
			}
		}
	}
	return findings
}

func isIgnored(name string, patterns []string) bool {
	for _, p := range patterns {
		p, rooted := strings.CutPrefix(strings.TrimSuffix(strings.TrimSpace(p), "/"), "/")
		target := name
		if !rooted {
			target = path.Base(name)
		}
		if ok, err := path.Match(p, target); ok && err == nil {
			return true
		}
	}
	return false
}
