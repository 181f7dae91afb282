package walactor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what the log writes. It outlives reboots of the core.
type Metrics struct {
	fsyncs, writes prometheus.Histogram
	bytes          prometheus.Gauge
}

// NewMetrics declares the metrics of the log. They are registered unless r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	seconds := func(name, help string) prometheus.Histogram { // 1 ms to 8 s
		return f.NewHistogram(prometheus.HistogramOpts{Namespace: "etcd", Subsystem: "disk", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)})
	}
	return &Metrics{
		fsyncs: seconds("wal_fsync_duration_seconds", "Time of one fsync of the WAL."),
		writes: seconds("wal_write_duration_seconds", "Time of one write to the WAL."),
		bytes: f.NewGauge(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "disk",
			Name: "wal_write_bytes_total", Help: "Bytes written to the WAL."}),
	}
}

// write counts one write of so many bytes of entries, with or without an fsync.
func (m *Metrics) write(took time.Duration, bytes int, synced bool) {
	m.bytes.Add(float64(bytes))
	m.writes.Observe(took.Seconds())
	if synced {
		m.fsyncs.Observe(took.Seconds())
	}
}
