// Package host describes the machine and the commit of a measurement, without
// anything that identifies the machine.
package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
)

// Facts describes the circumstances of a measurement, for a result file.
type Facts struct {
	CPU        string
	Cores      int
	MemoryGiB  int
	Kernel     string
	Filesystem string        // of the data folders
	Fsync      time.Duration // median of writing 4 KiB and syncing, in the data folders' parent
	Go         string
	Commit     string
	Date       string
}

// Describe gathers the facts. dataDir is the parent of the servers' data folders;
// empty means the system's temporary folder.
func Describe(ctx context.Context, dataDir string) (Facts, error) {
	if dataDir == "" {
		dataDir = os.TempDir()
	}
	fsync, err := fsyncTime(dataDir)
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	absolute, err := filepath.Abs(dataDir)
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	return Facts{
		CPU: field(string(cpuinfo), "model name"), Cores: runtime.NumCPU(),
		MemoryGiB: memoryGiB(field(string(meminfo), "MemTotal")),
		Kernel:    "Linux " + kernelVersion(string(release)), Filesystem: filesystem(string(mounts), absolute),
		Fsync: fsync, Go: runtime.Version(), Commit: commit(ctx), Date: time.Now().UTC().Format(time.DateOnly),
	}, nil
}

// Markdown lists the facts and the command.
func (f Facts) Markdown(command string) string {
	return fmt.Sprintf("- Date: %s\n- Host: %s, %d cores, %d GiB; %s; data on %s, 4 KiB write and fsync %s (median)\n- %s\n- Commit: %s\n- Command: `%s`\n",
		f.Date, f.CPU, f.Cores, f.MemoryGiB, f.Kernel, f.Filesystem, f.Fsync.Round(time.Microsecond), f.Go, f.Commit, command)
}

// field returns the value of the first "name : value" line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		key, value, found := strings.Cut(line, ":")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func memoryGiB(total string) int {
	kib, err := strconv.Atoi(strings.TrimSuffix(total, " kB"))
	if err != nil {
		return 0
	}
	return (kib + 1<<19) >> 20
}

// filesystem returns the type of the mount that contains the path.
func filesystem(mounts, path string) string {
	kind, longest := "unknown", -1
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		point := fields[1]
		inside := point == "/" || path == point || strings.HasPrefix(path, point+"/")
		if inside && len(point) >= longest { // a later mount hides an earlier one
			kind, longest = fields[2], len(point)
		}
	}
	return kind
}

const fsyncSamples = 50 // enough for a median; a fraction of a second on a disk that syncs in 5 ms

func fsyncTime(dir string) (_ time.Duration, err error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer func() { _ = f.Close() }()
	var took []time.Duration
	block := make([]byte, 4<<10)
	for range fsyncSamples {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return stats.Percentile(took, 50), nil
}

// commit returns the checked-out commit, and whether the work tree differs from it.
func commit(ctx context.Context) string {
	hash, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "none"
	}
	name := strings.TrimSpace(string(hash))
	changes, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output()
	if err != nil || len(changes) > 0 {
		name += " with uncommitted changes"
	}
	return name
}

// kernelVersion returns the number of a kernel release without its suffix.
func kernelVersion(release string) string {
	version, _, _ := strings.Cut(strings.TrimSpace(release), "-")
	return version
}
