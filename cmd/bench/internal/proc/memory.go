package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Memory is the resident memory of a process, in bytes.
type Memory struct {
	Resident int64 // Anon and File together
	Anon     int64 // heap and stacks
	File     int64 // pages of mapped files, which the kernel evicts when it needs memory
}

// Memory reads the current memory of the process from /proc.
func (s *Server) Memory() (Memory, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "status"))
	if err != nil {
		return Memory{}, fmt.Errorf("proc: %w", err)
	}
	return parseMemory(string(status))
}

func parseMemory(status string) (m Memory, err error) {
	for name, field := range map[string]*int64{"VmRSS:": &m.Resident, "RssAnon:": &m.Anon, "RssFile:": &m.File} {
		if *field, err = parseStatusKiB(status, name); err != nil {
			return Memory{}, err
		}
	}
	return m, nil
}

// memoryEvery is the sampling interval of a MemoryWatch: a heap that grows by a GiB a
// second is measured to within 50 MiB.
const memoryEvery = 50 * time.Millisecond

// MemoryWatch keeps the peaks of a process's memory.
type MemoryWatch struct {
	read   func() (Memory, error)
	cancel context.CancelFunc
	ended  chan struct{} // closed by the watching goroutine, which Stop ends

	mu     sync.Mutex // guards the rest
	peak   Memory
	failed error
}

// WatchMemory samples the memory until Stop. The server must not be restarted before
// that.
func (s *Server) WatchMemory() *MemoryWatch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &MemoryWatch{read: s.Memory, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		ticker := time.NewTicker(memoryEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			w.add(w.read())
		}
	}()
	return w
}

func (w *MemoryWatch) add(m Memory, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.failed = err // the process has ended
		return
	}
	w.peak = Memory{max(w.peak.Resident, m.Resident), max(w.peak.Anon, m.Anon), max(w.peak.File, m.File)}
}

// Cut returns the peak of each field since the last Cut. The fields may be of different
// moments.
func (w *MemoryWatch) Cut() (Memory, error) {
	w.add(w.read())
	w.mu.Lock()
	defer w.mu.Unlock()
	peak := w.peak
	w.peak = Memory{}
	return peak, w.failed
}

// Stop ends the watch.
func (w *MemoryWatch) Stop() {
	w.cancel()
	<-w.ended
}

// OwnCPU returns the user and system time of this process, the client, so far.
func OwnCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, errors.Join(errors.New("proc: own CPU time"), err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
