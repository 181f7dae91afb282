package flood

import (
	"fmt"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

func header(cfg Config, m Mode) error {
	text := fmt.Sprintf("%s: %d keys of 1 KiB, %d clients", m.Name, m.Keys, m.Clients)
	if m.Deadline > 0 {
		text += fmt.Sprintf(", deadline %v", m.Deadline)
	}
	if m.Length > 0 {
		text += fmt.Sprintf(", %v", m.Length)
	} else {
		text += fmt.Sprintf(", %d requests", m.Requests)
	}
	_, err := fmt.Fprintf(cfg.Out, "%s\n%s\n", text,
		"server  memory before, peak (anon), at rest, MiB     puts  p50, p99, max, ms          sent  answered   expired   refused    failed  executed")
	if err != nil {
		return fmt.Errorf("flood: %w", err)
	}
	return nil
}

func row(cfg Config, s Sample) error {
	rest := fmt.Sprintf("%+.0f", stats.MiB(s.Kept()))
	if s.Killed {
		rest = "killed"
	}
	memory := fmt.Sprintf("%.0f %+.0f (%+.0f) %s", stats.MiB(s.Before.Resident), stats.MiB(s.Growth()), stats.MiB(s.Peak.Anon-s.Before.Anon), rest)
	text := fmt.Sprintf("%-7s %40s %8d  %-24s %7d %9d %9d %9d %9d %9d\n", s.Server.Name, memory, len(s.Put.Latencies), latencies(s.Put),
		s.Flood.Sent, s.Flood.Answered, s.Flood.Expired, s.Flood.Refused, s.Flood.Failed, s.Executed)
	if n := s.Put.Failed + s.Put.Missed + s.Get.Failed + s.Get.Missed; n > 0 {
		text += fmt.Sprintf("        %d puts and %d gets failed or were late; the last errors: %v; %v\n",
			s.Put.Failed+s.Put.Missed, s.Get.Failed+s.Get.Missed, s.Put.LastError, s.Get.LastError)
	}
	if s.Flood.LastErr != nil {
		text += fmt.Sprintf("        the flood's last failure: %v\n", s.Flood.LastErr)
	}
	if s.Mode.bounds().getP99 > 0 {
		text += fmt.Sprintf("        %d gets of one key: p50, p99, max %s ms; honest ranges: %d sent, %d answered (median %.0f ms), %d refused, %d failed\n",
			len(s.Get.Latencies), latencies(s.Get), s.Honest.Sent, s.Honest.Answered, stats.Milliseconds(stats.Percentile(s.HonestIn, 50)), s.Honest.Refused, s.Honest.Failed)
	}
	if _, err := fmt.Fprint(cfg.Out, text); err != nil {
		return fmt.Errorf("flood: %w", err)
	}
	return nil
}

func latencies(w loadgen.Window) string {
	return fmt.Sprintf("%.1f %.1f %.1f", stats.Milliseconds(w.Percentile(50)), stats.Milliseconds(w.Percentile(99)), stats.Milliseconds(w.Percentile(100)))
}

// judge checks the bounds of the servers that are judged.
func judge(samples []Sample) []verdict.Verdict {
	var verdicts []verdict.Verdict
	for _, s := range samples {
		if s.Server.Judged() {
			verdicts = append(verdicts, s.judge()...)
		}
	}
	return verdicts
}

func (s Sample) judge() []verdict.Verdict {
	who := s.Server.Name + ", " + s.Mode.Name
	if s.Killed {
		return []verdict.Verdict{verdict.Of(false, "%s: survives (killed when it held %.0f MiB)", who, stats.MiB(s.Peak.Resident))}
	}
	var verdicts []verdict.Verdict
	size := func(most, found int64, what string) {
		if most > 0 {
			verdicts = append(verdicts, verdict.Of(found <= most, "%s: memory %s at most %.0f MiB (%+.0f MiB)", who, what, stats.MiB(most), stats.MiB(found)))
		}
	}
	latency := func(most time.Duration, w loadgen.Window, percent float64, what string) {
		if most > 0 {
			found := w.Percentile(percent)
			verdicts = append(verdicts, verdict.Of(len(w.Latencies) > 0 && found <= most, "%s: %s at most %v (%.1f ms of %d)", who, what, most, stats.Milliseconds(found), len(w.Latencies)))
		}
	}
	b := s.Mode.bounds()
	size(b.growth, s.Growth(), "grows by")
	size(b.kept, s.Kept(), "at rest is above that before by")
	latency(b.putP99, s.Put, 99, "put p99")
	latency(b.putMax, s.Put, 100, "slowest put")
	latency(b.getP99, s.Get, 99, "get p99")
	unserved := s.Put.Failed + s.Put.Missed + s.Get.Failed + s.Get.Missed
	return append(verdicts, verdict.Of(unserved == 0, "%s: no put or get of the probes failed (%d)", who, unserved))
}
