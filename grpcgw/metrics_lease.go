package grpcgw

import "github.com/prometheus/client_golang/prometheus"

// leaseMetrics are etcd's numbers of leases.
type leaseMetrics struct {
	granted, revoked, renewed, expired prometheus.Counter
	ttls                               prometheus.Histogram
}

func (m *Metrics) addLeases() {
	const lease = "lease"
	m.leases = leaseMetrics{
		granted: m.counter(namespaceDebugging, lease, "granted_total", "Leases granted."),
		revoked: m.counter(namespaceDebugging, lease, "revoked_total", "Leases that ended, by a client or by their time."),
		renewed: m.counter(namespaceDebugging, lease, "renewed_total", "Renewals of leases by this member as the leader."),
		expired: m.counter(namespaceDebugging, "server", "lease_expired_total", "Leases that this member as the leader ended by their time."),
		// 1 s to 97 days.
		ttls: m.histogram(namespaceDebugging, lease, "ttl_total", "For how many seconds leases are granted.", 1, 24),
	}
}

// LeaseGranted counts a lease that was granted for so many seconds.
func (m *Metrics) LeaseGranted(ttl int64) {
	m.leases.granted.Inc()
	m.leases.ttls.Observe(float64(ttl))
}

// LeaseRevoked counts a lease that ended.
func (m *Metrics) LeaseRevoked() { m.leases.revoked.Inc() }

// LeasesRenewed counts renewals.
func (m *Metrics) LeasesRenewed(renewals int) { m.leases.renewed.Add(float64(renewals)) }

// LeasesExpired counts leases that the leader ended by their time.
func (m *Metrics) LeasesExpired(leases int) { m.leases.expired.Add(float64(leases)) }
