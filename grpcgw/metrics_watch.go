package grpcgw

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// watchMetrics are etcd's metrics of the time to send responses on watch streams. It is
// long if a client does not read.
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

// SentEvents records the time to send a response with events.
func (m *Metrics) SentEvents(events int, elapsed time.Duration) {
	m.watches.events.Observe(elapsed.Seconds())
	m.watches.perEvent.Observe(elapsed.Seconds() / float64(events))
}

// SentControl records the time to send a response that creates or cancels a watcher.
func (m *Metrics) SentControl(elapsed time.Duration) { m.watches.control.Observe(elapsed.Seconds()) }

// SentProgress records the time to send a progress notification.
func (m *Metrics) SentProgress(elapsed time.Duration) { m.watches.progress.Observe(elapsed.Seconds()) }
