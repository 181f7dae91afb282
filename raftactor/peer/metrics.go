package peer

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what goes between members. Labels are member ids in hexadecimal, and a
// member that was removed keeps its counters, as in etcd.
type Metrics struct {
	active                 *prometheus.GaugeVec   // Local, Remote
	disconnected           *prometheus.CounterVec // Local, Remote
	sentBytes, sentFailed  *prometheus.CounterVec // To
	receivedBytes, recvBad *prometheus.CounterVec // From
	roundTrip              *prometheus.HistogramVec
	lateHeartbeats         prometheus.Counter
	dropped                *prometheus.CounterVec // To, lane
	refused                prometheus.Counter
}

// NewMetrics declares the metrics. They are registered unless r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "network", Name: name, Help: help}, labels)
	}
	return &Metrics{
		active: f.NewGaugeVec(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "network", Name: "active_peers",
			Help: "1 while the control connection to a peer is up."}, []string{"Local", "Remote"}),
		disconnected:  counters("disconnected_peers_total", "How often the control connection to a peer was lost.", "Local", "Remote"),
		sentBytes:     counters("peer_sent_bytes_total", "Bytes of frames sent to peers.", "To"),
		receivedBytes: counters("peer_received_bytes_total", "Bytes of frames received from peers.", "From"),
		sentFailed:    counters("peer_sent_failures_total", "Messages to peers that were not sent.", "To"),
		recvBad:       counters("peer_received_failures_total", "Streams of peers that ended with an error.", "From"),
		roundTrip: f.NewHistogramVec(prometheus.HistogramOpts{Namespace: "etcd", Subsystem: "network", Name: "peer_round_trip_time_seconds",
			Help: "Round-trip times to peers.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16)}, []string{"To"}),
		lateHeartbeats: f.NewCounter(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "server", Name: "heartbeat_send_failures_total",
			Help: "Heartbeats that this leader could not send in time."}),
		dropped: f.NewCounterVec(prometheus.CounterOpts{Namespace: "troupe", Subsystem: "peer", Name: "dropped_messages_total",
			Help: "Messages to peers that were dropped, by lane: the mailbox was full, or the connection down."}, []string{"To", "lane"}),
		refused: f.NewCounter(prometheus.CounterOpts{Namespace: "troupe", Subsystem: "peer", Name: "refused_streams_total",
			Help: "Connections and streams to the peer port that were refused."}),
	}
}

// hex formats a member id as labels and logs have it.
func hex(id uint64) string { return strconv.FormatUint(id, 16) }
