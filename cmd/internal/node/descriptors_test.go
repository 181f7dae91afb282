package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTooFewDescriptors: a start with a limit that leaves too few descriptors for
// clients is refused with what is needed, and counts the files that exist.
func TestTooFewDescriptors(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	missing := filepath.Join(dir, "missing")
	const need = descriptorReserve + connectionsMin + 5
	if err := checkDescriptors(need, dir, missing); err != nil {
		t.Errorf("with %d: %v, want no error", need, err)
	}
	err := checkDescriptors(need-1, dir, missing)
	if !errors.Is(err, errDescriptors) {
		t.Fatalf("with %d: %v, want %v", need-1, err, errDescriptors)
	}
	for _, want := range []string{fmt.Sprint(need - 1), fmt.Sprint(need), "ulimit -n"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

// TestConnectionsWithinDescriptors: connections get what the store and the reserve
// leave, also when the store grows or is closed for a while.
func TestConnectionsWithinDescriptors(t *testing.T) {
	now, used, failure := time.Unix(0, 0), 20, error(nil)
	d := &descriptors{limit: 1024, count: func() (int, error) { return used, failure }, now: func() time.Time { return now }}
	check := func(what string, open, want int) {
		t.Helper()
		if got := d.connections(open); got != want {
			t.Errorf("%s: %d connections, want %d", what, got, want)
		}
	}
	check("at the start", 0, 1024-descriptorReserve-20)
	used = 520
	check("before the next count", 400, 1024-descriptorReserve-20)
	now = now.Add(descriptorPeriod)
	check("the store has grown", 400, 1024-descriptorReserve-120)
	used, now = 410, now.Add(descriptorPeriod)
	check("the store is closed", 400, 1024-descriptorReserve-120)
	failure, now = errors.New("cannot count"), now.Add(descriptorPeriod)
	check("no count", 400, 1024-descriptorReserve-120)
	failure, used, now = nil, 1000, now.Add(descriptorPeriod)
	check("the store takes nearly all", 0, connectionsMin)
}

// TestDescriptorsUsed: a file that is opened is counted.
func TestDescriptorsUsed(t *testing.T) {
	limit, err := descriptorLimit()
	if err != nil || limit < 10 {
		t.Fatalf("limit %d, %v", limit, err)
	}
	used, err := descriptorsUsed()
	if err != nil || used < 3 || uint64(used) >= limit {
		t.Errorf("%d in use, %v", used, err)
	}
}
