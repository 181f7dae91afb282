// Package proc runs a server with etcd's flags as a child process on loopback: it
// finds free ports, creates a data folder, waits until the server is ready, stops,
// pauses or kills it, restarts it on the same data, and reads its resource usage.
package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Sentinel errors of Start, Restart and Terminate.
var (
	// ErrAddressInUse means that another process listens on one of the server's ports.
	ErrAddressInUse = errors.New("proc: the server's port is in use")
	// ErrExited means that the process ended before it was ready.
	ErrExited = errors.New("proc: the server exited before it was ready")
	// ErrNotReady means that the ready line was not printed in time.
	ErrNotReady = errors.New("proc: the server was not ready in time")
	// ErrStuck means that the process did not end after SIGTERM.
	ErrStuck = errors.New("proc: the server did not stop on SIGTERM")
)

const (
	// readyLine is in the line that etcd and Troupe log once client calls work.
	readyLine = "ready to serve client requests"
	// readyTimeout covers a cold start with recovery of a few GiB, and a snapshot of as much
	// that is sent with consideration for a load.
	readyTimeout = 6 * time.Minute
	// stopTimeout covers a graceful stop: the transfer of leadership, the last flush
	// of the store, and a slow disk.
	stopTimeout = 30 * time.Second
	// portAttempts bounds the retries if another process binds a port after it was
	// chosen and before the server binds it.
	portAttempts = 5
)

// Config describes the server to run.
type Config struct {
	Binary  string   // the server's executable
	Command []string // arguments before the flags, such as a subcommand
	Args    []string // flags, which take precedence over those that proc sets
	Name    string   // the member's name
	TLS     bool     // the client URL has https; Args have the certificates
	Dir     string   // parent of the data folder; empty means the system's temporary folder

	// Of a member of a cluster.

	Client, Peer   string // ports to listen on, as host:port; if empty, free ones are chosen
	AdvertisedPeer string // the address at which other members reach the peer port; empty means Peer
	InitialCluster string // all members as name=URL, separated by commas; empty means this one alone
	Join           bool   // join a cluster that exists
	// Started, if set, is called with the id of each new process, before it is ready.
	Started func(pid int)
}

// Server is a child process and its data folder, which is kept over restarts.
// Its methods are for one goroutine at a time, except Usage and Endpoint.
type Server struct {
	cfg    Config
	root   string // holds the data folder; removed by Close
	client string // host:port
	peer   string
	log    *logTail

	cmd    *exec.Cmd
	exited chan struct{} // closed by the goroutine in launch, which waits for the process
}

// Start runs the server on free ports with a fresh data folder and returns once it is
// ready, which a member of a cluster is only when there is a leader. If the ports are
// given and in use, the error is ErrAddressInUse. IMPORTANT: the caller must close the
// server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	root, err := os.MkdirTemp(cfg.Dir, "bench-"+cfg.Name+"-")
	if err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	var last error
	for range portAttempts {
		s := &Server{cfg: cfg, root: root, log: newLogTail(), client: cfg.Client, peer: cfg.Peer}
		chosen := cfg.Client == "" || cfg.Peer == ""
		if chosen {
			if s.client, s.peer, err = freePorts(); err != nil {
				last = err
				break
			}
		}
		if last = s.launch(ctx); last == nil {
			return s, nil
		}
		if !chosen || !errors.Is(last, ErrAddressInUse) {
			break
		}
		if err := os.RemoveAll(s.DataDir()); err != nil {
			return nil, fmt.Errorf("proc: %w", err)
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	return nil, last
}

// freePorts returns two ports on which nothing listens.
func freePorts() (client, peer string, err error) {
	var found [2]string
	for i := range found {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", fmt.Errorf("proc: %w", err)
		}
		defer func() { _ = l.Close() }() // if this fails, the port may stay in use, and Start tries others
		found[i] = l.Addr().String()
	}
	return found[0], found[1], nil
}

