package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/troupe-db/troupe/grpcgw"
)

const (
	alpha = "ALPHA"
	beta  = "BETA"

	allAlpha = "AllAlpha"
	allBeta  = "AllBeta"

	fastKeepAlive  = "FastLeaseKeepAlive"
	compactHash    = "CompactHashCheck"
	initialCorrupt = "InitialCorruptCheck"
)

// effective are the gates that change what Troupe does, and the groups.
var effective = []string{allAlpha, allBeta, fastKeepAlive, compactHash, initialCorrupt}

// knownFeatures are etcd 3.7's feature gates; see effective. Lease checkpoints are always written and persisted, whatever the
// gates say: without them every new leader would restart all leases.
var knownFeatures = []grpcgw.Feature{
	{Name: allAlpha, Stage: alpha, Enabled: false},
	{Name: allBeta, Stage: beta, Enabled: false},
	{Name: compactHash, Stage: alpha, Enabled: false},
	{Name: fastKeepAlive, Stage: beta, Enabled: true},
	{Name: initialCorrupt, Stage: alpha, Enabled: false},
	{Name: "LeaseCheckpoint", Stage: alpha, Enabled: false},
	{Name: "LeaseCheckpointPersist", Stage: alpha, Enabled: false},
	{Name: "PriorityRequest", Stage: alpha, Enabled: false},
	{Name: "SetMemberLocalAddr", Stage: alpha, Enabled: false},
	{Name: "StopGRPCServiceOnDefrag", Stage: alpha, Enabled: false},
	{Name: "TxnModeWriteWithSharedBuffer", Stage: beta, Enabled: true},
}

// featureGates is the value of --feature-gates: the gates that were set explicitly.
type featureGates struct{ set map[string]bool }

// Set implements flag.Value. It reads "A=true,B=false".
func (g *featureGates) Set(s string) error {
	if g.set == nil {
		g.set = map[string]bool{}
	}
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		if !ok {
			return fmt.Errorf("missing bool value for %s", name)
		}
		on, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
		}
		if !slices.ContainsFunc(knownFeatures, func(f grpcgw.Feature) bool { return f.Name == name }) {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
		g.set[name] = on
	}
	return nil
}

// String implements flag.Value.
func (g *featureGates) String() string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(g.set)) {
		pairs = append(pairs, name+"="+strconv.FormatBool(g.set[name]))
	}
	return strings.Join(pairs, ",")
}

// list returns all features with their current values. AllAlpha and AllBeta enable
// the features of their stage that were not set by name.
func (g *featureGates) list() []grpcgw.Feature {
	features := slices.Clone(knownFeatures)
	for i := range features {
		f := &features[i]
		group := map[string]string{alpha: allAlpha, beta: allBeta}[f.Stage]
		if g.set[group] {
			f.Enabled = true
		}
		if on, ok := g.set[f.Name]; ok {
			f.Enabled = on
		}
	}
	return features
}

// changed lists the features that differ from etcd's defaults and have no effect.
func (g *featureGates) changed() (names []string) {
	for i, f := range g.list() {
		if f.Enabled != knownFeatures[i].Enabled && !slices.Contains(effective, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// enabled reports whether a feature is on.
func (g *featureGates) enabled(name string) bool {
	return slices.ContainsFunc(g.list(), func(f grpcgw.Feature) bool { return f.Name == name && f.Enabled })
}
