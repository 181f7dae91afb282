package tidy

import (
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strings"
)

// What must not be used in code that a simulation runs, because it would make a run depend
// on more than its seed: the clocks and timers of the process, goroutines, sources of
// random numbers without a seed, and a select with several channels, which chooses at
// random among those that are ready. CheckSimulated finds it by syntax; see isSimulated
// for where, and unsimulated for the exceptions.

// unscheduled are functions that start timers or goroutines of the process, or choose
// among its goroutines, besides those of impurities, by the import path of their package.
var unscheduled = map[string][]string{
	"runtime": {"Gosched"},
	"context": {"AfterFunc", "WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"},
}

// isSimulated reports whether a simulation runs the code of a file: the kit, the actors,
// the pure cores, and of the adapters what stands in for the outside.
func isSimulated(f *File) bool {
	rank, ok := Rank(f.Dir)
	if !ok || rank < 1 || rank > 3 || slices.Contains(testSupport, f.Dir) {
		return false
	}
	return impure[f.Dir] == "" || slices.Contains(standIns, f.Path)
}

// CheckSimulated finds what makes simulated code depend on more than its seed, and
// exceptions that are no longer needed.
func (t *Tree) CheckSimulated() (findings []string) {
	used := map[[2]string]bool{}
	for _, f := range t.production() {
		if !isSimulated(f) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			what := f.unseeded(n)
			key := [2]string{f.Path, what}
			switch {
			case what == "":
			case unsimulated[key] != "":
				used[key] = true
			default:
				findings = append(findings, fmt.Sprintf("%s: %s in code that a simulation runs: use actors.Now, AfterFunc, Sleep, Yield, Float64 or Park, or except it in cmd/internal/tidy/exceptions.go", t.at(n), what))
			}
			return true
		})
	}
	for _, key := range slices.SortedFunc(maps.Keys(unsimulated), compareKeys) {
		if !used[key] && t.hasFile(key[0]) {
			findings = append(findings, fmt.Sprintf("%s no longer has %s: delete the exception from cmd/internal/tidy/exceptions.go", key[0], key[1]))
		}
	}
	return findings
}

func (t *Tree) hasFile(path string) bool {
	return slices.ContainsFunc(t.files, func(f *File) bool { return f.Path == path })
}

// unseeded names what a node uses that a seed does not control; "" if nothing.
func (f *File) unseeded(n ast.Node) string {
	switch n := n.(type) {
	case *ast.GoStmt:
		return "go"
	case *ast.SelectStmt:
		if channels(n) > 1 {
			return "select"
		}
	case *ast.SelectorExpr:
		p, name, ok := f.selector(n)
		if ok && (slices.Contains(impurities[p], name) || slices.Contains(unscheduled[p], name) || isUnseeded(p, name)) {
			return p + "." + name
		}
	}
	return ""
}

// channels returns the number of cases of a select, without the default.
func channels(s *ast.SelectStmt) (n int) {
	for _, c := range s.Body.List {
		if c.(*ast.CommClause).Comm != nil {
			n++
		}
	}
	return n
}

func isUnseeded(importPath, name string) bool {
	return importPath == "crypto/rand" || importPath == "hash/maphash" ||
		strings.HasPrefix(importPath, "math/rand") && usesGlobalSource(name)
}
