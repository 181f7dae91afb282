package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Activity is the activity of the threads of a process so far.
type Activity struct {
	OnCPU    time.Duration // exact, unlike Usage's ticks
	Switches int64         // context switches, voluntary and not
}

// Activity reads the activity of the process's threads from /proc. It does not include
// threads that have ended, which those of a Go program rarely do.
func (s *Server) Activity() (Activity, error) {
	tasks := filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "task")
	entries, err := os.ReadDir(tasks)
	if err != nil {
		return Activity{}, fmt.Errorf("proc: %w", err)
	}
	var sum Activity
	for _, e := range entries {
		a, err := taskActivity(filepath.Join(tasks, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just ended
		}
		if err != nil {
			return Activity{}, err
		}
		sum.OnCPU += a.OnCPU
		sum.Switches += a.Switches
	}
	return sum, nil
}

func taskActivity(dir string) (Activity, error) {
	schedstat, err := os.ReadFile(filepath.Join(dir, "schedstat"))
	if err != nil {
		return Activity{}, fmt.Errorf("proc: %w", err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Activity{}, fmt.Errorf("proc: %w", err)
	}
	return parseActivity(string(schedstat), string(status))
}

// parseActivity reads the first field of schedstat, which is the time on the CPU
// in nanoseconds, and the two counts of context switches in status.
func parseActivity(schedstat, status string) (Activity, error) {
	onCPU, _, _ := strings.Cut(schedstat, " ")
	ns, err := strconv.ParseInt(onCPU, 10, 64)
	if err != nil {
		return Activity{}, fmt.Errorf("proc: malformed schedstat: %w", err)
	}
	a := Activity{OnCPU: time.Duration(ns)}
	found := 0
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "voluntary_ctxt_switches" && name != "nonvoluntary_ctxt_switches" {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil {
			return Activity{}, fmt.Errorf("proc: malformed status line: %w", err)
		}
		found++
		a.Switches += n
	}
	if found != 2 {
		return Activity{}, errors.New("proc: no context switches in status")
	}
	return a, nil
}
