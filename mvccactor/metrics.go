package mvccactor

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// MetricsConfig is what Metrics needs.
type MetricsConfig struct {
	// SlowApply is the duration from which an apply counts as slow; 0 counts none.
	SlowApply time.Duration
	// Published is read at each scrape.
	Published *mvcc.Published
}

// Metrics counts what is executed, compacted, committed and scrubbed, and exports the
// sizes of the newest view. It outlives reboots of the core.
type Metrics struct {
	slow time.Duration

	applied                      prometheus.Gauge
	applies                      [operations][2]func() prometheus.Observer // by success; see observers
	slowApplies                  prometheus.Counter
	granted, revoked             prometheus.Counter
	ttls                         prometheus.Histogram
	compactStep, compactTotal    prometheus.Histogram
	reclaimStep                  prometheus.Histogram
	compactedVersions            prometheus.Counter
	lastCompaction               prometheus.Gauge
	commits                      prometheus.Histogram
	scrubbedPacks, scrubbedBytes prometheus.Counter
}

// operation is a kind of request.
type operation int

const (
	opPut operation = iota
	opDeleteRange
	opTxn
	opCompaction
	opLeaseGrant
	opLeaseRevoke
	opLeaseCheckpoint

	operations
)

// operationNames are the values of the label op.
var operationNames = [operations]string{
	opPut: "Put", opDeleteRange: "DeleteRange", opTxn: "Txn", opCompaction: "Compaction",
	opLeaseGrant: "LeaseGrant", opLeaseRevoke: "LeaseRevoke", opLeaseCheckpoint: "LeaseCheckpoint",
}

// NewMetrics declares the metrics of the keyspace and the store. They are registered
// unless r is nil.
func NewMetrics(r prometheus.Registerer, cfg MetricsConfig) *Metrics {
	f := promauto.With(r)
	counter := func(namespace, subsystem, name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	gauge := func(namespace, subsystem, name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	histogram := func(namespace, subsystem, name, help string, start float64, count int) prometheus.Histogram {
		return f.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(start, 2, count)})
	}
	const etcd, debugging, troupe = "etcd", "etcd_debugging", "troupe"
	m := &Metrics{
		slow: cfg.SlowApply,
		applied: gauge(etcd, "server", "proposals_applied_total",
			"Client requests applied since the start."),
		slowApplies: counter(etcd, "server", "slow_apply_total",
			"Applies that took longer than the warning threshold."),
		granted: counter(debugging, "lease", "granted_total", "Leases granted."),
		revoked: counter(debugging, "lease", "revoked_total", "Leases that ended, by a client or by their time."),
		// 1 s to 97 days.
		ttls: histogram(debugging, "lease", "ttl_total", "For how many seconds leases are granted.", 1, 24),
		compactStep: histogram(debugging, "mvcc", "index_compaction_pause_duration_milliseconds",
			"Time of one step that removes superseded versions from the index.", 0.5, 14),
		reclaimStep: histogram(debugging, "mvcc", "db_compaction_pause_duration_milliseconds",
			"Time of one step that gives back the space of superseded versions.", 1, 13),
		compactTotal: histogram(debugging, "mvcc", "db_compaction_total_duration_milliseconds",
			"Time from the start to the end of a compaction.", 100, 14),
		compactedVersions: counter(debugging, "mvcc", "db_compaction_keys_total",
			"Versions removed by compaction."),
		lastCompaction: gauge(debugging, "mvcc", "db_compaction_last",
			"Unix time of the last compaction; 0 before the first since the start."),
		// 1 ms to 8 s.
		commits: histogram(etcd, "disk", "backend_commit_duration_seconds",
			"Time of one commit to the backend.", 0.001, 14),
		scrubbedPacks: counter(troupe, "scrub", "packs_total",
			"Packs read back from the disk and checked."),
		scrubbedBytes: counter(troupe, "scrub", "bytes_total",
			"Bytes of the packs read back from the disk and checked."),
	}
	m.observers(f.NewHistogramVec(prometheus.HistogramOpts{Namespace: etcd, Subsystem: "server",
		Name: "apply_duration_seconds", Help: "Time to apply a request.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20), // 0.1 ms to 52 s
	}, []string{"version", "op", "success"}))
	if r != nil {
		r.MustRegister(viewCollector{cfg.Published}, operationCollector{cfg.Published})
	}
	return m
}

