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

// imagePage is the page of the operating system, and imageSector what a disk
// writes whole or not at all, in bytes.
const (
	imagePage   = 4096
	imageSector = 512
)

// imageFile is the content of a file: data, and zeros behind it up to size.
type imageFile struct {
	data []byte
	size int64
}

// image is the content of a folder by name, folders in it left out.
type image map[string]*imageFile

// extend returns data with zeros up to size.
func (f *imageFile) extend(size int64) []byte {
	return append(slices.Clone(f.data), make([]byte, max(0, size-int64(len(f.data))))...)
}

func (f *imageFile) clone() *imageFile { return &imageFile{slices.Clone(f.data), f.size} }

// erase puts zeros in a range: what the disk held there before.
func (f *imageFile) erase(from, to int) {
	to = min(to, len(f.data))
	if from < to {
		clear(f.data[from:to])
	}
}

// imageAttempts bounds how often a folder is read until it holds still. A read
// takes a few milliseconds, and badger adds or removes files for a few at a time.
const imageAttempts = 500

// imageOf reads a folder in which badger may be at work. A copy is no moment, so
// it is repeated when files came, went or were cut, or the manifest grew,
// meanwhile. A value log is cut to nothing before it goes: a copy of that, beside one
// of a memtable log from before the values were moved, would be a state that never
// was.
//
// Memtable logs are read before value logs: whatever a record of the former
// points to is then in the copy of the latter.
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

// imageFileOf reads a file without its holes.
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
			break // nothing but a hole is left
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

// write makes a folder of an image. Pages of zeros become holes.
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

// imageSync makes all files of a folder durable, so that what is not is of a later
// writer.
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

// names returns the names with an extension, sorted: for badger's files, by
// their numbers.
func (img image) names(ext string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(img)), func(name string) bool { return filepath.Ext(name) != ext })
}
