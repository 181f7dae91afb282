package crashtest

import (
	"context"
	"fmt"
	"os"
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
	cfg.Env = append(cfg.Env, asFaulty+"="+string(faultsOf(*cfg)))
}

func faultsOf(cfg Config) faultFile { return faultFile(cfg.DataDir + ".faults") }

// afflict adds a fault to a faulty member.
func (c *cluster) afflict(m *clusterMember, fault string) {
	c.Helper()
	m.faulty = append(m.faulty, fault)
	if err := faultsOf(m.cfg).set(m.faulty...); err != nil {
		c.Fatal(err)
	}
}

// relieve takes all faults from a member.
func (c *cluster) relieve(m *clusterMember) {
	c.Helper()
	if m.faulty == nil {
		return
	}
	m.faulty = nil
	if err := faultsOf(m.cfg).set(); err != nil {
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
	c.afflict(old, stalls)
	others := c.others(old)
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
	c.relieve(old)
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
