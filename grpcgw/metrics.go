package grpcgw

import (
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/version"
)

// Feature is a feature gate, for etcd_server_feature_enabled.
type Feature struct {
	Name, Stage string // Stage is ALPHA, BETA or GA
	Enabled     bool
}

// MetricsConfig is what Metrics needs.
type MetricsConfig struct {
	// Registry is where all parts of the member register their metrics. If it is nil,
	// NewMetrics creates one.
	Registry *prometheus.Registry
	// QuotaBytes is the quota as in Config. It is exported as
	// etcd_server_quota_backend_bytes, which is 0 if there is no quota.
	QuotaBytes int64
	// Extensive adds grpc_server_handling_seconds, as --metrics=extensive does.
	Extensive bool
	Features  []Feature
}

// Metrics are the metrics of the gateway. Those that etcd has too have etcd's names and
// meanings; the names of the others begin with troupe_. Every other part of the member
// has a Metrics of its own in the same registry, which the gateway serves.
//
// Its methods are safe for concurrent use and never block.
type Metrics struct {
	cfg      MetricsConfig
	registry *prometheus.Registry
	rpc      *rpcMetrics

	ranges                               [2]func() prometheus.Observer // by success
	healthSuccess, healthFailure         prometheus.Counter
	healthcheck                          *prometheus.GaugeVec
	healthchecks                         *prometheus.CounterVec
	hash, hashRevision, defrag, snapshot prometheus.Observer
	promoted                             prometheus.Counter
	notPromoted                          *prometheus.CounterVec // by reason
	watches                              watchMetrics
	conns                                connMetrics
}

// NewMetrics declares the metrics of the gateway.
func NewMetrics(cfg MetricsConfig) *Metrics {
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	m := &Metrics{cfg: cfg, registry: cfg.Registry}
	m.rpc = newRPCMetrics(m.registry, cfg.Extensive)
	m.addStorage()
	m.addHealth()
	m.addPromotions()
	m.addWatches()
	m.addConnections()
	m.addConstants()
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// handler serves /metrics.
func (m *Metrics) handler(logger zerolog.Logger) http.Handler {
	return promhttp.InstrumentMetricHandler(m.registry, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: scrapeLog{logger},
		// If one collector fails, the metrics of the others are still served.
		ErrorHandling: promhttp.ContinueOnError,
	}))
}

type scrapeLog struct{ zerolog.Logger }

func (l scrapeLog) Println(v ...any) { l.Warn().Interface("error", v).Msg("metrics incomplete") }

// Namespaces: the first two are etcd's.
const (
	namespace          = "etcd"
	namespaceDebugging = "etcd_debugging"
	namespaceOwn       = "troupe"
)

func (m *Metrics) counter(ns, sub, name, help string) prometheus.Counter {
	return register(m.registry, prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}))
}

func (m *Metrics) gauge(ns, sub, name, help string) prometheus.Gauge {
	return register(m.registry, prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}))
}

func (m *Metrics) histogram(ns, sub, name, help string, start float64, count int) prometheus.Histogram {
	return register(m.registry, prometheus.NewHistogram(histogramOpts(ns, sub, name, help, start, count)))
}

func (m *Metrics) histogramVec(ns, sub, name, help string, start float64, count int, labels ...string) *prometheus.HistogramVec {
	return register(m.registry, prometheus.NewHistogramVec(histogramOpts(ns, sub, name, help, start, count), labels))
}

// histogramOpts returns the options of a histogram with count buckets. Each bound is
// twice the one before, as in all of etcd's histograms.
func histogramOpts(ns, sub, name, help string, start float64, count int) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Namespace: ns, Subsystem: sub, Name: name, Help: help,
		Buckets: prometheus.ExponentialBuckets(start, 2, count),
	}
}

func register[C prometheus.Collector](r *prometheus.Registry, c C) C {
	r.MustRegister(c)
	return c
}

