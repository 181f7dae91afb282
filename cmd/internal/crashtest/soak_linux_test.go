package crashtest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var soakFor = flag.Duration("soak-for", time.Minute, "duration of TestSoak")

const (
	// soakFaultEvery is the interval of faults, and soakSampleEvery that of samples, of which
	// there are soakSamples at least.
	soakFaultEvery  = 20 * time.Second
	soakSampleEvery = 5 * time.Second
	soakSamples     = 40
	// soakRate is the number of calls per second, of all clients of the keyspace together: a
	// small part of what two processors can do, so that a leak is seen and not the load.
	soakRate = 200
	// soakRows bounds the rows of the table for each member.
	soakRows = 30
	// youngMax is the age of a process up to which it is not sampled: it starts.
	youngMax = 5 * time.Second
)

// soakQuantities is what TestSoak samples, and by how much it may vary without a leak.
//
//   - Goroutines and file descriptors: each connection has some. Clients and peers reconnect at
//     different times, and the store opens and removes files. A leak of one for each connection,
//     stream, lease or fault passes the bound within minutes.
//   - Anonymous memory, which is heap and stacks: between two garbage collections the heap may
//     double (GOGC=100), and the cache, the index and the tail of the log are some 20 MB here.
//     Mapped files are not part of it; the kernel decides how much of them is resident.
//   - The log: segments of 64 MiB; while a store is repaired or a snapshot is sent, more are
//     kept. The bound is more than two of them.
//   - The store: its value logs have up to 64 MiB, and are rewritten when 15 % is garbage; a
//     snapshot is received beside the store that it replaces.
//
// A process that is restarted begins anew: what belongs to the process is judged for each of
// its lives that has enough samples, and what belongs to the data directory over all lives.
var soakQuantities = []soakQuantity{
	{"goroutines", false, 1, growthBound{percent: 20, absolute: 30}},
	{"descriptors", false, 1, growthBound{percent: 20, absolute: 30}},
	{"RSS MiB", false, 1 << 20, growthBound{percent: 50, absolute: 96 << 20}},
	{"heap MiB", false, 1 << 20, growthBound{percent: 25, absolute: 24 << 20}},
	{"log MiB", true, 1 << 20, growthBound{absolute: 160 << 20}},
	{"store MiB", true, 1 << 20, growthBound{percent: 50, absolute: 160 << 20}},
}

type soakQuantity struct {
	name   string
	ofData bool    // of the data directory, not of the process
	unit   float64 // for the table
	bound  growthBound
}

// soakSample has a value for each of soakQuantities.
type soakSample struct {
	at     time.Duration
	values [6]float64
}

// soakSeries is the samples of one process, or of one data directory.
type soakSeries struct {
	member  string
	pid     int // 0 for a data directory
	samples []soakSample
}

// TestSoak runs a moderate load for a long time, with a fault every 20 seconds, all checks of
// TestClusterFaults, and the shipped executable. It samples what could grow, prints that, and
// fails if something does. The process of one member is never ended, so that it is observed all
// the time. The long form is make soak.
func TestSoak(t *testing.T) {
	onlyLong(t)
	const members = 3
	pace := time.Second * faultClients * (members + 1) / soakRate
	f := startFaults(t, Build(t, false), members, faultOptions{pace: pace})
	f.spared = f.members[0]
	f.kinds = slices.DeleteFunc(f.kinds, func(k fault) bool { return k.name == "kill-all" })
	s := soak{faults: f, every: min(soakSampleEvery, *soakFor/soakSamples), born: map[int]time.Time{}}
	t.Cleanup(s.print) // also after a failure
	began := time.Now()
	var order []fault
	for time.Since(began) < *soakFor {
		s.watch(min(soakFaultEvery, *soakFor-time.Since(began)))
		if len(order) == 0 {
			order = f.shuffled()
		}
		if f.one(order[0]) {
			f.check()
		}
		order = order[1:]
	}
	s.watch(s.every * 2)
	f.finish()
	f.report()
	s.judge()
}

// soak is the samples of all members.
type soak struct {
	*faults
	every  time.Duration
	series []*soakSeries
	born   map[int]time.Time // by process id: when it was seen first
}

// watch samples all members until a time has passed.
func (s *soak) watch(span time.Duration) {
	s.Helper()
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for end := time.After(span); ; {
		for _, m := range s.members {
			s.sample(m)
		}
		select {
		case <-tick.C:
		case <-end:
			return
		}
	}
}

