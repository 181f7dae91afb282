package leaseactor

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what the leader does with leases, and what a follower forwards. It outlives reboots of the core.
type Metrics struct{ renewed, expired, forwarded prometheus.Counter }

// NewMetrics declares the metrics. They are registered unless r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	return &Metrics{
		renewed: f.NewCounter(prometheus.CounterOpts{Namespace: "etcd_debugging", Subsystem: "lease", Name: "renewed_total",
			Help: "Renewals of leases by this member as the leader."}),
		expired: f.NewCounter(prometheus.CounterOpts{Namespace: "etcd_debugging", Subsystem: "server", Name: "lease_expired_total",
			Help: "Leases that this member as the leader ended by their time."}),
		forwarded: f.NewCounter(prometheus.CounterOpts{Namespace: "troupe", Subsystem: "lease", Name: "renewals_forwarded_total",
			Help: "Keep-alives that this member as a follower sent to the leader."}),
	}
}
