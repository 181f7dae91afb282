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

	// discardSlot is a file number and a byte count; the file is never smaller
	// than badger creates it.
	discardSlot     = 16
	discardMinBytes = 1 << 20
)

// lockDir takes badger's lock on the folder, so that nothing is repaired under
// a running store.
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

// repairDir puts in order what a crash may have left and badger does not accept.
// It is called for a folder that was found good.
func repairDir(c Config) error {
	if err := cutManifest(c); err != nil {
		return err
	}
	if err := removeEmptyLogs(c); err != nil {
		return err
	}
	return repairDiscard(c)
}

// findOrCreate reports whether there is a database in the folder, and otherwise
// creates the folder.
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

// checkManifestPresent refuses a folder with data but no manifest: badger would
// start an empty database there and delete the tables.
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
			return &CorruptError{File: manifestName, Reason: "file is missing though there is " + f.Name()}
		}
	}
	return nil
}

// cutManifest cuts a record that a crash left half written at the end of the
// manifest. Badger syncs each record before it acts on it, so such a record had
// no effect yet.
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

// manifestEnd returns the offset after the last good record and whether good
// records follow it.
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
		// A record of eight zeros is valid to badger and what unwritten space
		// looks like.
		if n := manifestRecord(data[i:]); n > manifestHeadLen {
			return end, true
		}
	}
	return end, false
}

// manifestRecord returns the length of the good record at the start of data, or
// zero.
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

// removeEmptyLogs deletes value logs and memtable logs of length zero: badger
// creates and deletes them in two steps and refuses to open what a crash leaves
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

// memTableBytes returns the memtable size to use: no smaller than the one that
// the logs in the folder were written with, because badger replays a log into a
// memtable of the configured size and exits when it does not fit.
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

// repairDiscard puts the garbage statistics in order. They are a hint, written
// through a mapping and never synced by badger, but a wrong size makes it index
// out of range and one impossible count stops all collection.
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
		c.Logger.Warnf("%s: removing garbage statistics of %d bytes", discardName, len(data))
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
	c.Logger.Warnf("%s: clamping impossible garbage statistics", discardName)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	return nil
}

// fileSize is the length of a value log; zero if there is none.
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

// discardStats reads the garbage statistics: bytes of garbage per value log.
// Badger maps the file, so that reads see its updates; one made at the same
// moment may be seen in part.
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
