package snapshot

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts snapshots sent and received, under etcd's names. It outlives reboots of the
// core. A nil *Metrics counts nothing.
type Metrics struct {
	send, receive transfers
	save, fsync   prometheus.Histogram
}

// transfers are the metrics of one direction, by the id of the peer.
type transfers struct {
	success, failures *prometheus.CounterVec
	inflight          *prometheus.GaugeVec
	seconds           *prometheus.HistogramVec
}

// NewMetrics declares the metrics. They are registered unless r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	direction := func(verb, label, what string) transfers {
		labels := []string{label}
		return transfers{
			success: f.NewCounterVec(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "network",
				Name: "snapshot_" + verb + "_success", Help: "Snapshots " + what + "."}, labels),
			failures: f.NewCounterVec(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "network",
				Name: "snapshot_" + verb + "_failures", Help: "Snapshots not " + what + " because of an error."}, labels),
			inflight: f.NewGaugeVec(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "network",
				Name: "snapshot_" + verb + "_inflights_total", Help: "Snapshots being " + what + "."}, labels),
			seconds: f.NewHistogramVec(prometheus.HistogramOpts{Namespace: "etcd", Subsystem: "network",
				Name: "snapshot_" + verb + "_total_duration_seconds", Help: "Time until a snapshot is " + what + ".",
				Buckets: prometheus.ExponentialBuckets(0.1, 2, 10)}, labels), // 0.1 s to 51 s
		}
	}
	return &Metrics{
		send:    direction("send", "To", "sent"),
		receive: direction("receive", "From", "received"),
		save: f.NewHistogram(prometheus.HistogramOpts{Namespace: "etcd", Subsystem: "snap_db", Name: "save_total_duration_seconds",
			Help: "Time to save a backend received as a snapshot.", Buckets: prometheus.ExponentialBuckets(0.1, 2, 10)}),
		fsync: f.NewHistogram(prometheus.HistogramOpts{Namespace: "etcd", Subsystem: "snap_db", Name: "fsync_duration_seconds",
			Help: "Time to fsync a backend received as a snapshot.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
}

func (m *Metrics) sending(to uint64) func(error) {
	if m == nil {
		return func(error) {}
	}
	return m.send.start(to)
}

func (m *Metrics) receiving(from uint64) func(error) {
	if m == nil {
		return func(error) {}
	}
	start, end := time.Now(), m.receive.start(from)
	return func(err error) {
		if end(err); err == nil {
			m.save.Observe(time.Since(start).Seconds())
		}
	}
}

// synced counts the time that the last sync of a received store took.
func (m *Metrics) synced(took time.Duration) {
	if m != nil {
		m.fsync.Observe(took.Seconds())
	}
}

// start counts a transfer. The function that it returns ends it.
func (t *transfers) start(peer uint64) (end func(error)) {
	start, id := time.Now(), strconv.FormatUint(peer, 16)
	t.inflight.WithLabelValues(id).Inc()
	return func(err error) {
		t.inflight.WithLabelValues(id).Dec()
		if err != nil {
			t.failures.WithLabelValues(id).Inc()
			return
		}
		t.success.WithLabelValues(id).Inc()
		t.seconds.WithLabelValues(id).Observe(time.Since(start).Seconds())
	}
}
