package main

import (
	"fmt"
	"os"

	"github.com/troupe-db/troupe/mvccactor/backend"
)

// releaseImage returns the memory of the program's own code and constants. Most of it was
// used during the start only. What is used again is mapped again, usually from the page cache
// of the kernel.
func releaseImage() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err == nil {
		err = backend.ReleaseMappings(func(permissions, path string) bool {
			// Only what cannot have been changed may be read from the file again.
			return path == exe && (permissions == "r-xp" || permissions == "r--p")
		})
	}
	if err != nil {
		return fmt.Errorf("release the memory of the program: %w", err)
	}
	return nil
}
