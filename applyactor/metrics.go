package applyactor

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// MetricsConfig is what Metrics needs.
type MetricsConfig struct {
	// Member is the id of this member.
	Member uint64
	// View returns the newest view, which has members and alarms; nil before the first.
	View func() *mvcc.View
}

// Metrics counts committed requests, and exports members and alarms of the newest view. It
// outlives reboots of the core.
type Metrics struct {
	cfg       MetricsConfig
	committed prometheus.Gauge
}

// NewMetrics declares the metrics. They are registered unless r is nil.
func NewMetrics(r prometheus.Registerer, cfg MetricsConfig) *Metrics {
	m := &Metrics{
		cfg: cfg,
		// This counts requests instead of entries, because an entry has many requests.
		committed: promauto.With(r).NewGauge(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "server",
			Name: "proposals_committed_total", Help: "Client requests in committed raft entries since the start."}),
	}
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

// Descriptions of what is read from the view.
var (
	descAlarms = prometheus.NewDesc("etcd_debugging_server_alarms", "1 for each active alarm.", []string{"server_id", "alarm_type"}, nil)
	descPeers  = prometheus.NewDesc("etcd_network_known_peers", "1 for each member known, this one included.", []string{"Local", "Remote"}, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descAlarms
	ch <- descPeers
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	v := m.cfg.View()
	if v == nil {
		return
	}
	for i, a := range v.Cluster.GetAlarms() {
		// A series must not be exported twice.
		if apply.FindAlarm(v.Cluster.Alarms[:i], a.MemberId, a.Type) < 0 {
			ch <- prometheus.MustNewConstMetric(descAlarms, prometheus.GaugeValue, 1, hexID(a.MemberId), a.Type.String())
		}
	}
	for _, peer := range v.Cluster.GetMembers() {
		ch <- prometheus.MustNewConstMetric(descPeers, prometheus.GaugeValue, 1, hexID(m.cfg.Member), hexID(peer.Id))
	}
}

func hexID(id uint64) string { return strconv.FormatUint(id, 16) }
