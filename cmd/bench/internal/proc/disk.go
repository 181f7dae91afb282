package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// blockBytes is the unit of stat's block count on every file system.
const blockBytes = 512

// DiskUsage returns the bytes that the files of a folder occupy on the disk. Files that
// are removed meanwhile do not count.
func DiskUsage(dir string) (int64, error) {
	var blocks int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			blocks += s.Blocks
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("proc: disk usage: %w", err)
	}
	return blocks * blockBytes, nil
}
