package grpcgw

import (
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/watchactor"
)

// scrape collects at each scrape what need not be counted: raft's status, the mailboxes, and the process.
type scrape struct{ metrics *Metrics }

func newScrape(m *Metrics) *scrape { return &scrape{m} }

func goVersion() string { return runtime.Version() }

func gaugeDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Descriptions of what scrape collects from raft and the view.
var (
	descWatchers  = gaugeDesc("etcd_debugging_mvcc_watcher_total", "Watchers.")
	descStreams   = gaugeDesc("etcd_debugging_mvcc_watch_stream_total", "Streams of watchers.")
	descSlow      = gaugeDesc("etcd_debugging_mvcc_slow_watcher_total", "Watchers that have to read older revisions.")
	descWaiting   = gaugeDesc("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.")
	descEvents    = gaugeDesc("etcd_debugging_mvcc_events_total", "Events sent since the start.")
	descOverflows = gaugeDesc("troupe_watch_overflows_total", "Times that a stream of watchers was too slow and had to go on from the store.")
	descTrouble   = gaugeDesc("troupe_member_trouble", "1 if this check of /readyz fails, 0 while the member is healthy.", "check")
)

// Descriptions of what scrape collects from mailboxes. The whole mailbox has an
// empty lane; lanes follow where there are several.
var (
	laneLabels    = []string{"mailbox", "lane"}
	mailboxLabels = laneLabels[:1]

	descDepth     = prometheus.NewDesc("troupe_mailbox_depth", "Requests in the mailbox now.", laneLabels, nil)
	descLimit     = prometheus.NewDesc("troupe_mailbox_limit", "Requests that the mailbox may hold; 0 is no limit.", laneLabels, nil)
	descHighWater = prometheus.NewDesc("troupe_mailbox_high_water", "The most requests that the mailbox ever held.", laneLabels, nil)
	descBytes     = prometheus.NewDesc("troupe_mailbox_bytes", "Bytes in the mailbox now.", laneLabels, nil)
	descByteLimit = prometheus.NewDesc("troupe_mailbox_limit_bytes", "Bytes that the mailbox may hold; 0 is no limit.", laneLabels, nil)
	descByteHigh  = prometheus.NewDesc("troupe_mailbox_high_water_bytes", "The most bytes that the mailbox ever held.", laneLabels, nil)
	descEnqueued  = prometheus.NewDesc("troupe_mailbox_enqueued_total", "Messages accepted.", laneLabels, nil)
	descRequests  = prometheus.NewDesc("troupe_mailbox_requests_total", "Requests in the messages accepted.", laneLabels, nil)
	descRefused   = prometheus.NewDesc("troupe_mailbox_refused_total", "Messages refused because the mailbox was full.", laneLabels, nil)
	descDropped   = prometheus.NewDesc("troupe_mailbox_dropped_total", "Messages dropped because a lossy mailbox was full.", laneLabels, nil)
	descBatches   = prometheus.NewDesc("troupe_mailbox_batches_total", "Batches that the actor handled.", mailboxLabels, nil)
	descWait      = prometheus.NewDesc("troupe_mailbox_wait_seconds", "Time from posting a message to the start of its batch.", mailboxLabels, nil)
	descService   = prometheus.NewDesc("troupe_mailbox_service_seconds", "Time in which the actor handled a batch.", mailboxLabels, nil)
	descRestarts  = prometheus.NewDesc("troupe_mailbox_restarts_total", "How often the actor was replaced.", mailboxLabels, nil)
)

// Descriptions of what scrape collects from the process.
var (
	descFDUsed  = gaugeDesc("os_fd_used", "File descriptors that the process has open.")
	descFDLimit = gaugeDesc("os_fd_limit", "File descriptors that the process may have open.")
)

// Describe implements prometheus.Collector.
func (s *scrape) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descWatchers, descStreams, descSlow, descWaiting, descEvents, descOverflows,
		descTrouble, descFDUsed, descFDLimit,
		descDepth, descLimit, descHighWater, descBytes, descByteLimit, descByteHigh, descEnqueued, descRequests,
		descRefused, descDropped, descBatches, descWait, descService, descRestarts} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *scrape) Collect(ch chan<- prometheus.Metric) {
	if member := s.metrics.member.Load(); member != nil {
		s.collectTroubles(ch, (*member).Health())
		if watches := (*member).Watches(); watches != nil {
			collectWatches(ch, watches.Stats())
		}
	}
	s.collectDescriptors(ch)
	if s.metrics.cfg.Mailboxes != nil {
		collectMailboxes(ch, s.metrics.cfg.Mailboxes())
	}
}