func (s *soak) sample(m *clusterMember) {
	s.Helper()
	pid := m.server.cmd.Process.Pid
	if s.born[pid].IsZero() {
		s.born[pid] = time.Now()
	}
	if time.Since(s.born[pid]) < min(youngMax, s.every) {
		return
	}
	sample := soakSample{at: s.clock.now()}
	dir := filepath.Join(m.cfg.DataDir, "member")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	files, ferr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	goroutines, gerr := metric(m, "go_goroutines")
	log, lerr := diskBytes(filepath.Join(dir, "wal"))
	store, serr := diskBytes(filepath.Join(dir, "db*"))
	if err := errors.Join(err, ferr, gerr, lerr, serr); err != nil {
		s.Fatalf("%s: %v", m.name, err)
	}
	sample.values = [6]float64{goroutines, float64(len(files)), statusBytes(status, "VmRSS:"), statusBytes(status, "RssAnon:"), log, store}
	s.add(m.name, pid, sample)
	s.add(m.name, 0, sample)
}

func (s *soak) add(member string, pid int, sample soakSample) {
	i := slices.IndexFunc(s.series, func(l *soakSeries) bool { return l.member == member && l.pid == pid })
	if i < 0 {
		i = len(s.series)
		s.series = append(s.series, &soakSeries{member: member, pid: pid})
	}
	s.series[i].samples = append(s.series[i].samples, sample)
}

// print prints the samples as a table, of which it leaves rows out.
func (s *soak) print() {
	var b strings.Builder
	fmt.Fprintf(&b, "%7s %-6s %8s", "s", "member", "pid")
	for _, q := range soakQuantities {
		fmt.Fprintf(&b, " %11s", q.name)
	}
	rows := 0
	for _, l := range s.series {
		rows = max(rows, len(l.samples))
	}
	skip := rows/soakRows + 1
	for _, l := range s.series {
		if l.pid == 0 {
			continue
		}
		for i := 0; i < len(l.samples); i += skip {
			fmt.Fprintf(&b, "\n%7.0f %-6s %8d", l.samples[i].at.Seconds(), l.member, l.pid)
			for n, q := range soakQuantities {
				fmt.Fprintf(&b, " %11.0f", l.samples[i].values[n]/q.unit)
			}
		}
	}
	s.Log(b.String())
}

// judge fails the test if something grows.
func (s *soak) judge() {
	var b strings.Builder
	judged := 0
	for _, l := range s.series {
		for n, q := range soakQuantities {
			if q.ofData != (l.pid == 0) {
				continue
			}
			var values []float64
			for _, sample := range l.samples {
				values = append(values, sample.values[n])
			}
			m, ok := medians(values)
			if !ok {
				continue
			}
			judged++
			fmt.Fprintf(&b, "\n%-6s %8d %11s %6d samples: medians %6.0f, %6.0f, %6.0f", l.member, l.pid, q.name, len(values), m[0]/q.unit, m[1]/q.unit, m[2]/q.unit)
			if err := grown(values, q.bound); err != nil {
				s.Errorf("%s, process %d: %s: %v", l.member, l.pid, q.name, err)
			}
		}
	}
	s.Log(b.String())
	if judged < len(soakQuantities) {
		s.Errorf("only %d series have enough samples, want those of one member at least", judged)
	}
}

// metricsClient keeps no connections: they would count as those of the member.
var metricsClient = http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: readyTimeout}

// metric returns the value of a metric without labels.
func metric(m *clusterMember, name string) (float64, error) {
	resp, err := metricsClient.Get("http://" + m.cfg.Client + "/metrics")
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, errors.New(resp.Status)
	}
	for line := range bytes.Lines(body) {
		if value, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// statusBytes returns a field of /proc/<pid>/status, which is in KiB; 0 if it is missing.
func statusBytes(status []byte, field string) float64 {
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(field)); ok {
			kib, _ := strconv.ParseFloat(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))), 64)
			return kib * 1024
		}
	}
	return 0
}

// diskBytes returns what the files of folders take on the disk. Files that are removed
// meanwhile do not count.
func diskBytes(pattern string) (float64, error) {
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return 0, err
	}
	var blocks int64
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			var st syscall.Stat_t
			if err == nil && syscall.Lstat(path, &st) == nil {
				blocks += st.Blocks
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	const blockBytes = 512
	return float64(blocks * blockBytes), nil
}
