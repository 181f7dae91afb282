package raftactor

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/troupe-db/troupe/actors"
)

// MetricsConfig is what Metrics needs.
type MetricsConfig struct {
	// Member is the id of this member.
	Member uint64
	State  *State
	// Applied returns the raft index of the newest view.
	Applied func() uint64
}

// Metrics counts proposals, read indexes and changes of leadership, and exports raft's
// status. It outlives reboots of the core.
type Metrics struct {
	cfg MetricsConfig

	failed                 prometheus.Counter // proposals without an outcome
	leaderChanges          prometheus.Counter
	slowReads, failedReads prometheus.Counter

	// proposer is the mailbox of the current proposer; nil before the first.
	proposer atomic.Pointer[actors.Mailbox]
}

// NewMetrics declares the metrics. They are registered unless r is nil.
func NewMetrics(r prometheus.Registerer, cfg MetricsConfig) *Metrics {
	f := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "server", Name: name, Help: help})
	}
	m := &Metrics{
		cfg:           cfg,
		failed:        counter("proposals_failed_total", "Proposals that timed out, were refused or were lost."),
		leaderChanges: counter("leader_changes_seen_total", "How often this member saw a new leader."),
		slowReads:     counter("slow_read_indexes_total", "Read indexes that came too late or timed out."),
		failedReads:   counter("read_indexes_failed_total", "Read indexes that failed."),
	}
	declareSnapshots(f)
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

// declareSnapshots declares etcd's metrics of raft snapshots that stay at zero: the data of a
// snapshot does not pass through raft.
func declareSnapshots(f promauto.Factory) {
	for _, h := range []struct {
		namespace, name, help string
		start                 float64 // seconds
		count                 int
	}{
		{"etcd", "fsync_duration_seconds", "Time to fsync a raft snapshot.", 0.001, 14},
		{"etcd_debugging", "save_marshalling_duration_seconds", "Time to encode a raft snapshot.", 0.001, 14},
		{"etcd_debugging", "save_total_duration_seconds", "Time to save a raft snapshot.", 0.001, 14},
	} {
		f.NewHistogram(prometheus.HistogramOpts{Namespace: h.namespace, Subsystem: "snap", Name: h.name, Help: h.help,
			Buckets: prometheus.ExponentialBuckets(h.start, 2, h.count)})
	}
}

// Descriptions of what is read at each scrape.
var (
	descHasLeader = prometheus.NewDesc("etcd_server_has_leader", "1 if a leader is known.", nil, nil)
	descIsLeader  = prometheus.NewDesc("etcd_server_is_leader", "1 if this member is the leader.", nil, nil)
	descIsLearner = prometheus.NewDesc("etcd_server_is_learner", "1 if this member is a learner.", nil, nil)
	descServerID  = prometheus.NewDesc("etcd_server_id", "The member's id, as a label in hexadecimal.", []string{"server_id"}, nil)
	descPending   = prometheus.NewDesc("etcd_server_proposals_pending", "Client requests accepted and not yet answered.", nil, nil)
	descCommitted = prometheus.NewDesc("troupe_raft_committed_index", "The raft index up to which entries are committed.", nil, nil)
	descApplied   = prometheus.NewDesc("troupe_raft_applied_index", "The raft index up to which entries are applied.", nil, nil)
	descTerm      = prometheus.NewDesc("troupe_raft_term", "The current raft term.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descHasLeader, descIsLeader, descIsLearner, descServerID, descPending,
		descCommitted, descApplied, descTerm} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	flag := func(d *prometheus.Desc, on bool) {
		v := 0.0
		if on {
			v = 1
		}
		gauge(d, v)
	}
	s := m.cfg.State.Status().WithView(m.cfg.Applied())
	flag(descHasLeader, s.Leader != 0)
	flag(descIsLeader, s.Leader == m.cfg.Member)
	flag(descIsLearner, s.IsLearner)
	gauge(descServerID, 1, strconv.FormatUint(m.cfg.Member, 16))
	gauge(descCommitted, float64(s.Committed))
	gauge(descApplied, float64(s.Applied))
	gauge(descTerm, float64(s.Term))
	if box := m.proposer.Load(); box != nil {
		// The mailbox holds the place of a request until it is answered.
		gauge(descPending, float64(box.Stats().Lanes[proposerCalls].DepthRequests))
	}
}
