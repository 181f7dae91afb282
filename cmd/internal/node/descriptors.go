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

// File descriptors are shared between the store, the log and client connections. Only
// connections can be refused: the store opens files while it commits, and a failed commit
// ends the process. So connections get what is left of the limit after
//
//   - the descriptors that are open for everything else, which are counted every
//     descriptorPeriod because the number of the store's files grows with the data, and
//   - descriptorReserve, for those that are opened until the next count.
//
// Go raises the soft limit to the hard limit when the process starts.
const (
	// descriptorReserve is the same as etcd's. Between two counts, a store that is
	// written to at 500 MB/s opens 80 value logs of 64 MiB and some tables.
	descriptorReserve = 150
	// connectionsMin is the number of connections that a member must be able to serve: it
	// does not start if the limit allows fewer, and always admits as many.
	connectionsMin = 64
	// descriptorPeriod is the minimum time between two counts of the open descriptors,
	// which are made when clients connect: a count reads a folder with all of them.
	descriptorPeriod = 10 * time.Second
)

// errDescriptors: the process may not open enough files.
var errDescriptors = errors.New("node: the limit of open files is too low")

// checkDescriptors returns an error if the limit is too low to serve.
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
	// others is the number of descriptors that are open beside connections. It is the
	// maximum of all counts, because the store closes its files while the core reboots,
	// and opens them again.
	others int
}

// connections returns how many client connections may be open. open is how many are.
func (d *descriptors) connections(open int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.now(); d.counted.IsZero() || now.Sub(d.counted) >= descriptorPeriod {
		d.counted = now
		// If the count fails, only the reserve is kept free.
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
	return len(names) - 1, err // dir itself does not count
}
