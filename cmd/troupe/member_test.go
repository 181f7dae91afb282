package main

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/config"
)

// TestReusePort: two processes may listen on a port if both ask for it, and only then.
func TestReusePort(t *testing.T) {
	on := func(host string) []socket { return socketsOf([]url.URL{{Scheme: "http", Host: host}}, socket{}) }
	for _, shared := range []bool{true, false} {
		first, err := listen(on("127.0.0.1:0"), shared)
		if err != nil {
			t.Fatal(err)
		}
		second, err := listen(on(first[0].Addr().String()), shared)
		if (err == nil) != shared {
			t.Errorf("a second listener, shared %v: got %v", shared, err)
		}
		closeAll(append(first, second...))
	}
}

// TestStartMember: the addresses of the listeners are logged, also if the kernel chose
// the port. A start that is refused leaves the addresses free and the disk unchanged.
func TestStartMember(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	args := []string{"--small", "--data-dir", dir, "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:1", "--listen-peer-urls=http://127.0.0.1:0",
		"--listen-metrics-urls=unix://" + filepath.Join(t.TempDir(), "metrics"), "--socket-reuse-port"}
	parse := func(more ...string) *config.Config {
		t.Helper()
		cfg, _, err := config.Parse(append(args, more...), nil)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	exit := func(reason error) { t.Errorf("exit: %v", reason) }
	if _, err := startMember(t.Context(), parse("--initial-cluster-state=existing"), zerolog.Nop(), exit); err == nil {
		t.Fatal("a member of an existing cluster starts without data")
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the refused start left %s (%v)", dir, err)
	}
	var log output
	for range 2 { // the second time with data, for which the state does not count
		m, err := startMember(t.Context(), parse(), zerolog.New(zerolog.SyncWriter(&log)), exit)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		args = append(args, "--initial-cluster-state=existing")
	}
	for _, want := range []string{`"traffic":"grpc+http","address":"127.0.0.1:`, `"traffic":"metrics","address":"/`} {
		if n := strings.Count(log.String(), want); n != 2 {
			t.Errorf("got %d lines with %s, want 2:\n%s", n, want, log.String())
		}
	}
	if strings.Contains(log.String(), `"127.0.0.1:0"`) {
		t.Errorf("the log names port 0:\n%s", log.String())
	}
}
