package host

import (
	"strings"
	"testing"
)

func TestFilesystem(t *testing.T) {
	const mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/deep xfs rw 0 0\nnone /tmpfoo btrfs rw 0 0\nbroken\n"
	for path, want := range map[string]string{"/home/x": "ext4", "/tmp": "tmpfs", "/tmp/y": "tmpfs", "/tmp/deep/er": "xfs", "/tmpfoo/x": "btrfs"} {
		if got := filesystem(mounts, path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestFields(t *testing.T) {
	if got := field("a: 1\nmodel name\t: Some CPU: fast\n", "model name"); got != "Some CPU: fast" {
		t.Errorf("%q", got)
	}
	if got := field("", "x"); got != "unknown" {
		t.Errorf("%q", got)
	}
	if got := memoryGiB("24684084 kB"); got != 24 {
		t.Errorf("%d GiB", got)
	}
}

func TestDescribe(t *testing.T) {
	facts, err := Describe(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if facts.Cores == 0 || facts.Fsync <= 0 || facts.Filesystem == "unknown" {
		t.Fatalf("%+v", facts)
	}
	if text := facts.Markdown("go run . x"); !strings.Contains(text, "Command: `go run . x`") || strings.Contains(text, "%!") {
		t.Fatal(text)
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string]string{"6.18.44-custom-1\n": "6.18.44", "6.1.0": "6.1.0", "": ""} {
		if got := kernelVersion(release); got != want {
			t.Errorf("%q: %q, want %q", release, got, want)
		}
	}
}
