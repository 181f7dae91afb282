package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/node"
)

// fakeMember stands in for the member.
type fakeMember struct {
	done    chan error
	ready   chan struct{}
	stopped chan struct{} // closed when Stop begins
	release chan error    // what Stop returns
}

func newFake() *fakeMember {
	return &fakeMember{done: make(chan error, 1), ready: make(chan struct{}), stopped: make(chan struct{}), release: make(chan error, 1)}
}

func (m *fakeMember) Done() <-chan error     { return m.done }
func (m *fakeMember) Ready() <-chan struct{} { return m.ready }
func (m *fakeMember) Stop(context.Context) error {
	close(m.stopped)
	return <-m.release
}

// output is a buffer that the process and the test share.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

type run struct {
	stdout, stderr output
	signals        chan os.Signal
	code           chan int
}

func start(m *fakeMember, err error, args ...string) *run {
	return startBy(func(context.Context) (member, error) { return m, err }, args...)
}

// startBy runs a process whose member is started by a function.
func startBy(start func(context.Context) (member, error), args ...string) *run {
	r := &run{signals: make(chan os.Signal, 2), code: make(chan int, 1)}
	p := process{stdout: &r.stdout, stderr: &r.stderr, signals: r.signals,
		start:  func(ctx context.Context, _ *config.Config, _ zerolog.Logger) (member, error) { return start(ctx) },
		notify: notifyManager}
	go func() { r.code <- p.run(args, nil) }()
	return r
}

func (r *run) want(t *testing.T, code int, stderr string) {
	t.Helper()
	if got := <-r.code; got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	if !strings.Contains(r.stderr.String(), stderr) {
		t.Errorf("stderr lacks %q:\n%s", stderr, r.stderr.String())
	}
}

func TestSignalStopsInOrder(t *testing.T) {
	m := newFake()
	r := start(m, nil)
	r.signals <- syscall.SIGTERM
	<-m.stopped
	m.release <- nil
	r.want(t, exitOK, `"msg":"stopped"`)
}

// TestSecondSignal: signals within a second of the first are the same request, as
// when a process and its group are signalled; a later one ends the process.
func TestSecondSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		r := start(m, nil)
		r.signals <- syscall.SIGTERM
		r.signals <- syscall.SIGTERM
		<-m.stopped
		time.Sleep(secondSignalAfter - 1)
		r.signals <- syscall.SIGTERM
		synctest.Wait()
		m.release <- nil
		r.want(t, exitOK, `"msg":"stopped"`)
	})
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		r := start(m, nil)
		r.signals <- syscall.SIGTERM
		r.signals <- syscall.SIGTERM
		<-m.stopped
		time.Sleep(secondSignalAfter)
		r.signals <- syscall.SIGINT
		r.want(t, exitFailed, "second signal: interrupt")
		m.release <- nil
	})
}

// TestSignalDuringStart: a signal ends a start that waits, and the process if the start does
// not look up; a member that has started nevertheless is stopped in order.
func TestSignalDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		waits := func(ctx context.Context) (member, error) {
			<-ctx.Done()
			return nil, errors.New("the start waited")
		}
		r := startBy(waits)
		r.signals <- syscall.SIGTERM
		r.want(t, exitOK, `"start":"the start waited"`)
		if took := time.Since(began); took != 0 {
			t.Errorf("a start that waits: got %v until the end, want none", took)
		}

		end := make(chan struct{})
		r = startBy(func(context.Context) (member, error) { <-end; return nil, nil })
		r.signals <- syscall.SIGTERM
		r.want(t, exitOK, `"start":"the start has not ended in time"`)
		if took := time.Since(began); took != startStopTimeout {
			t.Errorf("a start that does not end: got %v until the end, want %v", took, startStopTimeout)
		}
		close(end)

		m := newFake()
		r = startBy(func(ctx context.Context) (member, error) { <-ctx.Done(); return m, nil })
		r.signals <- syscall.SIGTERM
		<-m.stopped
		m.release <- nil
		r.want(t, exitOK, `"msg":"stopped"`)
	})
}

