package grpcgw

import "github.com/prometheus/client_golang/prometheus"

// connMetrics counts client connections.
type connMetrics struct {
	open    prometheus.Gauge
	refused *prometheus.CounterVec
}

func (m *Metrics) addConnections() {
	const client = "client"
	m.conns = connMetrics{
		open: m.gauge(namespaceOwn, client, "connections", "Open client connections."),
		refused: register(m.registry, prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespaceOwn, Subsystem: client, Name: "connections_refused_total",
			Help: "Client connections that were closed instead of served, by reason.",
		}, []string{"reason"})),
	}
	for _, reason := range []string{RefusedLimit, RefusedSilent, RefusedTimeout, RefusedTLS, RefusedProtocol} {
		m.conns.refused.WithLabelValues(reason)
	}
}

// Connections adds to the number of open client connections.
func (m *Metrics) Connections(change int) { m.conns.open.Add(float64(change)) }

// Refused counts a connection that was closed instead of served, for one of the
// reasons that begin with Refused.
func (m *Metrics) Refused(reason string) { m.conns.refused.WithLabelValues(reason).Inc() }