// collectTroubles exports a sample for every check, so that an alert on one does
// not depend on the sample's absence.
func (s *scrape) collectTroubles(ch chan<- prometheus.Metric, troubles []Trouble) {
	failing := map[string]bool{}
	for _, check := range s.metrics.cfg.Checks {
		failing[check] = false
	}
	for _, t := range troubles {
		failing[t.Check] = true
	}
	for check, fails := range failing {
		gaugeMetric(ch, descTrouble, flagValue(fails), check)
	}
}

func (s *scrape) collectDescriptors(ch chan<- prometheus.Metric) {
	if s.metrics.cfg.Descriptors == nil {
		return
	}
	if used, limit, err := s.metrics.cfg.Descriptors(); err == nil {
		gaugeMetric(ch, descFDUsed, float64(used))
		gaugeMetric(ch, descFDLimit, float64(limit))
	}
}

func collectWatches(ch chan<- prometheus.Metric, s watchactor.Stats) {
	gaugeMetric(ch, descWatchers, float64(s.Watchers))
	gaugeMetric(ch, descStreams, float64(s.Streams))
	gaugeMetric(ch, descSlow, float64(s.Lagging))
	gaugeMetric(ch, descWaiting, float64(s.Pending))
	countMetric(ch, descEvents, uint64(s.Sent))
	countMetric(ch, descOverflows, uint64(s.Lost))
}

func hexID(id uint64) string { return strconv.FormatUint(id, 16) }

func gaugeMetric(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func countMetric(ch chan<- prometheus.Metric, d *prometheus.Desc, n uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func collectMailboxes(ch chan<- prometheus.Metric, stats []actors.ActorStats) {
	for i := range stats {
		a := &stats[i]
		if perStream(a.Name) {
			continue
		}
		collectLoad(ch, &a.LaneStats, a.Name, "")
		if len(a.Lanes) > 1 {
			collectLanes(ch, a)
		}
		countMetric(ch, descBatches, a.Batches, a.Name)
		countMetric(ch, descRestarts, uint64(a.Restarts), a.Name)
		ch <- durations(descWait, &a.Wait, a.Name)
		ch <- durations(descService, &a.Service, a.Name)
	}
}

// perStream reports whether a mailbox belongs to a single watch stream. There are
// thousands of those and each would be a series: they are on the debug page only.
func perStream(name string) bool {
	n, ok := strings.CutPrefix(name, actors.EdgePath+"/watch/")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

func collectLanes(ch chan<- prometheus.Metric, a *actors.ActorStats) {
	var names []string
	for i := range a.Lanes {
		if l := &a.Lanes[i]; l.Name != "" && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
			collectLoad(ch, l, a.Name, l.Name)
		}
	}
}

func collectLoad(ch chan<- prometheus.Metric, l *actors.LaneStats, mailbox, lane string) {
	gaugeMetric(ch, descDepth, float64(l.DepthRequests), mailbox, lane)
	gaugeMetric(ch, descLimit, float64(l.LimitRequests), mailbox, lane)
	gaugeMetric(ch, descHighWater, float64(l.HighWaterRequests), mailbox, lane)
	gaugeMetric(ch, descBytes, float64(l.DepthBytes), mailbox, lane)
	gaugeMetric(ch, descByteLimit, float64(l.LimitBytes), mailbox, lane)
	gaugeMetric(ch, descByteHigh, float64(l.HighWaterBytes), mailbox, lane)
	countMetric(ch, descEnqueued, l.Enqueued, mailbox, lane)
	countMetric(ch, descRequests, l.Requests, mailbox, lane)
	countMetric(ch, descRefused, l.Refused, mailbox, lane)
	countMetric(ch, descDropped, l.Dropped, mailbox, lane)
}

// The exported buckets of wait and service time end at 2^10 ns (1 µs), 2^12 ns
// and so on to 2^34 ns (17 s). The kit's own are sixteen times finer; these are
// as many as a dashboard can use and Prometheus should store.
const (
	firstBucketLog = 10
	lastBucketLog  = 34
	bucketLogStep  = 2
)

// bucketsOf folds a histogram of nanoseconds into the exported buckets. An
// exported bucket's bound is a bound of the kit's buckets too, so none is split.
func bucketsOf(h *actors.HistogramStats) map[float64]uint64 {
	buckets := make(map[float64]uint64, (lastBucketLog-firstBucketLog)/bucketLogStep+1)
	log, below := firstBucketLog, uint64(0)
	for upper, cumulative := range h.Buckets {
		for ; log <= lastBucketLog && upper >= int64(1)<<log; log += bucketLogStep {
			buckets[math.Ldexp(1e-9, log)] = below
		}
		below = cumulative
	}
	for ; log <= lastBucketLog; log += bucketLogStep {
		buckets[math.Ldexp(1e-9, log)] = below
	}
	return buckets
}

func durations(d *prometheus.Desc, h *actors.HistogramStats, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstHistogram(d, h.Count, float64(h.Sum)/1e9, bucketsOf(h), labels...)
}
