package crashtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// imageUnsynced returns the pages of a file that are written but not on the disk,
// according to the kernel (Linux 6.5 and later). The last, partial page does not count:
// truncating a file zeroes the rest of it.
func imageUnsynced(path string) (pages []int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	whole := info.Size() &^ (imagePage - 1)
	if whole == 0 {
		return nil, nil
	}
	if n, err := imageDirty(f, 0, whole); n == 0 || err != nil {
		return nil, err
	}
	for at := int64(0); at < whole; at += imagePage {
		n, err := imageDirty(f, at, imagePage)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			pages = append(pages, at/imagePage)
		}
	}
	return pages, nil
}

func imageDirty(f *os.File, from, length int64) (uint64, error) {
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(from), Len: uint64(length)}, &st, 0)
	return st.Dirty + st.Writeback, err
}

// imageSeesUnsynced reports whether the kernel and the file system of a folder support
// imageUnsynced.
func imageSeesUnsynced(t *testing.T, dir string) bool {
	path := filepath.Join(dir, "probe")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	defer f.Close()
	if _, err := f.Write(make([]byte, imagePage)); err != nil {
		t.Fatal(err)
	}
	before, err := imageDirty(f, 0, imagePage)
	if err != nil || f.Sync() != nil {
		return false
	}
	after, err := imageDirty(f, 0, imagePage)
	return err == nil && before > 0 && after == 0
}

// imageCheckSynced checks the files that badger must sync before a commit returns: the
// logs, except new and empty ones, and the tables that the manifest names.
func imageCheckSynced(dir string) error {
	img, err := imageOf(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, ext := range []string{imageMem, imageVlog} {
		for _, name := range img.names(ext) {
			if len(imageRecords(img[name].data)) > 0 {
				names = append(names, name)
			}
		}
	}
	for name := range imageTables(imageChanges(img[imageManifest].data)) {
		names = append(names, name)
	}
	for _, name := range names {
		pages, err := imageUnsynced(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // flushed or merged meanwhile
		}
		if err != nil {
			return err
		}
		if len(pages) > 0 {
			return fmt.Errorf("a commit returned, but pages %v of %s are not on the disk", pages, name)
		}
	}
	return nil
}