// TestServiceManager: a service manager is notified when the member is ready and when
// it stops.
func TestServiceManager(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	heard := func(want string) {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("got %q, %v, want %q", b[:n], err, want)
		}
	}
	m := newFake()
	r := start(m, nil)
	close(m.ready)
	heard("READY=1")
	r.signals <- syscall.SIGTERM
	heard("STOPPING=1")
	m.release <- nil
	r.want(t, exitOK, `"msg":"stopped"`)

	// If the service manager is not there, the member logs it and continues.
	t.Setenv("NOTIFY_SOCKET", path+".gone")
	m = newFake()
	r = start(m, nil)
	r.signals <- syscall.SIGTERM
	m.release <- nil
	r.want(t, exitOK, "failed to notify the service manager")
}

func TestStopThatFails(t *testing.T) {
	m := newFake()
	r := start(m, nil)
	r.signals <- syscall.SIGTERM
	m.release <- errors.New("stuck")
	r.want(t, exitFailed, `"error":"stuck"`)
}

func TestMemberEndsByItself(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
		text string
	}{
		{nil, exitOK, "the member ended"},
		{fmt.Errorf("wrapped: %w", node.ErrRemoved), exitOK, `"error":"wrapped: node: the member has been removed`},
		{errors.New("broken pipe"), exitFailed, `"level":"fatal"`},
	} {
		m := newFake()
		m.done <- tc.err
		start(m, nil).want(t, tc.code, tc.text)
	}
}

func TestCannotStart(t *testing.T) {
	start(nil, errors.New("address already in use")).want(t, exitFailed, `"level":"fatal"`)
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--version"}, exitOK, "etcd Version: 3.7.3\nTroupe Version: ", ""},
		{[]string{"--help"}, exitOK, "--data-dir", "Usage:\n"},
		{[]string{"--bogus"}, exitUsage, "", "flag provided but not defined: -bogus\nUsage:\n"},
		{[]string{"--election-timeout=x"}, exitUsage, "", `invalid value "x" for flag -election-timeout: parse error`},
		{[]string{"--election-timeout=100"}, exitFailed, "", `"error":"--election-timeout[100ms] should be`},
		{[]string{"--log-outputs=" + filepath.Join(os.DevNull, "x")}, exitFailed, "", `"level":"fatal"`},
	} {
		r := start(nil, errors.New("not reached"), tc.args...)
		r.want(t, tc.code, tc.stderr)
		if !strings.Contains(r.stdout.String(), tc.stdout) {
			t.Errorf("%q: stdout lacks %q:\n%s", tc.args, tc.stdout, r.stdout.String())
		}
	}
}

// TestConfigurationIsLogged: the effective configuration and the warnings are in
// the log, in which every line is JSON.
func TestConfigurationIsLogged(t *testing.T) {
	m := newFake()
	m.done <- nil
	r := start(m, nil, "--name=n7", "--unsafe-no-fsync")
	r.want(t, exitOK, "starting with this configuration")
	var settings, warnings int
	for line := range strings.Lines(r.stderr.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e["name"] == "n7" && e["data-dir"] == "n7.etcd" && e["election-timeout"] == "1000" {
			settings++
		}
		if e["level"] == "warn" && e["name"] == "unsafe-no-fsync" {
			warnings++
		}
	}
	if settings != 1 || warnings != 1 {
		t.Errorf("%d lines with settings, %d with the warning:\n%s", settings, warnings, r.stderr.String())
	}
}

func TestVersionText(t *testing.T) {
	lines := strings.Split(versionText(), "\n")
	for i, want := range []string{"etcd Version: 3.7.3", "Troupe Version: ", "Git SHA: ", "Go Version: go1.", "Go OS/Arch: "} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is %q, want %q", i+1, lines[i], want)
		}
	}
}
