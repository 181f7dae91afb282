package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestUsage: a command line that cannot be parsed prints the usage to stderr and exits
// with code 2; help that was asked for is printed to stdout.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // what is in them
	}{
		{"", 2, "", "usage:"},
		{"help", 0, "usage:", ""},
		{"--help", 0, "usage:", ""},
		{"-h", 0, "usage:", ""},
		{"verify -h", 0, "usage:", ""},
		{"wal dump --help", 0, "usage:", ""},
		{"version", 0, "troupectl Version: ", ""},
		{"frob", 2, "", `"frob"`},
		{"wal", 2, "", "wal dump"},
		{"wal frob x", 2, "", `"wal frob"`},
		{"verify", 2, "", "no data directory"},
		{"verify a b", 2, "", `"b"`},
		{"verify a --frob", 2, "", "frob"},
		{"verify a -w table", 2, "", `"table"`},
		{"wal dump a --from x", 2, "", "from"},
		{"verify /nonexistent/data", 1, "", "there is no directory /nonexistent/data"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(strings.Fields(c.args), &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("troupectl %s: exit code %d\n%s\n%s", c.args, code, &stdout, &stderr)
		}
		if c.stderr == "" && stderr.Len() > 0 || c.stdout == "" && stdout.Len() > 0 {
			t.Errorf("troupectl %s: on the wrong stream\n%s\n%s", c.args, &stdout, &stderr)
		}
	}
}
