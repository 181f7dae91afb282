package pairs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

const (
	// profileDelay is the time for the load's connections to open before the profile.
	profileDelay = 2 * time.Second
	// profileSeconds is the length of a CPU profile.
	profileSeconds = 10
)

// Profiles runs Troupe through the loads once more and returns the most expensive
// functions in a CPU profile of each. A load must last longer than its profile, which
// otherwise includes the idle server.
func Profiles(ctx context.Context, cfg Config) (_ string, err error) {
	binary, err := tools.BuildOne(ctx, tools.Troupe)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "bench-profile-")
	if err != nil {
		return "", fmt.Errorf("pairs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := func(load string, role role) string { return filepath.Join(dir, load+"-"+string(role)+".pprof") }
	troupe := Contestant{Server: servers.Server{Name: "troupe", Binary: binary, Args: []string{"--enable-pprof"}}}
	if err := profile(ctx, cfg, troupe, file); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, load := range cfg.Loads {
		for _, role := range cfg.roles() {
			for _, order := range []string{"-flat", "-cum"} {
				top, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=40", order, file(load.Name, role)).Output()
				if err != nil {
					return "", fmt.Errorf("pairs: read the profile of %s: %w", load.Name, err)
				}
				fmt.Fprintf(&b, "## Profile of %s under %s (%s)\n\n```\n%s```\n\n", role, load.Name, order[1:], withoutBuild(string(top)))
			}
		}
	}
	return b.String(), nil
}

// role is a member whose profile is taken.
type role string

const (
	single   role = "troupe"
	leader   role = "leader"
	follower role = "follower"
)

// roles lists the members whose profiles are taken.
func (c Config) roles() []role {
	if c.clustered() {
		return []role{leader, follower}
	}
	return []role{single}
}

// endpoint returns the endpoint of a role's member.
func (s subject) endpoint(r role) string {
	if r == follower {
		return s.others[0]
	}
	return s.leader
}

// withoutBuild removes the lines of a profile that name the binary's file.
func withoutBuild(top string) string {
	var b strings.Builder
	for line := range strings.Lines(top) {
		if !strings.HasPrefix(line, "File:") && !strings.HasPrefix(line, "Build ID:") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// profile runs a contestant through the loads and saves a CPU profile of each role in
// each load; path makes a file name. The contestant must serve /debug/pprof on its client
// port.
func profile(ctx context.Context, cfg Config, who Contestant, path func(load string, r role) string) error {
	_, err := turn(ctx, cfg, who, func(ctx context.Context, load string, s subject) error {
		select {
		case <-time.After(profileDelay):
		case <-ctx.Done():
			return ctx.Err()
		}
		roles := cfg.roles()
		failed := make([]error, len(roles))
		var wg sync.WaitGroup
		for i, r := range roles {
			wg.Go(func() {
				failed[i] = fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.endpoint(r), profileSeconds), path(load, r))
			})
		}
		wg.Wait()
		return errors.Join(failed...)
	})
	if err != nil {
		return fmt.Errorf("pairs: profile: %w", err)
	}
	return nil
}

func fetch(ctx context.Context, url, path string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*profileSeconds*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, response.Body)
	return errors.Join(err, file.Close())
}
