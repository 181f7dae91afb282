package crashtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestServer: the states and errors of a process that ends by itself, that is stopped, and
// that is killed.
func TestServer(t *testing.T) {
	script := func(text string) Config {
		path := filepath.Join(t.TempDir(), "server")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
		return Config{Binary: path, DataDir: "data", Args: []string{"--extra"}, Env: []string{"CRASHTEST=yes"}}
	}

	ends := Start(t, script(`echo "$CRASHTEST $@"; exit 3`))
	if err := ends.Ready(t.Context()); !errors.Is(err, ErrExited) || ends.State().ExitCode() != 3 {
		t.Errorf("ready: %v, state %v", err, ends.State())
	}
	for _, want := range []string{"yes --data-dir data", "--listen-client-urls http://" + ends.Addr(), "--extra"} {
		if !strings.Contains(ends.Log(), want) {
			t.Errorf("the log lacks %q: %s", want, ends.Log())
		}
	}
	if err := ends.Stop(t.Context()); err == nil {
		t.Error("exit code 3 is taken for an orderly stop")
	}

	runs := Start(t, script("exec sleep 1000"))
	if state := runs.State(); state != nil {
		t.Errorf("runs, and has state %v", state)
	}
	runs.Kill()
	<-runs.Exited()
	if state := runs.State(); state.Success() || state.Exited() {
		t.Errorf("killed, and has state %v", state)
	}
	runs.Kill()
	if c := runs.Config(); c.Client == "" || c.Peer == "" || c.Client == c.Peer {
		t.Errorf("addresses %q and %q", c.Client, c.Peer)
	}
}
