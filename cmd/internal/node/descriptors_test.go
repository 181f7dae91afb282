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

// TestTooFewDescriptors: a limit that leaves too few descriptors for clients is refused. The
// error has the number that is needed, which includes the existing files.
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
		t.Errorf("limit %d: got %v, want no error", need, err)
	}
	err := checkDescriptors(need-1, dir, missing)
	if !errors.Is(err, errDescriptors) {
		t.Fatalf("limit %d: got %v, want %v", need-1, err, errDescriptors)
	}
	for _, want := range []string{fmt.Sprint(need - 1), fmt.Sprint(need), "ulimit -n"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

// TestConnectionsWithinDescriptors: connections get the descriptors that the store and the
// reserve leave, even when the store grows or is closed for a while.
func TestConnectionsWithinDescriptors(t *testing.T) {
	now, used, failure := time.Unix(0, 0), 20, error(nil)
	d := &descriptors{limit: 1024, count: func() (int, error) { return used, failure }, now: func() time.Time { return now }}
	check := func(what string, open, want int) {
		t.Helper()
		if got := d.connections(open); got != want {
			t.Errorf("%s: got %d connections, want %d", what, got, want)
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

// TestDescriptorsUsed: the open descriptors of the process are counted.
func TestDescriptorsUsed(t *testing.T) {
	limit, err := descriptorLimit()
	if err != nil || limit < 10 {
		t.Fatalf("got limit %d, %v, want at least 10", limit, err)
	}
	used, err := descriptorsUsed()
	if err != nil || used < 3 || uint64(used) >= limit {
		t.Errorf("got %d in use, %v, want between 3 and %d", used, err, limit)
	}
}
