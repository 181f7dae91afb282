package snapshot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// All operations on files are in this file, except those of the store itself.

// exists reports whether there is a file or folder.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// readFile returns the content of a file; nil if it does not exist.
func readFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// replaceFile makes the content of a file durable: a crash leaves the old or the new one.
func replaceFile(path string, content []byte) (err error) {
	tmp := path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return renameFolder(tmp, path)
}

// renameFolder renames a file or folder within its parent, and makes that durable.
func renameFolder(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(to))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeFolder removes a folder, if it exists. A crash leaves it whole, or under a temporary
// name.
func removeFolder(path string) error {
	there, err := exists(path)
	if err != nil || !there {
		return err
	}
	if filepath.Ext(path) != tmpSuffix {
		tmp := path + tmpSuffix
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		if err := renameFolder(path, tmp); err != nil {
			return err
		}
		path = tmp
	}
	return os.RemoveAll(path)
}

// list returns the names in a folder.
func list(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}