// observers prepares the series of all operations, so that no labels are looked up when a
// request is applied. A series exists from its first use on, or from the start for what
// etcd starts with: a rate over a series that begins with the first request misses that
// request.
func (m *Metrics) observers(v *prometheus.HistogramVec) {
	for op := range operations {
		for i, success := range []string{"false", "true"} {
			m.applies[op][i] = sync.OnceValue(func() prometheus.Observer {
				return v.WithLabelValues("v3", operationNames[op], success)
			})
		}
	}
	for _, op := range []operation{opPut, opDeleteRange, opTxn, opCompaction} {
		m.applies[op][1]()
	}
}

// executed counts one request.
func (m *Metrics) executed(op operation, ok bool, took time.Duration) {
	success := 0
	if ok {
		success = 1
	}
	m.applies[op][success]().Observe(took.Seconds())
	if m.slow > 0 && took > m.slow {
		m.slowApplies.Inc()
	}
}

// leaseGranted counts a lease with a TTL in seconds.
func (m *Metrics) leaseGranted(ttl int64) {
	m.granted.Inc()
	m.ttls.Observe(float64(ttl))
}

// stepped counts a step of a compaction that removed so many versions.
func (m *Metrics) stepped(versions int64, took time.Duration) {
	m.compactedVersions.Add(float64(versions))
	m.compactStep.Observe(milliseconds(took))
}

// compacted counts a compaction that ends now.
func (m *Metrics) compacted(took time.Duration) {
	m.compactTotal.Observe(milliseconds(took))
	m.lastCompaction.Set(float64(time.Now().Unix()))
}

// scrubbed counts a pack that was read back and checked.
func (m *Metrics) scrubbed(bytes int) {
	m.scrubbedPacks.Inc()
	m.scrubbedBytes.Add(float64(bytes))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// operationCollector reads the counts of operations at each scrape.
type operationCollector struct{ published *mvcc.Published }

// Descriptions of what operationCollector reads.
var (
	descPuts     = prometheus.NewDesc("etcd_mvcc_put_total", "Puts executed by this member.", nil, nil)
	descDeletes  = prometheus.NewDesc("etcd_mvcc_delete_total", "Deletes executed by this member.", nil, nil)
	descRanges   = prometheus.NewDesc("etcd_mvcc_range_total", "Ranges executed by this member.", nil, nil)
	descTxns     = prometheus.NewDesc("etcd_mvcc_txn_total", "Transactions of more than one operation executed by this member.", nil, nil)
	descPutBytes = prometheus.NewDesc("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put through this member.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c operationCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPuts, descDeletes, descRanges, descTxns, descPutBytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c operationCollector) Collect(ch chan<- prometheus.Metric) {
	o := c.published.Operations()
	for d, value := range map[*prometheus.Desc]int64{descPuts: o.Puts, descDeletes: o.Deletes, descRanges: o.Ranges, descTxns: o.Txns} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value))
	}
	ch <- prometheus.MustNewConstMetric(descPutBytes, prometheus.GaugeValue, float64(o.PutBytes))
}

// viewCollector reads the newest view at each scrape.
type viewCollector struct{ published *mvcc.Published }

// Descriptions of what viewCollector reads.
var (
	descTotal     = prometheus.NewDesc("etcd_mvcc_db_total_size_in_bytes", "Size of the keyspace, with what compaction has yet to give back.", nil, nil)
	descInUse     = prometheus.NewDesc("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the keyspace, history included.", nil, nil)
	descKeys      = prometheus.NewDesc("etcd_debugging_mvcc_keys_total", "Keys that exist.", nil, nil)
	descRevision  = prometheus.NewDesc("etcd_debugging_mvcc_current_revision", "The current revision.", nil, nil)
	descCompacted = prometheus.NewDesc("etcd_debugging_mvcc_compact_revision", "The lowest revision that can be read; -1 before the first compaction.", nil, nil)
	descResident  = prometheus.NewDesc("troupe_mvcc_resident_bytes", "Bytes of the keyspace's records held in memory.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c viewCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTotal, descInUse, descKeys, descRevision, descCompacted, descResident} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c viewCollector) Collect(ch chan<- prometheus.Metric) {
	v := c.published.View()
	if v == nil {
		return
	}
	for d, value := range map[*prometheus.Desc]int64{
		descTotal: v.Sizes.Total(), descInUse: v.Sizes.InUse(), descKeys: int64(v.Sizes.Keys), descResident: v.Sizes.Resident,
		descRevision: v.Revision, descCompacted: v.CompactRevision,
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value))
	}
}
