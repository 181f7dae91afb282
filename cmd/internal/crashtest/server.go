package crashtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Sentinel errors of Ready and Stop.
var (
	// ErrExited means that the process ended before it was ready.
	ErrExited = errors.New("crashtest: the server exited before it was ready")
	// ErrStuck means that the process did not end after SIGTERM and was killed.
	ErrStuck = errors.New("crashtest: the server did not stop on SIGTERM")
)

const (
	// readyTimeout covers a start with recovery on a busy machine.
	readyTimeout = time.Minute
	// readyPoll is the polling interval of Ready.
	readyPoll = 2 * time.Millisecond
	// stopTimeout covers a graceful stop, which the server itself bounds at 20 s.
	stopTimeout = 30 * time.Second
	// portTimeout is how long Serve retries while a port is in use: the kernel may have
	// chosen the same port for a connection.
	portTimeout = 10 * time.Second
	// portPoll is the interval between two attempts.
	portPoll = 50 * time.Millisecond
	// logTail is the most bytes that Log returns: enough for two dumps of all
	// goroutines.
	logTail = 32 << 10
)

// builtBinary in the environment is the path of an executable without the race detector that
// a parent process has built.
const builtBinary = "TROUPE_TEST_BINARY"

// builds is what Build has compiled in this process.
var builds struct {
	mu    sync.Mutex // guards the rest; held while compiling
	dir   string     // empty before the first one
	paths map[bool]string
}

// Build compiles the server of this module and returns the path of the executable. With race
// it has the race detector. Each is compiled once in a process, which must call removeBuilds
// before it ends.
func Build(t testing.TB, race bool) string {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	if path := os.Getenv(builtBinary); path != "" && !race {
		return path
	}
	if path := builds.paths[race]; path != "" {
		return path
	}
	if builds.dir == "" {
		var err error
		if builds.dir, err = os.MkdirTemp("", "crashtest-"); err != nil {
			t.Fatal(err)
		}
		builds.paths = map[bool]string{}
	}
	binary := filepath.Join(builds.dir, fmt.Sprintf("troupe-%v", race))
	args := []string{"build", "-o", binary}
	if race {
		args = append(args, "-race")
	}
	args = append(args, "github.com/troupe-db/troupe/cmd/troupe")
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	builds.paths[race] = binary
	return binary
}

// removeBuilds removes what Build has compiled.
func removeBuilds() error {
	builds.mu.Lock()
	defer builds.mu.Unlock()
	dir := builds.dir
	builds.dir, builds.paths = "", nil
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

// Config configures a server.
type Config struct {
	Binary  string   // the executable; see Build
	DataDir string   // created if it does not exist
	Args    []string // flags, which take precedence over those that Start sets
	Env     []string // name=value, in addition to the environment of this process

	// Client and Peer are the addresses, as host:port. If they are empty, the kernel
	// chooses the ports.
	Client, Peer string

	// TLS is that of a client, whose requests find out whether the server is ready. If it is
	// not nil, both addresses have TLS, and Args name the server's files.
	TLS *tls.Config
}

// url returns the URL of an address.
func (c *Config) url(addr string) string {
	if c.TLS != nil {
		return "https://" + addr
	}
	return "http://" + addr
}

// Server is one process. To restart it, start another one with its Config. Its methods
// may be called at any time and concurrently.
type Server struct {
	cfg     Config
	ready   http.Client // of Ready
	cmd     *exec.Cmd
	logPath string
	exited  chan struct{} // closed by the goroutine in Start, when the process has ended
}

// Start starts a process without waiting until it is ready. The end of the test kills it
// if it still runs.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	var chosen []net.Listener // open until both ports are chosen, so that they differ
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
	for _, l := range chosen { // the member needs the ports
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return launch(t, cfg)
}

func launch(t testing.TB, cfg Config) *Server {
	t.Helper()
	output, err := os.CreateTemp(t.ArtifactDir(), "log-"+filepath.Base(cfg.DataDir)+"-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }() // this process does not write to it
	client, peer := cfg.url(cfg.Client), cfg.url(cfg.Peer)
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
	// It keeps no connections, which would not work with the next process.
	ready := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: cfg.TLS}, Timeout: time.Second}
	s := &Server{cfg: cfg, ready: ready, cmd: cmd, logPath: output.Name(), exited: make(chan struct{})}
	go func() { // ends with the process, which the cleanup kills
		_ = cmd.Wait() // the exit status is in ProcessState
		close(s.exited)
	}()
	t.Cleanup(s.Kill)
	return s
}

// Serve starts a process and returns when it is ready. The test fails if that takes too
// long.
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

// Ready returns when the server is ready: /readyz reports that a linearizable read works.
// Errors: ErrExited, and that of the context.
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

func (s *Server) answersReady(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.url(s.cfg.Client)+"/readyz", nil)
	if err != nil {
		panic("crashtest: " + err.Error()) // the address is valid
	}
	resp, err := s.ready.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // only the status is used
	return resp.StatusCode == http.StatusOK
}

// Addr returns the client address as host:port.
func (s *Server) Addr() string { return s.cfg.Client }

// Config returns the configuration with the chosen addresses, so that starting another
// process with it is a restart.
func (s *Server) Config() Config { return s.cfg }

// Exited returns a channel that is closed when the process has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// State returns the state of the process after its end, or nil while it runs.
func (s *Server) State() *os.ProcessState {
	select {
	case <-s.exited:
		return s.cmd.ProcessState
	default:
		return nil
	}
}

// Kill ends the process with SIGKILL and waits for its end. If it has ended, Kill does
// nothing.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // fails only if it has ended
	<-s.exited
}

// Stop sends SIGTERM to the process and waits for its end. Errors: ErrStuck, one for an
// exit code other than 0, and that of the context, after which the process is killed too.
func (s *Server) Stop(ctx context.Context) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended
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

// Log returns the end of the process's output to stdout and stderr.
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
