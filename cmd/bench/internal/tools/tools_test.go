package tools

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestOpenFindsTheModuleFromBelow(t *testing.T) {
	b, err := Open(".")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b.Root, "cmd", "bench", "load.mod")); err != nil {
		t.Fatalf("root %s does not hold the bench module: %v", b.Root, err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNoModule) {
		t.Fatalf("outside the module: %v, want ErrNoModule", err)
	}
}

func TestUpToDate(t *testing.T) {
	dir := t.TempDir()
	binary, mod := filepath.Join(dir, "binary"), filepath.Join(dir, "x.mod")
	if upToDate(binary, mod) {
		t.Fatal("got up to date without a binary, want not")
	}
	now := time.Now()
	for _, path := range []string{binary, mod} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now); err != nil {
			t.Fatal(err)
		}
	}
	if !upToDate(binary, mod) {
		t.Fatal("same age must count as up to date")
	}
	later := now.Add(time.Minute)
	if err := os.Chtimes(mod, later, later); err != nil {
		t.Fatal(err)
	}
	if upToDate(binary, mod) {
		t.Fatal("a newer mod file must cause a build")
	}
}
