package crashtest

import (
	"os"
	"path/filepath"
	"testing"
)

// TestClusterDiskFull: a filler fills the disk of one member of three completely, under load.
// All members refuse puts and go on with deletes and reads, also when the member is killed.
// When there is space again, the alarm is cleared, and nothing acknowledged is lost.
//
// The disk is a tmpfs in the mount namespace of a separate process.
func TestClusterDiskFull(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		onlyLong(t)
		t.Parallel() // it mostly waits
		again(t)
		return
	}
	dir := t.TempDir()
	mount(t, dir)
	binary := Build(t, false)
	c := startCluster(t, binary, 3, []string{"--auto-compaction-retention=0"}, func(i int, cfg *Config) {
		if i == 1 {
			cfg.DataDir = filepath.Join(dir, "data")
		}
	})
	full, healthy := c.members[1], c.members[0]
	l := fillLoad(healthy.client)
	l.await(t, healthy.server, &l.acked, 500)
	fill := startFiller(t, filepath.Join(dir, "filler"))
	for _, m := range c.members {
		await(t, m.server, "the alarm is raised", func() bool { return alarmed(t, m.client) })
	}
	await(t, full.server, "the disk is full", func() bool { return free(t, dir) == 0 })
	l.await(t, healthy.server, &l.refused, 100)
	l.await(t, healthy.server, &l.deleted, 100)
	compact(t, healthy.client)
	if full.server.State() != nil {
		t.Fatalf("the full member ended: %v\n%s", full.server.State(), full.server.Log())
	}
	// The alarm stays while the member that raised it does not run.
	c.kill(full)
	l.await(t, healthy.server, &l.deleted, 100)
	l.await(t, healthy.server, &l.refused, 100)
	fill.stop()
	c.launch(full)
	c.ready(full)
	for _, m := range c.members {
		await(t, m.server, "the alarm is cleared", func() bool { return !alarmed(t, m.client) })
	}
	l.await(t, healthy.server, &l.acked, 100)
	l.stop()
	l.check(t)
	resp, err := healthy.client.Get(t.Context(), "none")
	if err != nil {
		t.Fatal(err)
	}
	c.sameHash(resp.Header.Revision)
	t.Logf("%d puts acknowledged, %d refused, %d deletes acknowledged", l.acked.Load(), l.refused.Load(), l.deleted.Load())
}
