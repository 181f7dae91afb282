package backend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	manifestName = "MANIFEST"
	discardName  = "DISCARD"

	manifestMagicLen = 8
	manifestHeadLen  = 8

	// discardSlot is the size of a slot: a file number and a byte count.
	// discardMinBytes is the size with which badger creates the file; it never shrinks.
	discardSlot     = 16
	discardMinBytes = 1 << 20
)

// lockDir acquires badger's lock of a directory, so that a store in use is never repaired.
func lockDir(dir string, how int) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
	}
	return func() { f.Close() }, nil
}

// repairDir repairs what a crash may leave and badger does not accept. IMPORTANT: the caller
// must have checked the store; repairing a damaged one could hide the damage.
func repairDir(c Config) error {
	if err := cutManifest(c); err != nil {
		return err
	}
	if err := removeEmptyLogs(c); err != nil {
		return err
	}
	return repairDiscard(c)
}

// findOrCreate reports whether the directory holds a database. If it does not,
// findOrCreate creates the directory.
func findOrCreate(c Config) (exists bool, err error) {
	_, err = os.Stat(filepath.Join(c.Dir, manifestName))
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("backend: %w", err)
	}
	if err := checkManifestPresent(c.Dir); err != nil {
		return false, err
	}
	if c.MustExist {
		return false, fmt.Errorf("%w: %s", ErrMissing, c.Dir)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return false, fmt.Errorf("backend: %w", err)
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		return false, fmt.Errorf("backend: %w", err)
	}
	return false, syncDir(filepath.Dir(c.Dir))
}

// checkManifestPresent returns a *CorruptError if a directory has data but no manifest:
// badger would create an empty database there and delete the tables.
func checkManifestPresent(dir string) error {
	_, err := os.Stat(filepath.Join(dir, manifestName))
	if err == nil {
		return nil
	}
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	for _, f := range files {
		switch filepath.Ext(f.Name()) {
		case tableExt, valueLogExt, memLogExt:
			return &CorruptError{File: manifestName, Reason: "file is missing, but there is " + f.Name()}
		}
	}
	return nil
}

// cutManifest truncates the manifest after its last good record. Badger syncs each record
// before it acts on it, so a record that a crash left unfinished has had no effect.
func cutManifest(c Config) error {
	path := filepath.Join(c.Dir, manifestName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	end, _ := manifestEnd(data)
	if end == len(data) {
		return nil
	}
	return truncateSync(path, int64(end))
}

// manifestEnd returns the offset of the first bad record, or the end. damaged reports
// whether a good record follows the bad one.
func manifestEnd(data []byte) (end int, damaged bool) {
	if len(data) < manifestMagicLen {
		return 0, true
	}
	end = manifestMagicLen
	for {
		n := manifestRecord(data[end:])
		if n == 0 {
			break
		}
		end += n
	}
	for i := end + 1; i < len(data); i++ {
		// Unwritten space is zero, and eight zeros are a valid record to badger. They
		// do not count.
		if n := manifestRecord(data[i:]); n > manifestHeadLen {
			return end, true
		}
	}
	return end, false
}

// manifestRecord returns the length of the good record at the start of data, or zero if
// there is none.
func manifestRecord(data []byte) int {
	if len(data) < manifestHeadLen {
		return 0
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-manifestHeadLen) {
		return 0
	}
	body := data[manifestHeadLen : manifestHeadLen+int(n)]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(data[4:]) {
		return 0
	}
	return manifestHeadLen + int(n)
}

// removeEmptyLogs deletes value logs and memtable logs of length zero. Badger creates and
// deletes logs in two steps, and does not open the empty file that a crash leaves in
// between.
func removeEmptyLogs(c Config) error {
	files, err := os.ReadDir(c.Dir)
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	removed := false
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); ext != valueLogExt && ext != memLogExt {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return fmt.Errorf("backend: %w", err)
		}
		if info.Size() != 0 {
			continue
		}
		if err := os.Remove(filepath.Join(c.Dir, f.Name())); err != nil {
			return fmt.Errorf("backend: %w", err)
		}
		removed = true
	}
	if !removed {
		return nil
	}
	return syncDir(c.Dir)
}

// memTableBytes returns the size of memtables to use. It is not below the size that the
// memtable logs in the directory were written with, because badger replays a log into a
// memtable of the configured size, and exits the process if it does not fit.
func memTableBytes(dir string, configured int64) (int64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("backend: %w", err)
	}
	for _, f := range files {
		if filepath.Ext(f.Name()) != memLogExt {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return 0, fmt.Errorf("backend: %w", err)
		}
		// A log is created at twice the size of its memtable.
		configured = max(configured, min((info.Size()+1)/2, maxMemTableBytes))
	}
	return configured, nil
}

// repairDiscard repairs badger's garbage statistics. They are only a hint, which badger
// writes through a mapping and never syncs. But a file of the wrong size makes badger panic,
// and a count above the size of its file stops all garbage collection.
func repairDiscard(c Config) error {
	path := filepath.Join(c.Dir, discardName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	if len(data) < discardMinBytes || len(data)%discardSlot != 0 {
		c.Logger.Warnf("%s: removing garbage statistics of wrong size %d", discardName, len(data))
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("backend: %w", err)
		}
		return syncDir(c.Dir)
	}
	changed := false
	for at := 0; at < len(data); at += discardSlot {
		fid := binary.BigEndian.Uint64(data[at:])
		if fid == 0 {
			break
		}
		count := binary.BigEndian.Uint64(data[at+8:])
		if limit := fileSize(c.Dir, fid); count > limit {
			binary.BigEndian.PutUint64(data[at+8:], limit)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	c.Logger.Warnf("%s: clamping garbage statistics that exceed their file", discardName)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	return nil
}

// fileSize returns the length of a value log, zero if it does not exist.
func fileSize(dir string, fid uint64) uint64 {
	if fid > 1<<32-1 {
		return 0
	}
	info, err := os.Stat(valueLogPath(dir, uint32(fid)))
	if err != nil {
		return 0
	}
	return uint64(info.Size())
}

// discardStats returns badger's garbage statistics: bytes of garbage per value log. Badger
// updates the file through a mapping, so a concurrent update may be seen in part.
func discardStats(dir string) (map[uint32]uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, discardName))
	if err != nil {
		return nil, err
	}
	stats := make(map[uint32]uint64)
	for at := 0; at+discardSlot <= len(data); at += discardSlot {
		fid := binary.BigEndian.Uint64(data[at:])
		if fid == 0 || fid > 1<<32-1 {
			break
		}
		stats[uint32(fid)] = binary.BigEndian.Uint64(data[at+8:])
	}
	return stats, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("backend: sync %s: %w", dir, err)
	}
	return nil
}

func truncateSync(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("backend: truncate %s: %w", path, err)
	}
	return nil
}
