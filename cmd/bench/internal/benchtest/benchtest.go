// Package benchtest has helpers for the tests of the measurements.
package benchtest

import (
	"testing"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// Program builds a program and returns its path.
func Program(t *testing.T, p tools.Program) string {
	t.Helper()
	path, err := tools.BuildOne(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Troupe builds Troupe.
func Troupe(t *testing.T) servers.Server {
	t.Helper()
	return servers.Server{Name: string(tools.Troupe), Binary: Program(t, tools.Troupe)}
}

// Start runs Troupe until the end of the test.
func Start(t *testing.T) *proc.Server {
	t.Helper()
	server, err := Troupe(t).Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Failed returns the texts of the verdicts that do not hold.
func Failed(verdicts []verdict.Verdict) (failed []string) {
	for _, v := range verdicts {
		if !v.OK {
			failed = append(failed, v.What)
		}
	}
	return failed
}
