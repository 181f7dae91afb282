package crashtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// stallFor is for how long TestClusterStalledDisk stalls a disk.
	stallFor = 10 * time.Second
	// stallLeader is the longest time for another member to lead when the leader's disk stalls,
	// with -fault-strict.
	stallLeader = 2 * time.Second
)

// faultyMember changes the configuration to run such a member.
func faultyMember(_ int, cfg *Config) {
	cfg.Binary = os.Args[0]
	cfg.Env = append(cfg.Env, asFaulty+"="+stallFile(*cfg))
}

// stallFile is the file that makes the disk of a faulty member stall.
func stallFile(cfg Config) string { return cfg.DataDir + ".stall" }

// stall makes the disk of a faulty member stall, or work again.
func (c *cluster) stall(m *clusterMember, on bool) {
	c.Helper()
	err := os.WriteFile(stallFile(m.cfg), nil, 0o600)
	if !on {
		if err = os.Remove(stallFile(m.cfg)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		c.Fatal(err)
	}
}

// TestClusterStalledDisk: when the leader's fsync stalls, another member leads soon, and
// clients of the others go on without an error. Afterwards the member catches up.
func TestClusterStalledDisk(t *testing.T) {
	onlyLong(t)
	t.Parallel() // it mostly waits
	c := startCluster(t, "", 3, nil, faultyMember)
	old := c.leader()
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	var writes atomic.Int64
	var longest [3]time.Duration
	for i, m := range c.members {
		if m == old {
			continue
		}
		writers.Go(func() { // ends with ctx
			for n := 0; ctx.Err() == nil; n++ {
				began := time.Now()
				if _, err := m.client.Put(ctx, m.name, fmt.Sprint(n)); err != nil && ctx.Err() == nil {
					t.Errorf("put through %s: %v", m.name, err)
					return
				}
				longest[i] = max(longest[i], time.Since(began))
				writes.Add(1)
			}
		})
	}
	stop := func() { cancel(); writers.Wait() }
	defer stop()
	c.await("writes", func() bool { return writes.Load() > 100 })
	began := time.Now()
	c.stall(old, true)
	others := slices.DeleteFunc(slices.Clone(c.members), func(m *clusterMember) bool { return m == old })
	c.await("another member leads", func() bool {
		for _, m := range others {
			status, err := m.client.Status(ctx, m.cfg.Client)
			if err != nil || status.Leader == 0 || status.Leader == old.id {
				return false
			}
		}
		return true
	})
	elected := time.Since(began)
	if *faultStrict && elected > stallLeader {
		t.Errorf("another member leads after %v, want at most %v", elected, stallLeader)
	}
	before := writes.Load()
	<-time.After(stallFor - elected) // until the stall has lasted stallFor
	if got := writes.Load(); got == before {
		t.Errorf("no write while the disk stalled")
	}
	if now := c.leader(); now == old {
		t.Errorf("%s leads with a stalled disk", old.name)
	}
	c.stall(old, false)
	c.what = "after the stall"
	c.serves(old, outageMax())
	stop()
	resp, err := old.client.Get(t.Context(), "none")
	if err != nil {
		t.Fatal(err)
	}
	c.sameHash(resp.Header.Revision)
	t.Logf("another member leads after %v; %d writes, the longest took %v", elected, writes.Load(), max(longest[0], longest[1], longest[2]))
}

// await waits for a condition.
func (c *cluster) await(what string, ok func() bool) {
	c.Helper()
	for end := time.Now().Add(readyTimeout); !ok(); <-time.After(stallPoll) {
		if time.Now().After(end) {
			c.Fatalf("still waiting: %s", what)
		}
	}
}
