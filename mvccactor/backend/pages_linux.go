package backend

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseMapped releases the pages of all shared mappings of the files in a directory that
// have the extension. IMPORTANT: those mappings must not change meanwhile. Dirty pages are
// not lost: they belong to the file, and the kernel still writes them to disk.
func releaseMapped(dir, ext string) error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, ok := parseMapping(lines.Text())
		if !ok || filepath.Ext(m.path) != ext || filepath.Dir(m.path) != dir {
			continue
		}
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
		if errno != 0 {
			return fmt.Errorf("madvise %s: %w", m.path, errno)
		}
	}
	return lines.Err()
}

// mapping is a shared mapping of a file.
type mapping struct {
	from, to uintptr
	path     string
}

// parseMapping parses a line of /proc/self/maps. ok is false if it is not a shared mapping
// of a file.
func parseMapping(line string) (m mapping, ok bool) {
	// from-to perms offset device inode      path
	fields := strings.Fields(line)
	path := strings.IndexByte(line, '/')
	if len(fields) < 6 || path < 0 || len(fields[1]) != 4 || fields[1][3] != 's' {
		return m, false
	}
	if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.from, &m.to); err != nil || m.from >= m.to {
		return m, false
	}
	m.path = line[path:]
	return m, true
}
