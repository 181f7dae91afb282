package pairs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// limit bounds the ratio of troupe's figure to another contestant's.
type limit struct {
	against string
	ratio   float64
	least   bool // ratio is the minimum, not the maximum
}

func (l limit) holds(ratio float64) bool {
	if l.least {
		return ratio >= l.ratio
	}
	return ratio <= l.ratio
}

func (l limit) String() string {
	if l.least {
		return fmt.Sprintf("at least %.2f", l.ratio)
	}
	return fmt.Sprintf("at most %.2f", l.ratio)
}

// bound is a condition on troupe under one load: at least one of the limits must hold
// for the median of the ratios of the rounds.
type bound struct {
	load    string
	clients int // the bound is for this number of clients and of connections;
	conns   int // 0 for any
	figure  quantity
	anyOf   []limit
}

// applies reports whether the bound is for the load.
func (b bound) applies(l Load) bool {
	return b.load == l.Name && (b.clients == 0 || b.clients == l.Clients) && (b.conns == 0 || b.conns == l.Conns)
}

// bounds lists the bounds of a single member that Judge checks. Loads without one are only measured.
var bounds = []bound{
	{load: PutLoad, clients: 1, conns: 1, figure: requestCPU, anyOf: []limit{{against: "etcd", ratio: 0.85}}},
	{load: PutLoad, clients: 1, conns: 1, figure: requestRate, anyOf: []limit{{against: "etcd", ratio: 1.05, least: true}}},
	{load: PutLoad, clients: 1000, conns: 100, figure: requestCPU, anyOf: []limit{{against: "etcd", ratio: 0.52}}},
	{load: RangeLoad, figure: requestCPU, anyOf: []limit{{against: "etcd", ratio: 0.25}}},
	{load: WatchLoad, figure: eventCPU, anyOf: []limit{{against: "etcd", ratio: 0.6}}},
	{load: WatchLatencyLoad, figure: p99, anyOf: []limit{{against: "etcd", ratio: 0.9}}},
	{load: LeaseKeepAliveLoad, figure: requestCPU, anyOf: []limit{{against: "etcd", ratio: 0.75}, {against: "echo", ratio: 1.3}}},
}

// clusterBounds lists the bounds of several members, whichever of them the clients use.
// CPU is that of all members.
var clusterBounds = []bound{
	{load: PutLoad, clients: 1, conns: 1, figure: requestRate, anyOf: []limit{{against: "etcd", ratio: 1.0, least: true}}},
	{load: PutLoad, clients: 1000, conns: 100, figure: requestCPU, anyOf: []limit{{against: "etcd", ratio: 0.5}}},
	{load: PutLoad, clients: 1000, conns: 100, figure: requestRate, anyOf: []limit{{against: "etcd", ratio: 1.6, least: true}}},
	{load: GetLoad, clients: 1000, conns: 100, figure: requestCPU, anyOf: []limit{{against: "etcd", ratio: 0.55}}},
	{load: GetUnderPutLoad, figure: p99, anyOf: []limit{{against: "etcd", ratio: 0.4}}},
}

// sharedPortBounds are what is checked beside Troupe with a port for gRPC alone: that a port which
// serves HTTP too is as fast.
var sharedPortBounds = []bound{
	{load: PutLoad, figure: requestRate, anyOf: []limit{{against: grpcOnlyName, ratio: 0.95, least: true}}},
	{load: PutLoad, figure: requestCPU, anyOf: []limit{{against: grpcOnlyName, ratio: 1.05}}},
	{load: GetLoad, figure: requestRate, anyOf: []limit{{against: grpcOnlyName, ratio: 0.95, least: true}}},
	{load: GetLoad, figure: requestCPU, anyOf: []limit{{against: grpcOnlyName, ratio: 1.05}}},
	{load: WatchLoad, figure: eventCPU, anyOf: []limit{{against: grpcOnlyName, ratio: 1.05}}},
}

// Judge checks the results of each load against its bounds, if it has any. If the
// contestant of a bound was not measured, the bound does not hold.
func Judge(cfg Config, r Results) []verdict.Verdict {
	var verdicts []verdict.Verdict
	list := bounds
	switch {
	case slices.ContainsFunc(cfg.Contestants, func(c Contestant) bool { return c.Name == grpcOnlyName }):
		list = sharedPortBounds
	case cfg.clustered():
		list = clusterBounds
	}
	for _, load := range cfg.Loads {
		for _, b := range list {
			if b.applies(load) {
				verdicts = append(verdicts, b.judge(r[load.Name]))
			}
		}
	}
	return verdicts
}

// judge checks the bound against one load's samples by contestant.
func (b bound) judge(samples map[string][]Sample) verdict.Verdict {
	var v verdict.Verdict
	var parts []string
	for _, l := range b.anyOf {
		ratios := stats.Ratios(series(samples["troupe"], b.figure), series(samples[l.against], b.figure))
		if len(ratios) == 0 {
			parts = append(parts, fmt.Sprintf("not measured against %s (%s)", l.against, l))
			continue
		}
		ratio := stats.Median(ratios)
		v.OK = v.OK || l.holds(ratio)
		parts = append(parts, fmt.Sprintf("%.3f times %s's (%s)", ratio, l.against, l))
	}
	v.What = fmt.Sprintf("%s, %s: %s", b.load, b.figure.name, strings.Join(parts, " or "))
	return v
}
