package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestReleaseImage: the pages of the program leave memory, and it goes on.
func TestReleaseImage(t *testing.T) {
	before := fileBytes(t)
	if err := releaseImage(); err != nil {
		t.Fatal(err)
	}
	if after := fileBytes(t); after >= before {
		t.Errorf("got %d kB of files in memory, before it were %d", after, before)
	}
}

// fileBytes returns how much memory pages of files take, in kB.
func fileBytes(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile")
	return 0
}