// launch starts the process and waits for the ready line.
func (s *Server) launch(ctx context.Context) error {
	ready := s.log.expect(readyLine)
	cmd := exec.Command(s.cfg.Binary, s.arguments()...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	// The child must not outlive this process, even if this process is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("proc: start %s: %w", s.cfg.Name, err)
	}
	if s.cfg.Started != nil {
		s.cfg.Started(cmd.Process.Pid)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the exit status is read from cmd.ProcessState
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited

	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	var err error
	select {
	case <-ready:
		return nil
	case <-exited:
		err = ErrExited
		if strings.Contains(s.log.String(), "address already in use") {
			err = ErrAddressInUse
		}
	case <-timeout.C:
		err = ErrNotReady
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Kill()
	return fmt.Errorf("%w: %s\n%s", err, s.cfg.Name, s.log)
}

func (s *Server) arguments() []string {
	advertised := "http://" + cmp.Or(s.cfg.AdvertisedPeer, s.peer)
	args := append([]string{}, s.cfg.Command...)
	args = append(args,
		"--name", s.cfg.Name,
		"--data-dir", s.DataDir(),
		"--listen-client-urls", s.ClientURL(),
		"--advertise-client-urls", s.ClientURL(),
		"--listen-peer-urls", s.PeerURL(),
		"--initial-advertise-peer-urls", advertised,
		"--initial-cluster", cmp.Or(s.cfg.InitialCluster, s.cfg.Name+"="+advertised),
	)
	if s.cfg.Join {
		args = append(args, "--initial-cluster-state", "existing")
	}
	return append(args, s.cfg.Args...)
}

// Endpoint is the client address as host:port.
func (s *Server) Endpoint() string { return s.client }

// ClientURL is the client address as a URL.
func (s *Server) ClientURL() string {
	if s.cfg.TLS {
		return "https://" + s.client
	}
	return "http://" + s.client
}

// PeerURL is the peer address as a URL.
func (s *Server) PeerURL() string { return "http://" + s.peer }

// DataDir is the server's data folder.
func (s *Server) DataDir() string { return filepath.Join(s.root, "data") }

// Log returns the last lines that the server wrote.
func (s *Server) Log() string { return s.log.String() }

// Expect returns a channel that is closed when the server, or a later start of it, writes a
// line that contains a text.
func (s *Server) Expect(text string) <-chan struct{} { return s.log.expect(text) }

// Running reports whether the process is alive.
func (s *Server) Running() bool {
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// Kill ends the process with SIGKILL and waits for it. If the process has ended, Kill
// does nothing.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // fails only if the process has ended
	<-s.exited
}

// Pause stops the process by SIGSTOP until Resume.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume lets a paused process continue.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("proc: %s to %s: %w", sig, s.cfg.Name, err)
	}
	return nil
}

// Terminate sends SIGTERM to the process and waits for it. It returns ErrStuck if it
// had to kill the process, and an error if the process ended neither with status 0 nor
// by SIGTERM.
func (s *Server) Terminate(ctx context.Context) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails only if the process has ended
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-s.exited:
	case <-timeout.C:
		s.Kill()
		return fmt.Errorf("%w: %s\n%s", ErrStuck, s.cfg.Name, s.log)
	case <-ctx.Done():
		s.Kill()
		return ctx.Err()
	}
	// etcd raises the signal again after it has shut down, so that it ends by SIGTERM;
	// Troupe exits with 0.
	status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("proc: %s ended with %s on SIGTERM\n%s", s.cfg.Name, s.cmd.ProcessState, s.log)
	}
	return nil
}

// restartPause is the time between two attempts of Restart.
const restartPause = 200 * time.Millisecond

// Restart starts a stopped server again, on the same ports and data. If a port is in use
// it tries a few times, because a connection of another process may have had it as its
// own port for a moment.
func (s *Server) Restart(ctx context.Context) error {
	var last error
	for range portAttempts {
		// The log of the previous start must not be taken for this one's.
		s.log.clear()
		if last = s.launch(ctx); !errors.Is(last, ErrAddressInUse) {
			return last
		}
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return last
}

// Close kills the process if it still runs and removes its data.
func (s *Server) Close() error {
	s.Kill()
	if err := os.RemoveAll(s.root); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	return nil
}

// Usage is the resource usage of a process so far.
type Usage struct {
	CPU     time.Duration // user and system time together; the kernel counts in ticks of 10 ms
	RSS     int64         // resident bytes now
	PeakRSS int64         // most resident bytes so far
}

// Usage reads the resource usage of the process from /proc.
func (s *Server) Usage() (Usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("proc: %w", err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Usage{}, fmt.Errorf("proc: %w", err)
	}
	var u Usage
	if u.CPU, err = parseCPU(string(stat)); err != nil {
		return Usage{}, err
	}
	if u.RSS, err = parseStatusKiB(string(status), "VmRSS:"); err != nil {
		return Usage{}, err
	}
	if u.PeakRSS, err = parseStatusKiB(string(status), "VmHWM:"); err != nil {
		return Usage{}, err
	}
	return u, nil
}

// clockTick is the unit of the times in /proc/<pid>/stat: USER_HZ, which is
// 100 per second on every Linux architecture that Go supports.
const clockTick = 10 * time.Millisecond

// parseCPU reads utime and stime, fields 14 and 15 of proc_pid_stat(5). The
// second field is the program's name in brackets, which may contain spaces and
// brackets, so fields are counted from the last bracket.
func parseCPU(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const utime = 14 - 3 // fields begins at the third
	if len(fields) < utime+2 {
		return 0, fmt.Errorf("proc: malformed stat line %q", stat)
	}
	var ticks int64
	for _, f := range fields[utime : utime+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("proc: malformed stat line: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// parseStatusKiB reads one "Name: N kB" line of /proc/<pid>/status, in bytes.
func parseStatusKiB(status, name string) (int64, error) {
	for line := range strings.Lines(status) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != 2 || fields[1] != "kB" {
			return 0, fmt.Errorf("proc: malformed status line %q", line)
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("proc: malformed status line: %w", err)
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("proc: no %s in status", name)
}
