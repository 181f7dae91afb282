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
	return ReleaseMappings(func(permissions, path string) bool {
		return permissions[3] == 's' && filepath.Ext(path) == ext && filepath.Dir(path) == dir
	})
}

// ReleaseMappings releases the pages of the mappings of files in this process that match, by
// the permissions and the path in /proc/self/maps. IMPORTANT: those mappings must not change
// meanwhile, and private ones must not have been written to.
func ReleaseMappings(match func(permissions, path string) bool) error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, ok := parseMapping(lines.Text())
		if !ok || !match(m.permissions, m.path) {
			continue
		}
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
		if errno != 0 {
			return fmt.Errorf("madvise %s: %w", m.path, errno)
		}
	}
	return lines.Err()
}

// mapping is a mapping of a file.
type mapping struct {
	from, to    uintptr
	permissions string // four characters, such as rw-s
	path        string
}

// parseMapping parses a line of /proc/self/maps. ok is false if it is not a mapping of a file.
func parseMapping(line string) (m mapping, ok bool) {
	// from-to perms offset device inode      path
	fields := strings.Fields(line)
	path := strings.IndexByte(line, '/')
	if len(fields) < 6 || path < 0 || len(fields[1]) != 4 {
		return m, false
	}
	if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.from, &m.to); err != nil || m.from >= m.to {
		return m, false
	}
	m.permissions, m.path = fields[1], line[path:]
	return m, true
}
