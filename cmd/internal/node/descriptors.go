package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// File descriptors are shared between the store, the log and client connections,
// and only the last can do without: the store opens files while it commits, and a
// failed commit ends the process. So connections get what is left after
//
//   - the descriptors that are open for everything else, as counted every
//     descriptorPeriod, because the store's files grow with the data, and
//   - descriptorReserve for what is opened until the next count.
//
// Go has raised the soft limit to the hard limit when the process started.
const (
	// descriptorReserve is etcd's too. Between two counts, a store that is written
	// to at 500 MB/s opens 80 value logs and some tables.
	descriptorReserve = 150
	// connectionsMin is how many connections a member must be able to serve: a
	// start with fewer is refused, and so many are admitted whatever else is open.
	connectionsMin = 64
	// descriptorPeriod is how often open descriptors are counted while clients
	// connect. With 20,000 open, counting takes some milliseconds.
	descriptorPeriod = 10 * time.Second
)

// errDescriptors: the process may not open enough files.
var errDescriptors = errors.New("node: the limit of open files is too low")

// checkDescriptors refuses a limit with which the member could not serve.
func checkDescriptors(limit uint64, dirs ...string) error {
	files := uint64(0)
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("node: data directory: %w", err)
		}
		files += uint64(len(entries))
	}
	if need := descriptorReserve + connectionsMin + files; limit < need {
		return fmt.Errorf("%w: it is %d, and %d are needed: %d files of the member, %d in reserve, %d for clients; raise it with ulimit -n or LimitNOFILE",
			errDescriptors, limit, need, files, descriptorReserve, connectionsMin)
	}
	return nil
}

// descriptors decides how many client connections may be open.
type descriptors struct {
	limit uint64              // of open descriptors
	count func() (int, error) // counts the open ones
	now   func() time.Time

	mu      sync.Mutex
	counted time.Time
	// others is how many descriptors are open beside connections: the most that
	// were ever counted, because a store that is closed while the core reboots
	// opens its files again in a moment.
	others int
}

// connections returns how many client connections may be open, given how many
// are.
func (d *descriptors) connections(open int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.now(); d.counted.IsZero() || now.Sub(d.counted) >= descriptorPeriod {
		d.counted = now
		// Without a count the reserve alone has to do.
		if used, err := d.count(); err == nil {
			d.others = max(d.others, used-open)
		}
	}
	return max(int(min(d.limit, math.MaxInt32))-descriptorReserve-d.others, connectionsMin)
}

// descriptorLimit returns how many file descriptors the process may have open.
func descriptorLimit() (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("node: limit of open files: %w", err)
	}
	return uint64(l.Cur), nil
}

// descriptorsUsed counts the open file descriptors of the process.
func descriptorsUsed() (int, error) {
	dir, err := os.Open("/dev/fd") // of this process: on Linux a link into /proc
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return len(names) - 1, err // without the one that was opened to count
}
