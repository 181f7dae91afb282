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

// ErrReport means that the report is incomplete or contains failed requests.
var ErrReport = errors.New("loadtool: bad report")

// Command is a kind of load: a command of the load generator.
type Command struct {
	args     []string
	total    string   // the flag that says how many requests
	headings []string // of the reports that it prints, in this order
}

// Put writes sequential keys of 32 bytes, wrapping after keySpace, with values of 256
// bytes. It has one report, on the puts.
func Put(keySpace int) Command {
	return single("put", "--key-size", "32", "--val-size", "256", "--sequential-keys", "--key-space-size", strconv.Itoa(keySpace))
}

// Get reads one key linearizably. It has one report, on the gets.
func Get(key string) Command { return single("range", key, "--consistency", "l") }

// Range reads all keys from first to end, exclusive, linearizably. It has one report, on
// the ranges.
func Range(first, end string) Command { return single("range", first, end, "--consistency", "l") }

// LeaseKeepAlive grants each client a lease and renews it, each time on a new stream. It
// has one report, on the renewals.
func LeaseKeepAlive() Command { return single("lease-keepalive") }

// single is a command with a single report, which has no heading.
func single(args ...string) Command {
	return Command{args: args, total: "--total", headings: []string{""}}
}

// Watchers is the number of watchers, and the rate of puts to their key.
type Watchers struct {
	Streams   int
	PerStream int
	PutRate   int // puts a second; 0 is as fast as they are answered
}

// Watch has all watchers on one key, which all clients put. It has two reports, on the
// creation of the watchers and on the events. The latencies of the latter only measure
// how long the load generator took to count the events.
func Watch(w Watchers) Command {
	return Command{
		args: []string{
			"watch", "--streams", strconv.Itoa(w.Streams), "--watch-per-stream", strconv.Itoa(w.PerStream),
			"--put-rate", strconv.Itoa(w.PutRate),
		},
		total:    "--put-total",
		headings: []string{"Watch creation summary:", "Watch events received summary:"},
	}
}

// WatchLatency has all watchers on one key, which one client puts; it sends the puts of
// the first second at once. It has two reports, on the puts and on the events. The
// latency of an event counts from the reply to the put, and is 0 if the event arrived
// before that.
func WatchLatency(w Watchers) Command {
	return Command{
		args: []string{
			"watch-latency", "--streams", strconv.Itoa(w.Streams), "--watchers-per-stream", strconv.Itoa(w.PerStream),
			"--put-rate", strconv.Itoa(w.PutRate),
		},
		total:    "--put-total",
		headings: []string{"Put summary:", "Watch events summary:"},
	}
}

// Load is a command with its sizes.
type Load struct {
	Binary   string // the load generator
	Endpoint string // or several, separated by commas, over which connections are spread
	Clients  int    // concurrent clients, each with one request at a time
	Conns    int    // connections that they share
	Total    int    // requests; of the watch commands, puts
	Command  Command
	Args     []string // more flags, such as those of TLS
}

// Report is what the load generator measured.
type Report struct {
	Count     int // answers or events
	PerSecond float64
	P50, P99  time.Duration
}

// Run runs the load generator until it has finished, and returns the command's reports
// in order.
func (l Load) Run(ctx context.Context) ([]Report, error) {
	args := []string{"--precise", "--endpoints", l.Endpoint, "--clients", strconv.Itoa(l.Clients), "--conns", strconv.Itoa(l.Conns)}
	args = append(append(args, l.Args...), l.Command.args...)
	args = append(args, l.Command.total, strconv.Itoa(l.Total))
	cmd := exec.CommandContext(ctx, l.Binary, args...)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("loadtool: %s: %w\n%s", strings.Join(l.Command.args, " "), err, tail(progress.String()))
	}
	return parseAll(out.String(), l.Command.headings)
}

// parseAll reads a report from below each heading.
func parseAll(text string, headings []string) ([]Report, error) {
	var reports []Report
	for i, heading := range headings {
		_, section, found := strings.Cut(text, heading)
		if !found {
			return nil, fmt.Errorf("%w: no %q\n%s", ErrReport, heading, tail(text))
		}
		if i+1 < len(headings) {
			section, _, _ = strings.Cut(section, headings[i+1])
		}
		r, err := parse(section)
		if err != nil {
			return nil, err
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// parse reads one report's text.
func parse(text string) (Report, error) {
	var r Report
	var errs []error
	percentiles := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "Error distribution:" {
			_, failed, _ := strings.Cut(text, line)
			return Report{}, fmt.Errorf("%w: requests failed:%s", ErrReport, tail(failed))
		}
		var err error
		if value, found := strings.CutPrefix(line, "Requests/sec:"); found {
			r.PerSecond, err = strconv.ParseFloat(strings.TrimSpace(value), 64)
		} else if percent, value, found := strings.Cut(line, "% in "); found {
			percentiles++
			switch percent {
			case "50":
				r.P50, err = seconds(value)
			case "99":
				r.P99, err = seconds(value)
			}
		} else if bar, _, found := strings.Cut(line, "]\t|"); found {
			var n int
			n, err = strconv.Atoi(bar[strings.LastIndexByte(bar, '[')+1:])
			r.Count += n
		}
		errs = append(errs, err)
	}
	// The load generator omits a percentile that is 0. So a percentile may be missing if
	// no lower one is present, but not all of them.
	if r.PerSecond == 0 || r.Count == 0 || percentiles == 0 || r.P99 < r.P50 {
		errs = append(errs, errors.New("a figure is missing"))
	}
	if err := errors.Join(errs...); err != nil {
		return Report{}, fmt.Errorf("%w: %w\n%s", ErrReport, err, tail(text))
	}
	return r, nil
}

// seconds reads "0.0123 secs.".
func seconds(text string) (time.Duration, error) {
	s, err := strconv.ParseFloat(strings.TrimSuffix(text, " secs."), 64)
	return time.Duration(s * float64(time.Second)), err
}

// tail returns the end of a text, which may contain a long progress bar.
func tail(text string) string {
	const most = 2000
	return text[max(0, len(text)-most):]
}
