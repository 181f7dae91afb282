package crashtest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// The limits of a member with --small at rest.
	smallDiskMax   = 40_000_000 // bytes
	smallMemoryMax = 32 << 20   // bytes resident

	// smallFiles is the number of segments, spares and ballast files that it prepares.
	smallFiles = 4

	restTimeout = time.Minute
	restPoll    = 50 * time.Millisecond
)

// TestSmall: a member with --small is within its limits when it is new and after a
// restart, and its data survives starts with and without the flag.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real members")
	}
	binary := Build(t, false)
	t.Run("new", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		for i, small := range []bool{true, true, false, true} {
			runOnce(t, Config{Binary: binary, DataDir: dir}, i, small, small)
		}
	})
	// The last segment keeps its size until it is full.
	t.Run("old", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		runOnce(t, Config{Binary: binary, DataDir: dir}, 0, false, false)
		runOnce(t, Config{Binary: binary, DataDir: dir}, 1, true, false)
	})
}

// runOnce starts a member for the i-th time, checks that it has the keys of all starts
// and, on request, that it is within its limits, and stops it.
func runOnce(t *testing.T, cfg Config, i int, small, check bool) {
	t.Helper()
	if small {
		cfg.Args = []string{"--small"}
	}
	s := Start(t, cfg)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatalf("start %d: %v\n%s", i, err, s.Log())
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Addr()}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		if _, err := client.Put(t.Context(), fmt.Sprintf("%d/%d", i, n), strings.Repeat("v", 100)); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := client.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || resp.Count != int64(i+1)*100 {
		t.Fatalf("start %d: got %v, %v, want %d keys", i, resp, err, (i+1)*100)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if check {
		atRest(t, s, cfg.DataDir)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// atRest waits until a member has prepared its files and is within its limits.
func atRest(t *testing.T, s *Server, dir string) {
	t.Helper()
	deadline := time.Now().Add(restTimeout)
	for {
		files, disk := prepared(t, dir)
		memory := resident(t, s.cmd.Process.Pid)
		if files == smallFiles && disk <= smallDiskMax && memory <= smallMemoryMax {
			t.Logf("%d bytes on disk, %d in memory", disk, memory)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("at rest, got %d prepared files, %d bytes on disk and %d in memory; want %d, and at most %d and %d",
				files, disk, memory, smallFiles, smallDiskMax, smallMemoryMax)
		}
		time.Sleep(restPoll)
	}
}

// prepared counts segments, spares and the ballast, and the bytes of all files.
func prepared(t *testing.T, dir string) (files int, disk int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // renamed meanwhile
		}
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return nil // as above
		}
		disk += st.Blocks * 512
		switch ext := filepath.Ext(path); {
		case ext == ".wal", ext == ".spare", filepath.Base(path) == "ballast":
			files++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, disk
}

// resident returns the resident memory of a process.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	bytes := statusBytes(status, "VmRSS:")
	if bytes == 0 {
		t.Fatalf("process %d tells no resident memory", pid)
	}
	return int64(bytes)
}
