// Package loadtool runs etcd's own load generator, the program benchmark, and
// reads its report.
package loadtool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// ErrReport means that the report was incomplete or told of failed requests.
var ErrReport = errors.New("loadtool: bad report")

// Load is one kind of load.
type Load struct {
	Binary   string // the load generator
	Endpoint string
	Clients  int // concurrent clients, each with one request at a time
	Conns    int // connections that they share
	Total    int // requests
	Command  []string
}

// Put writes Total sequential keys of 32 bytes, wrapping after keySpace, with
// values of 256.
func Put(keySpace int) []string {
	return []string{"put", "--key-size", "32", "--val-size", "256", "--sequential-keys", "--key-space-size", strconv.Itoa(keySpace)}
}

// Get reads one key linearizably.
func Get(key string) []string { return []string{"range", key, "--consistency", "l"} }

// Report is what the load generator measured.
type Report struct {
	PerSecond float64
	P50, P99  time.Duration
}

// Run offers the load and waits until it is through.
func (l Load) Run(ctx context.Context) (Report, error) {
	args := []string{"--precise", "--endpoints", l.Endpoint, "--clients", strconv.Itoa(l.Clients), "--conns", strconv.Itoa(l.Conns)}
	args = append(args, l.Command...)
	args = append(args, "--total", strconv.Itoa(l.Total))
	cmd := exec.CommandContext(ctx, l.Binary, args...)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Run(); err != nil {
		return Report{}, fmt.Errorf("loadtool: %s: %w\n%s", strings.Join(l.Command, " "), err, tail(progress.String()))
	}
	return parse(out.String())
}

// parse reads the report's text.
func parse(text string) (Report, error) {
	var r Report
	var err error
	fields := map[string]func(string){
		"Requests/sec:": func(v string) { r.PerSecond, err = strconv.ParseFloat(v, 64) },
		"50% in":        func(v string) { r.P50, err = seconds(v) },
		"99% in":        func(v string) { r.P99, err = seconds(v) },
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "Error distribution:" {
			_, failed, _ := strings.Cut(text, line)
			return Report{}, fmt.Errorf("%w: requests failed:%s", ErrReport, tail(failed))
		}
		for name, read := range fields {
			if value, found := strings.CutPrefix(line, name); found && err == nil {
				read(strings.TrimSpace(value))
			}
		}
	}
	if err != nil || r.PerSecond == 0 || r.P50 == 0 || r.P99 == 0 {
		return Report{}, fmt.Errorf("%w: %w\n%s", ErrReport, errors.Join(err, errors.New("a figure is missing")), tail(text))
	}
	return r, nil
}

// seconds reads "0.0123 secs.".
func seconds(text string) (time.Duration, error) {
	s, err := strconv.ParseFloat(strings.TrimSuffix(text, " secs."), 64)
	return time.Duration(s * float64(time.Second)), err
}

// tail is the end of a text that may be a long progress bar.
func tail(text string) string {
	const most = 2000
	return text[max(0, len(text)-most):]
}
