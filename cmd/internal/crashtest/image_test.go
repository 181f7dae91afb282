package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// imagePage is the size of a page of the operating system, and imageSector that of a
// disk's atomic write, in bytes.
const (
	imagePage   = 4096
	imageSector = 512
)

// imageFile is the content of a file: data, followed by zeros up to size.
type imageFile struct {
	data []byte
	size int64
}

// image is the content of a folder by file name, without subfolders.
type image map[string]*imageFile

// extend returns data, extended with zeros to size.
func (f *imageFile) extend(size int64) []byte {
	return append(slices.Clone(f.data), make([]byte, max(0, size-int64(len(f.data))))...)
}

func (f *imageFile) clone() *imageFile { return &imageFile{slices.Clone(f.data), f.size} }

// erase replaces a range with zeros, the content of the disk before it was written.
func (f *imageFile) erase(from, to int) {
	to = min(to, len(f.data))
	if from < to {
		clear(f.data[from:to])
	}
}

// imageAttempts bounds how often a folder is read until it did not change meanwhile.
const imageAttempts = 500

// imageOf reads a folder that badger may be changing. Copying takes time, so it is
// repeated if meanwhile files were created, removed or truncated, or the manifest grew.
// For example, a value log is truncated to nothing before it is removed: a copy of that,
// with one of a memtable log from before the values were moved, would be a state that
// never existed.
//
// Memtable logs are read before value logs, so that every value that a record of the
// former points to is in the copy of the latter.
func imageOf(dir string) (image, error) {
	for range imageAttempts {
		before, err := imageListing(dir)
		if err != nil {
			return nil, err
		}
		img, err := imageOnce(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		after, lerr := imageListing(dir)
		if lerr != nil {
			return nil, lerr
		}
		if err == nil && before == after {
			return img, nil
		}
	}
	return nil, fmt.Errorf("%s does not hold still", dir)
}

func imageListing(dir string) (string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, f := range files {
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // and the other listing has it, or the copy fails
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&text, f.Name(), info.Size())
		if f.Name() == imageManifest {
			manifest, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				return "", err
			}
			text.Write(manifest)
		}
	}
	return text.String(), nil
}

func imageOnce(dir string) (image, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(files, func(a, b os.DirEntry) int {
		return imageOrder(a.Name()) - imageOrder(b.Name())
	})
	img := image{}
	for _, f := range files {
		if f.IsDir() {
			continue
		}
		if img[f.Name()], err = imageFileOf(filepath.Join(dir, f.Name())); err != nil {
			return nil, err
		}
	}
	return img, nil
}

func imageOrder(name string) int {
	if filepath.Ext(name) == imageMem {
		return 0
	}
	return 1
}

// imageFileOf reads the parts of a file that are not holes.
func imageFileOf(path string) (*imageFile, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	f := &imageFile{size: info.Size()}
	for at := int64(0); at < f.size; {
		from, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if err != nil {
			break // the rest is a hole
		}
		to, err := unix.Seek(int(in.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		f.data = f.extend(to)
		if _, err := in.ReadAt(f.data[from:to], from); err != nil && err != io.EOF {
			return nil, err
		}
		at = to
	}
	return f, nil
}

// write creates a folder from an image. Pages of zeros become holes.
func (img image) write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, f := range img {
		if err := f.write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (f *imageFile) write(path string) error {
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	for at := 0; at < len(f.data) && err == nil; at += imagePage {
		page := f.data[at:min(at+imagePage, len(f.data))]
		if !imageIsZero(page) {
			_, err = out.WriteAt(page, int64(at))
		}
	}
	return errors.Join(err, out.Truncate(f.size), out.Close())
}

// imageSync syncs all files of a folder, so that data that is not synced later must be
// that of a later writer.
func imageSync(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range files {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func imageIsZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// names returns the sorted names with an extension; badger's files are in order of their
// numbers.
func (img image) names(ext string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(img)), func(name string) bool { return filepath.Ext(name) != ext })
}
