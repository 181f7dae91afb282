package grpcgw

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// watchMetrics are etcd's numbers of how long responses of watch streams take to
// be sent: a client that does not read shows here.
type watchMetrics struct {
	events, perEvent, control, progress prometheus.Histogram
}

func (m *Metrics) addWatches() {
	loop := func(name, help string) prometheus.Histogram {
		return m.histogram(namespaceDebugging, "server", "watch_send_loop_"+name+"_seconds", help, 0.001, 14)
	}
	m.watches = watchMetrics{
		events:   loop("watch_stream_duration", "How long it takes to send a response with events."),
		perEvent: loop("watch_stream_duration_per_event", "How long it takes to send a response with events, divided by these."),
		control:  loop("control_stream_duration", "How long it takes to send that a watcher begins or ends."),
		progress: loop("progress_duration", "How long it takes to send progress."),
	}
}

// SentEvents records the sending of a response with events.
func (m *Metrics) SentEvents(events int, elapsed time.Duration) {
	m.watches.events.Observe(elapsed.Seconds())
	m.watches.perEvent.Observe(elapsed.Seconds() / float64(events))
}

// SentControl records the sending of the begin or the end of a watcher.
func (m *Metrics) SentControl(elapsed time.Duration) { m.watches.control.Observe(elapsed.Seconds()) }

// SentProgress records the sending of progress.
func (m *Metrics) SentProgress(elapsed time.Duration) { m.watches.progress.Observe(elapsed.Seconds()) }
