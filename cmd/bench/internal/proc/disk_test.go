package proc

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDiskUsageCountsBlocksNotLength(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "deeper")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "full"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sparse.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := DiskUsage(dir)
	if err != nil || got < 1<<20 || got > 2<<20 {
		t.Fatalf("%d bytes, %v; want about 1 MiB", got, err)
	}
	if _, err := DiskUsage(filepath.Join(dir, "missing")); err == nil {
		t.Fatal("a missing folder counts as an empty one")
	}
}
