package grpcgw

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

func (m *Metrics) addPromotions() {
	m.promoted = m.counter(namespace, "server", "learner_promote_successes", "Learners promoted while this member was the leader.")
	m.notPromoted = register(m.registry, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: "server",
		Name: "learner_promote_failures", Help: "Promotions of learners that failed while this member was the leader."},
		[]string{"Reason"}))
}

// countPromotion counts a promotion of a learner. The reasons are the errors of Reconfig.
func (m *Metrics) countPromotion(err error) {
	if err == nil {
		m.promoted.Inc()
		return
	}
	m.notPromoted.WithLabelValues(status.Convert(err).Message()).Inc()
}
