package proc

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	// A program name with a space and a bracket must not shift the fields.
	const line = "4711 (a ) name) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 12 0 99 1 2"
	if got, err := parseCPU(line); err != nil || got != 2*time.Second {
		t.Fatalf("parseCPU = %v, %v; want 2s", got, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 a b"} {
		if _, err := parseCPU(bad); err == nil {
			t.Errorf("parseCPU(%q) accepted", bad)
		}
	}
}

func TestParseStatus(t *testing.T) {
	const status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
	if got, err := parseStatusKiB(status, "VmHWM:"); err != nil || got != 2<<20 {
		t.Fatalf("VmHWM = %d, %v", got, err)
	}
	if _, err := parseStatusKiB(status, "VmSwap:"); err == nil {
		t.Fatal("a missing line was accepted")
	}
	if _, err := parseStatusKiB("VmRSS: 1 MB\n", "VmRSS:"); err == nil {
		t.Fatal("an unknown unit was accepted")
	}
}

func TestLogTailFindsLinesAcrossWrites(t *testing.T) {
	l := newLogTail()
	found := l.expect("needle")
	for _, part := range []string{"first\nhas a nee", "dle in it"} {
		if _, err := l.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-found:
			t.Fatal("found before the line was complete")
		default:
		}
	}
	if _, err := l.Write([]byte("\nlast")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-found:
	default:
		t.Fatal("not found")
	}
	if got, want := l.String(), "first\nhas a needle in it\nlast"; got != want {
		t.Fatalf("tail %q, want %q", got, want)
	}
}

func TestLogTailKeepsTheNewest(t *testing.T) {
	l := newLogTail()
	for i := range 3 * tailLines {
		if _, err := l.Write([]byte(strings.Repeat("x", i) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSuffix(l.String(), "\n"), "\n")
	if len(lines) != tailLines || len(lines[0]) != 2*tailLines || len(lines[tailLines-1]) != 3*tailLines-1 {
		t.Fatalf("%d lines, first %d, last %d bytes", len(lines), len(lines[0]), len(lines[len(lines)-1]))
	}
}

// fakeServer writes a shell script that stands in for a server.
func fakeServer(t *testing.T, script string) Config {
	t.Helper()
	path := t.TempDir() + "/server"
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return Config{Binary: path, Name: "fake", Dir: t.TempDir()}
}

func TestLifeCycle(t *testing.T) {
	ctx := context.Background()
	cfg := fakeServer(t, "trap 'exit 0' TERM\necho \"$@\"\necho ready to serve client requests\nwhile :; do sleep 0.01; done\n")
	s, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Log(), "--listen-client-urls "+s.ClientURL()) {
		t.Fatalf("arguments not passed: %s", s.Log())
	}
	if u, err := s.Usage(); err != nil || u.RSS == 0 || u.PeakRSS < u.RSS {
		t.Fatalf("usage %+v, %v", u, err)
	}
	if err := s.Terminate(ctx); err != nil || s.Running() {
		t.Fatalf("terminate: %v, running %v", err, s.Running())
	}
	if err := s.Restart(ctx); err != nil || !s.Running() {
		t.Fatalf("restart: %v", err)
	}
	if err := s.Close(); err != nil || s.Running() {
		t.Fatalf("close: %v", err)
	}
	if _, err := os.Stat(s.root); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("data folder left behind: %v", err)
	}
}

func TestStartReportsAnEarlyExit(t *testing.T) {
	cfg := fakeServer(t, "echo bad flag >&2; exit 2\n")
	_, err := Start(context.Background(), cfg)
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "bad flag") {
		t.Fatalf("got %v", err)
	}
	if left, _ := os.ReadDir(cfg.Dir); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestTerminateReportsABadStatus(t *testing.T) {
	cfg := fakeServer(t, "trap 'exit 3' TERM\necho ready to serve client requests\nwhile :; do sleep 0.01; done\n")
	s, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Terminate(context.Background()); err == nil {
		t.Fatal("exit status 3 accepted")
	}
}
