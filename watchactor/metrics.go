package watchactor

import "github.com/prometheus/client_golang/prometheus"

// Descriptions of what Streams exports.
var (
	descWatchers  = prometheus.NewDesc("etcd_debugging_mvcc_watcher_total", "Watchers.", nil, nil)
	descStreams   = prometheus.NewDesc("etcd_debugging_mvcc_watch_stream_total", "Streams of watchers.", nil, nil)
	descSlow      = prometheus.NewDesc("etcd_debugging_mvcc_slow_watcher_total", "Watchers that have to read older revisions.", nil, nil)
	descPending   = prometheus.NewDesc("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.", nil, nil)
	descEvents    = prometheus.NewDesc("etcd_debugging_mvcc_events_total", "Events sent since the start.", nil, nil)
	descOverflows = prometheus.NewDesc("troupe_watch_overflows_total", "Times that a stream of watchers was too slow and had to go on from the store.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Streams) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descWatchers, descStreams, descSlow, descPending, descEvents, descOverflows} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Streams) Collect(ch chan<- prometheus.Metric) {
	metric := func(d *prometheus.Desc, kind prometheus.ValueType, n int64) {
		ch <- prometheus.MustNewConstMetric(d, kind, float64(n))
	}
	stats := s.Stats()
	metric(descWatchers, prometheus.GaugeValue, stats.Watchers)
	metric(descStreams, prometheus.GaugeValue, stats.Streams)
	metric(descSlow, prometheus.GaugeValue, stats.Lagging)
	metric(descPending, prometheus.GaugeValue, stats.Pending)
	metric(descEvents, prometheus.CounterValue, stats.Sent)
	metric(descOverflows, prometheus.CounterValue, stats.Lost)
}