// addStorage adds the metrics of operations that the gateway performs on the store and
// the keyspace.
func (m *Metrics) addStorage() {
	// 0.1 ms to 52 s.
	ranges := m.histogramVec(namespace, "server", "range_duration_seconds",
		"Time to look up a range in the keyspace.", 0.0001, 20, "success")
	for i, success := range []string{"false", "true"} { // a series is created by its first observation
		m.ranges[i] = sync.OnceValue(func() prometheus.Observer { return ranges.WithLabelValues(success) })
	}
	m.defrag = m.histogram(namespace, "disk", "backend_defrag_duration_seconds",
		"Time of one defragmentation.", 0.1, 13)

	m.snapshot = m.histogram(namespace, "disk", "backend_snapshot_duration_seconds",
		"Time to send a snapshot of the backend.", 0.01, 17)

	const mvcc = "mvcc"
	m.hash = m.histogram(namespace, mvcc, "hash_duration_seconds",
		"Time to hash the whole store.", 0.01, 15)
	m.hashRevision = m.histogram(namespace, mvcc, "hash_rev_duration_seconds",
		"Time to hash the keyspace at a revision.", 0.01, 15)
}

func (m *Metrics) addHealth() {
	m.healthSuccess = m.counter(namespace, "server", "health_success", "Health checks that succeeded.")
	m.healthFailure = m.counter(namespace, "server", "health_failures", "Health checks that failed.")
	m.healthcheck = register(m.registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: "server", Name: "healthcheck",
		Help: "The latest result of each check of /livez and /readyz: 1 is success.",
	}, []string{"type", "name"}))
	m.healthchecks = register(m.registry, prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: "server", Name: "healthchecks_total",
		Help: "Checks of /livez and /readyz by result.",
	}, []string{"type", "name", "status"}))
}

// addConstants adds the metrics that never change. Most have the value 1 and carry their
// information in a label.
func (m *Metrics) addConstants() {
	label := func(name, help, label, value string) {
		g := prometheus.NewGauge(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{label: value},
		})
		g.Set(1)
		m.registry.MustRegister(g)
	}
	label("etcd_server_version", "The API level that is served, as a label.", "server_version", version.Version)
	label("etcd_server_go_version", "The Go version of this build, as a label.", "server_go_version", runtime.Version())
	m.gauge(namespace, "server", "quota_backend_bytes", "The quota of the keyspace in bytes.").Set(float64(exportedQuota(m.cfg.QuotaBytes)))
	features := register(m.registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: "server", Name: "feature_enabled",
		Help: "Feature gates: 1 is enabled.",
	}, []string{"name", "stage"}))
	for _, f := range m.cfg.Features {
		features.WithLabelValues(f.Name, f.Stage).Set(flagValue(f.Enabled))
	}
}

func exportedQuota(bytes int64) int64 {
	if bytes == 0 {
		return DefaultQuotaBytes
	}
	return max(bytes, 0)
}

func flagValue(on bool) float64 {
	if on {
		return 1
	}
	return 0
}

// ObserveHash records the duration of a hash of the keyspace that no client asked for.
func (m *Metrics) ObserveHash(elapsed time.Duration) { m.hashRevision.Observe(elapsed.Seconds()) }

// ObserveRange records the duration of a range.
func (m *Metrics) ObserveRange(success bool, elapsed time.Duration) {
	i := 0
	if success {
		i = 1
	}
	m.ranges[i]().Observe(elapsed.Seconds())
}

func (m *Metrics) countHealth(healthy bool) {
	if healthy {
		m.healthSuccess.Inc()
	} else {
		m.healthFailure.Inc()
	}
}

func (m *Metrics) countCheck(kind, name string, err error) {
	result := "success"
	if err != nil {
		result = "error"
	}
	m.healthcheck.WithLabelValues(kind, name).Set(flagValue(err == nil))
	m.healthchecks.WithLabelValues(kind, name, result).Inc()
}
