package pairs

import (
	"context"
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
)

// The loads that can be measured.
const (
	PutLoad            = "put"
	GetLoad            = "get"
	RangeLoad          = "range"
	WatchLoad          = "watch"
	WatchLatencyLoad   = "watch-latency"
	LeaseKeepAliveLoad = "lease-keepalive"
	GetUnderPutLoad    = "get-under-put"
)

// Load is a load with its sizes.
type Load struct {
	Name     string
	Clients  int
	Conns    int
	Total    int               // requests; of the watch loads, puts
	Watchers loadtool.Watchers // of the watch loads; of get-under-put, the rate of the puts
}

// kind defines a load.
type kind struct {
	Load    // with its default sizes
	command func(Load) loadtool.Command
	prepare func(context.Context, subject) error // writes the keys that the load reads; may be nil
	watch   bool                                 // events are counted, not requests
	rows    []quantity                           // of its table
}

const (
	// keySpace is the number of distinct keys that the put load writes.
	keySpace = 1_000_000
	// probeKey is what the get load reads.
	probeKey = "bench-probe-key-of-32-bytes-....x"
	// rangeKeys is the number of keys that the range load reads at once, from
	// rangeFirst to rangeEnd; the put load's are not among them.
	rangeKeys            = 25_000
	rangeFirst, rangeEnd = "bench-range-key/", "bench-range-key0"
)

// kinds lists every load. With the default sizes a load lasts several seconds, because
// CPU time is counted in 10 ms.
var kinds = []kind{
	{
		Load:    Load{Name: PutLoad, Clients: 1000, Conns: 100, Total: 200_000},
		command: func(Load) loadtool.Command { return loadtool.Put(keySpace) },
		rows:    []quantity{requestRate, p50, p99, requestCPU, rss, peakRSS},
	},
	{
		Load:    Load{Name: GetLoad, Clients: 1000, Conns: 100, Total: 200_000},
		command: func(Load) loadtool.Command { return loadtool.Get(probeKey) },
		prepare: putProbe,
		rows:    []quantity{requestRate, p50, p99, requestCPU, rss, peakRSS},
	},
	{
		// Few clients, because the load generator decodes the large answers.
		Load:    Load{Name: RangeLoad, Clients: 4, Conns: 4, Total: 300},
		command: func(Load) loadtool.Command { return loadtool.Range(rangeFirst, rangeEnd) },
		prepare: putRange,
		rows:    []quantity{requestRate, p50, p99, requestCPU, rss, peakRSS},
	},
	{
		// A connection for each stream.
		Load:    Load{Name: WatchLoad, Clients: 50, Conns: 50, Total: 1000, Watchers: loadtool.Watchers{Streams: 50, PerStream: 100}},
		command: func(l Load) loadtool.Command { return loadtool.Watch(l.Watchers) },
		watch:   true,
		rows:    []quantity{eventRate, eventCPU, rss, peakRSS},
	},
	{
		// The load generator's default sizes.
		Load: Load{
			Name: WatchLatencyLoad, Clients: 1, Conns: 1, Total: 1000,
			Watchers: loadtool.Watchers{Streams: 10, PerStream: 10, PutRate: 100},
		},
		command: func(l Load) loadtool.Command { return loadtool.WatchLatency(l.Watchers) },
		watch:   true,
		rows:    []quantity{p50, p99, putP50, putP99, eventCPU, rss, peakRSS},
	},
	{
		Load:    Load{Name: LeaseKeepAliveLoad, Clients: 1000, Conns: 100, Total: 200_000},
		command: func(Load) loadtool.Command { return loadtool.LeaseKeepAlive() },
		rows:    []quantity{requestRate, p50, p99, requestCPU, rss, peakRSS},
	},
	{
		// Open loops; the latency of a request counts from the moment at which it was due.
		Load:    Load{Name: GetUnderPutLoad, Clients: 1000, Conns: 30, Total: 5000, Watchers: loadtool.Watchers{PutRate: 9000}},
		prepare: putProbe,
		rows:    []quantity{p50, p99, requestRate, putP50, putP99, putRate, rss, peakRSS},
	},
}

// find looks for a load by its name.
func find(name string) (kind, bool) {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.Name == name })
	if i < 0 {
		return kind{}, false
	}
	return kinds[i], true
}

// DefaultLoad returns the load of a name with its default sizes.
func DefaultLoad(name string) (Load, error) {
	k, ok := find(name)
	if !ok {
		return Load{}, fmt.Errorf("pairs: unknown load %q", name)
	}
	return k.Load, nil
}

// LoadNames lists every load.
func LoadNames() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.Name)
	}
	return names
}

// kind returns the definition of the load, which must have been validated.
func (l Load) kind() kind {
	k, ok := find(l.Name)
	if !ok {
		panic("pairs: load " + l.Name + " was never validated")
	}
	return k
}

func (l Load) validate() error {
	k, ok := find(l.Name)
	if !ok {
		return fmt.Errorf("pairs: unknown load %q", l.Name)
	}
	if l.Clients < 1 || l.Conns < 1 || l.Total < 1 {
		return fmt.Errorf("pairs: %s: clients, connections and a total are needed", l.Name)
	}
	if l.Name == GetUnderPutLoad && (l.Clients < 2 || l.Watchers.PutRate < 1) {
		return fmt.Errorf("pairs: %s: two clients and a rate of puts are needed", l.Name)
	}
	if k.watch && (l.Watchers.Streams < 1 || l.Watchers.PerStream < 1 || l.Watchers.PutRate < 0) {
		return fmt.Errorf("pairs: %s: streams, watchers and a rate are needed", l.Name)
	}
	return nil
}

// count returns the number of requests, or of events: every put makes one for each
// watcher.
func (l Load) count() int {
	if l.kind().watch {
		return l.Total * l.Watchers.Streams * l.Watchers.PerStream
	}
	return l.Total
}

// String describes the sizes of the load.
func (l Load) String() string {
	text := fmt.Sprintf("%d clients, %d connections, ", l.Clients, l.Conns)
	if l.Name == GetUnderPutLoad {
		return text + fmt.Sprintf("%d gets at %d a second, beside %d puts a second", l.Total, getRate, l.Watchers.PutRate)
	}
	if !l.kind().watch {
		return text + fmt.Sprintf("%d requests", l.Total)
	}
	pace := "as fast as they are answered"
	if l.Watchers.PutRate > 0 {
		pace = fmt.Sprintf("%d a second", l.Watchers.PutRate)
	}
	return text + fmt.Sprintf("%d streams of %d watchers, %d puts, %s: %d events", l.Watchers.Streams, l.Watchers.PerStream, l.Total, pace, l.count())
}
