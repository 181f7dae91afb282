package proc

import (
	"os"
	"testing"
)

func TestParseMemory(t *testing.T) {
	const status = "VmHWM:\t 9 kB\nVmRSS:\t 7 kB\nRssAnon:\t 4 kB\nRssFile:\t 2 kB\nRssShmem:\t 1 kB\n"
	if got, err := parseMemory(status); err != nil || got != (Memory{7 << 10, 4 << 10, 2 << 10}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseMemory("VmRSS:\t 7 kB\nRssAnon:\t 4 kB\n"); err == nil {
		t.Error("a missing line was accepted")
	}
}

func TestMemoryWatchKeepsPeaksUntilTheCut(t *testing.T) {
	now, failed := Memory{9, 1, 4}, error(nil)
	w := &MemoryWatch{read: func() (Memory, error) { return now, failed }}
	w.add(Memory{10, 5, 3}, nil)
	w.add(Memory{8, 6, 2}, nil)
	if got, err := w.Cut(); err != nil || got != (Memory{10, 6, 4}) {
		t.Errorf("%+v, %v", got, err)
	}
	now = Memory{1, 1, 0}
	if got, err := w.Cut(); err != nil || got != now {
		t.Errorf("%+v, %v", got, err)
	}
	failed = os.ErrNotExist
	if _, err := w.Cut(); err == nil {
		t.Error("a process that has ended is measured")
	}
}

func TestOwnCPU(t *testing.T) {
	before, err := OwnCPU()
	if err != nil {
		t.Fatal(err)
	}
	for {
		after, err := OwnCPU()
		if err != nil {
			t.Fatal(err)
		}
		if after > before {
			return // the CPU time of this loop
		}
	}
}
