package backend

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestBallast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ballast")
	const size = 3 << 20
	b := NewBallast(path, size)
	must(t, b.Release())
	if b.Held() {
		t.Fatal("held before it was created")
	}
	must(t, b.Create())
	n, err := allocatedBytes(filepath.Dir(path))
	must(t, err)
	if !b.Held() || n < size {
		t.Fatalf("%d bytes allocated", n)
	}
	must(t, os.Truncate(path, 100))
	if b.Held() {
		t.Fatal("a short ballast counts as held")
	}
	must(t, b.Create())
	must(t, b.Create())
	if !b.Held() {
		t.Fatal("not restored")
	}
	must(t, b.Release())
	if _, err := os.Stat(path); err == nil {
		t.Fatal("not released")
	}
	// More than any disk has: Create leaves no file.
	if err := NewBallast(path, 1<<60).Create(); err == nil {
		t.Fatal("an absurd ballast was created")
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a failed ballast left a file")
	}
}

func TestFreeSpace(t *testing.T) {
	free, total, err := FreeSpace(t.TempDir())
	must(t, err)
	if free == 0 || free > total {
		t.Fatalf("free %d of %d", free, total)
	}
	if _, _, err := FreeSpace(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}
