package crashtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Sentinel errors of Ready and Stop.
var (
	// ErrExited means that the process ended before it served.
	ErrExited = errors.New("crashtest: the server exited before it was ready")
	// ErrStuck means that the process outlived a SIGTERM and was killed.
	ErrStuck = errors.New("crashtest: the server did not stop on SIGTERM")
)

const (
	// readyTimeout covers a start with recovery on a machine that does much
	// else; it is tens of milliseconds otherwise.
	readyTimeout = time.Minute
	// readyPoll is the time between two questions whether it serves.
	readyPoll = 2 * time.Millisecond
	// stopTimeout covers an orderly stop, which the server itself bounds at 20 s.
	stopTimeout = 30 * time.Second
	// portTimeout is how long Serve tries to get a port that somebody else has:
	// a port of the kernel's choice may also be chosen for a connection.
	portTimeout = 10 * time.Second
	// portPoll is the time between two tries.
	portPoll = 50 * time.Millisecond
	// logTail is how much of a log is worth reading, in bytes: two dumps of all
	// goroutines.
	logTail = 32 << 10
)

// Build compiles the server of this module into a temporary folder of the test
// and returns the path of the executable. With race it has the race detector.
func Build(t testing.TB, race bool) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "troupe")
	args := []string{"build", "-o", binary}
	if race {
		args = append(args, "-race")
	}
	args = append(args, "github.com/troupe-db/troupe/cmd/troupe")
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return binary
}

// Config says what to run, and where.
type Config struct {
	Binary  string   // the executable; see Build
	DataDir string   // made if it does not exist
	Args    []string // flags after those that Start sets, so that they win
	Env     []string // name=value, beside the environment of this process

	// Client and Peer are the addresses, as host:port. When empty, Start has the
	// kernel choose.
	Client, Peer string
}

// Server is one process. It is not restarted: Start another one with its Config.
// Its methods may be called at any time, from several goroutines.
type Server struct {
	cfg     Config
	cmd     *exec.Cmd
	logPath string
	exited  chan struct{} // closed by the goroutine in Start, when the process has ended
}

// Start starts a process, without waiting for it to serve. It is killed when the
// test ends, at the latest.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	var chosen []net.Listener // open until both are chosen, so that they differ
	for _, addr := range []*string{&cfg.Client, &cfg.Peer} {
		if *addr == "" {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			chosen = append(chosen, l)
			*addr = l.Addr().String()
		}
	}
	for _, l := range chosen { // before the member starts, which needs the ports
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return launch(t, cfg)
}

func launch(t testing.TB, cfg Config) *Server {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }() // nothing is written by this process
	client, peer := "http://"+cfg.Client, "http://"+cfg.Peer
	cmd := exec.Command(cfg.Binary, append([]string{
		"--data-dir", cfg.DataDir,
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default=" + peer,
	}, cfg.Args...)...)
	cmd.Env = append(os.Environ(), cfg.Env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: cfg, cmd: cmd, logPath: output.Name(), exited: make(chan struct{})}
	go func() { // ends with the process, which the cleanup sees to
		_ = cmd.Wait() // the exit status stays in ProcessState
		close(s.exited)
	}()
	t.Cleanup(s.Kill)
	return s
}

// Serve starts a process and returns once it serves. A test fails that has to
// wait too long.
func Serve(t testing.TB, cfg Config) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	for began := time.Now(); ; {
		s := Start(t, cfg)
		err := s.Ready(ctx)
		switch {
		case err == nil:
			return s
		case errors.Is(err, ErrExited) && strings.Contains(s.Log(), "address already in use") && time.Since(began) < portTimeout:
			<-time.After(portPoll)
		default:
			t.Fatalf("%v\n%s", err, s.Log())
		}
	}
}

// Ready returns once the server serves: /readyz answers that a linearizable read
// works. Errors: ErrExited, and that of the context.
func (s *Server) Ready(ctx context.Context) error {
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	for !s.answersReady(ctx) {
		select {
		case <-s.exited:
			return fmt.Errorf("%w: %v", ErrExited, s.State())
		case <-ctx.Done():
			return fmt.Errorf("crashtest: not ready: %w", ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

// readyClient keeps no connection: that of a process which was killed is no use
// to the next.
var readyClient = http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}

func (s *Server) answersReady(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.cfg.Client+"/readyz", nil)
	if err != nil {
		panic("crashtest: " + err.Error()) // the address was parsed before
	}
	resp, err := readyClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // it was only about the status
	return resp.StatusCode == http.StatusOK
}

// Addr is the client address as host:port.
func (s *Server) Addr() string { return s.cfg.Client }

// Config is what Start was told, with the addresses that were chosen, so that
// starting another process with it is a restart.
func (s *Server) Config() Config { return s.cfg }

// Exited is closed when the process has ended, by itself or not.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// State tells how the process ended; nil as long as it runs.
func (s *Server) State() *os.ProcessState {
	select {
	case <-s.exited:
		return s.cmd.ProcessState
	default:
		return nil
	}
}

// Kill ends the process with SIGKILL and waits for its end. With a process that
// has ended it does nothing.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // fails only if it has ended already
	<-s.exited
}

// Stop asks the process to stop with SIGTERM and waits for its end. Errors:
// ErrStuck, one for an exit code that is not 0, and that of the context, after
// which the process is killed too.
func (s *Server) Stop(ctx context.Context) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended already
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-s.exited:
	case <-timeout.C:
		s.Kill()
		return ErrStuck
	case <-ctx.Done():
		s.Kill()
		return ctx.Err()
	}
	if state := s.State(); !state.Success() {
		return fmt.Errorf("crashtest: ended with %v on SIGTERM", state)
	}
	return nil
}

// Log returns the end of what the process wrote to stdout and stderr.
func (s *Server) Log() string {
	f, err := os.Open(s.logPath)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }() // only read
	if info, err := f.Stat(); err == nil && info.Size() > logTail {
		if _, err := f.Seek(-logTail, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, logTail))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
