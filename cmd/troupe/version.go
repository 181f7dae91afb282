package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"go.etcd.io/etcd/api/v3/version"
)

// buildInfo identifies what this binary was built from.
type buildInfo struct{ version, revision, goVersion string }

func build() buildInfo {
	b := buildInfo{version: "(devel)", revision: "unknown", goVersion: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.version = info.Main.Version
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.revision = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty {
		b.revision += "-dirty"
	}
	return b
}

// versionText answers --version. Scripts parse the first line: it is the level of
// etcd's API that is served.
func versionText() string {
	b := build()
	return fmt.Sprintf("etcd Version: %s\nTroupe Version: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s\n",
		version.Version, b.version, b.revision, b.goVersion, runtime.GOOS, runtime.GOARCH)
}
