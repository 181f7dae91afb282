package crashtest

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestSignals: a member notifies its service manager when it serves and when it stops, and
// two signals at once, as when a process and its group are signalled, are one request to
// stop.
func TestSignals(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	s := Serve(t, Config{Binary: Build(t, false), DataDir: t.TempDir(), Args: []string{"--small"}, Env: []string{"NOTIFY_SOCKET=" + socket}})
	notified := func(want string) {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(readyTimeout)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		if n, err := manager.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("got %q, %v, want %q\n%s", b[:n], err, want, s.Log())
		}
	}
	notified("READY=1")
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} { // two of a kind may become one
		if err := s.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	notified("STOPPING=1")
	<-s.Exited()
	if !s.State().Success() {
		t.Errorf("got %v, want success\n%s", s.State(), s.Log())
	}
}
