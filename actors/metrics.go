package actors

import (
	"math"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Descriptions of what a registry exports. The whole mailbox has an
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

// Describe implements prometheus.Collector.
func (r *Registry) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDepth, descLimit, descHighWater, descBytes, descByteLimit, descByteHigh,
		descEnqueued, descRequests, descRefused, descDropped, descBatches, descWait, descService, descRestarts} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (r *Registry) Collect(ch chan<- prometheus.Metric) {
	stats := r.Stats()
	for i := range stats {
		a := &stats[i]
		if perStream(a.Name) {
			continue
		}
		collectLoad(ch, &a.LaneStats, a.Name, "")
		if len(a.Lanes) > 1 {
			collectLanes(ch, a)
		}
		count(ch, descBatches, a.Batches, a.Name)
		count(ch, descRestarts, uint64(a.Restarts), a.Name)
		ch <- durations(descWait, &a.Wait, a.Name)
		ch <- durations(descService, &a.Service, a.Name)
	}
}

// perStream reports whether a mailbox belongs to a single watch stream. There are
// thousands of those and each would be a series: they are on the debug page only.
func perStream(name string) bool {
	n, ok := strings.CutPrefix(name, EdgePath+"/watch/")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

func collectLanes(ch chan<- prometheus.Metric, a *ActorStats) {
	var names []string
	for i := range a.Lanes {
		if l := &a.Lanes[i]; l.Name != "" && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
			collectLoad(ch, l, a.Name, l.Name)
		}
	}
}

func collectLoad(ch chan<- prometheus.Metric, l *LaneStats, mailbox, lane string) {
	gauge(ch, descDepth, float64(l.DepthRequests), mailbox, lane)
	gauge(ch, descLimit, float64(l.LimitRequests), mailbox, lane)
	gauge(ch, descHighWater, float64(l.HighWaterRequests), mailbox, lane)
	gauge(ch, descBytes, float64(l.DepthBytes), mailbox, lane)
	gauge(ch, descByteLimit, float64(l.LimitBytes), mailbox, lane)
	gauge(ch, descByteHigh, float64(l.HighWaterBytes), mailbox, lane)
	count(ch, descEnqueued, l.Enqueued, mailbox, lane)
	count(ch, descRequests, l.Requests, mailbox, lane)
	count(ch, descRefused, l.Refused, mailbox, lane)
	count(ch, descDropped, l.Dropped, mailbox, lane)
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func count(ch chan<- prometheus.Metric, d *prometheus.Desc, n uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
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
func bucketsOf(h *HistogramStats) map[float64]uint64 {
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

func durations(d *prometheus.Desc, h *HistogramStats, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstHistogram(d, h.Count, float64(h.Sum)/1e9, bucketsOf(h), labels...)
}
