package monitor

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// Values of the label check.
const (
	checkInitial    = "initial"
	checkPeriodic   = "periodic"
	checkCompaction = "compaction"
)

// Values of the label result.
const (
	resultEqual     = "equal"
	resultDifferent = "different"
	resultSkipped   = "skipped"
)

// Metrics counts comparisons.
type Metrics struct{ hashes *prometheus.CounterVec }

// NewMetrics registers the metrics of the monitors.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "troupe_member_hashes_compared_total",
		Help: "Hashes of other members' keyspaces that this member compared with its own, by check and result.",
	}, []string{"check", "result"})}
	r.MustRegister(m.hashes)
	for _, check := range []string{checkInitial, checkPeriodic, checkCompaction} {
		for _, result := range []string{resultEqual, resultDifferent, resultSkipped} {
			m.hashes.WithLabelValues(check, result) // exists from now on
		}
	}
	return m
}

func (m *Metrics) compared(check string, own mvcc.HashKV, p PeerHash) {
	result := resultEqual
	switch {
	case incomparable(own, p) != "":
		result = resultSkipped
	case own.Hash != p.Hash.Hash:
		result = resultDifferent
	}
	m.hashes.WithLabelValues(check, result).Inc()
}
