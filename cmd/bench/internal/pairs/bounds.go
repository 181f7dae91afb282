package pairs

import (
	"fmt"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
)

// limit is the most that troupe may be in proportion to another contestant.
type limit struct {
	against string
	most    float64
}

// bound is what must hold of troupe under one load: at least one of the
// limits, by the median of the rounds' own ratios.
type bound struct {
	load   string
	figure quantity
	anyOf  []limit
}

// bounds lists what Judge checks; a load that is not here is only measured.
var bounds = []bound{
	{WatchLoad, eventCPU, []limit{{"etcd", 0.6}}},
	{WatchLatencyLoad, p99, []limit{{"etcd", 0.9}}},
	{LeaseKeepAliveLoad, requestCPU, []limit{{"etcd", 0.75}, {"echo", 1.3}}},
}

// Verdict says whether a bound holds.
type Verdict struct {
	What string
	OK   bool
}

// Judge holds the results of each load against its bound, if it has one. A
// bound that was not measured, for want of a contestant, does not hold.
func Judge(cfg Config, r Results) []Verdict {
	var verdicts []Verdict
	for _, load := range cfg.Loads {
		for _, b := range bounds {
			if b.load == load.Name {
				verdicts = append(verdicts, b.judge(r[load.Name]))
			}
		}
	}
	return verdicts
}

// judge takes one load's samples by contestant.
func (b bound) judge(samples map[string][]Sample) Verdict {
	var v Verdict
	var parts []string
	for _, l := range b.anyOf {
		ratios := stats.Ratios(series(samples["troupe"], b.figure), series(samples[l.against], b.figure))
		if len(ratios) == 0 {
			parts = append(parts, fmt.Sprintf("not measured against %s (at most %.2f)", l.against, l.most))
			continue
		}
		ratio := stats.Median(ratios)
		v.OK = v.OK || ratio <= l.most
		parts = append(parts, fmt.Sprintf("%.3f times %s's (at most %.2f)", ratio, l.against, l.most))
	}
	v.What = fmt.Sprintf("%s, %s: %s", b.load, b.figure.name, strings.Join(parts, " or "))
	return v
}

// String is the verdict as one line.
func (v Verdict) String() string {
	if v.OK {
		return "ok: " + v.What
	}
	return "FAIL: " + v.What
}
