package monitor

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/proto/peerpb"
)

// Version is a version of the API. That of the cluster has no Patch.
type Version struct{ Major, Minor, Patch uint32 }

// minVersion is the version of a cluster of which not all members are known, as in etcd.
var minVersion = Version{Major: 3}

// ParseVersion parses a version such as 3.7.3 or 3.7.0-rc.1. What follows the patch is ignored.
func ParseVersion(text string) (v Version, err error) {
	core, _, _ := strings.Cut(text, "-")
	core, _, _ = strings.Cut(core, "+")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return Version{}, fmt.Errorf("monitor: version %.40q is not of the form major.minor.patch", text)
	}
	for i, to := range []*uint32{&v.Major, &v.Minor, &v.Patch} {
		n, err := strconv.ParseUint(parts[i], 10, 32)
		if err != nil {
			return Version{}, fmt.Errorf("monitor: version %.40q: %w", text, err)
		}
		*to = uint32(n)
	}
	return v, nil
}

// String implements fmt.Stringer.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

func (v Version) compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch))
}

func (v Version) minor() Version { return Version{Major: v.Major, Minor: v.Minor} }

// lowest returns the lowest version; nil if any is unknown, or if there is none.
func lowest(members []*Version) (low *Version) {
	for _, v := range members {
		switch {
		case v == nil:
			return nil
		case low == nil || v.compare(*low) < 0:
			low = v
		}
	}
	return low
}

// decideClusterVersion decides the version of the cluster by the versions of its members. A
// nil member is unknown, and a nil current version was never set. change is false if the
// version stays as it is. It never falls, and does not leave its major version.
func decideClusterVersion(current *Version, members []*Version) (next Version, change bool) {
	low := lowest(members)
	switch {
	case current == nil && low == nil:
		return minVersion, true
	case current == nil:
		return low.minor(), true
	case low == nil:
		return Version{}, false
	}
	next = low.minor()
	return next, next.Major == current.Major && next.compare(current.minor()) > 0
}

const (
	// versionInterval is the time between two attempts of the leader to raise the version of
	// the cluster, as in etcd.
	versionInterval = 4 * time.Second
	// statusTimeout bounds the time in which a member answers with its status.
	statusTimeout = time.Second
	// proposeTimeout bounds a proposal of a monitor. The next run proposes it again.
	proposeTimeout = 5 * time.Second
)

// Cluster is the monitors' interface to this member. All methods are safe for concurrent use
// and return while the core reboots too.
type Cluster interface {
	// Status returns the state of this member.
	Status() *peerpb.MemberStatus
	// Members returns the ids of all members, this one among them.
	Members() []uint64
	// ClusterVersion returns the replicated version of the cluster; ok is false if it was
	// never set.
	ClusterVersion() (v Version, ok bool)
	// SetClusterVersion proposes the version of the cluster.
	SetClusterVersion(ctx context.Context, v Version) error
	// Linearize waits until the newest view has everything that was committed before.
	Linearize(ctx context.Context) error
	// RaiseCorrupt proposes the alarm CORRUPT for a member. 0 is the whole cluster. It does
	// nothing if the alarm is active.
	RaiseCorrupt(ctx context.Context, member uint64) error
}

// VersionsConfig is what Versions needs.
type VersionsConfig struct {
	MemberID uint64
	Server   Version // of this member
	Cluster  Cluster
	Peers    Peers
	Logger   zerolog.Logger
}

// Versions sets the version of the cluster. Due may be called while Check runs; otherwise it
// is not safe for concurrent use.
type Versions struct {
	cfg VersionsConfig
	run schedule
}

// NewVersions returns the monitor of versions.
func NewVersions(cfg VersionsConfig) *Versions {
	return &Versions{cfg: cfg, run: schedule{every: versionInterval}}
}

// Due reports whether Check has to run: this member leads, the version of the cluster may
// rise, and the last run was in another term or some seconds ago. The version cannot rise
// above that of the leader.
func (v *Versions) Due(now time.Time) bool {
	// This comes first, because it is so most of the time.
	if current, ok := v.cfg.Cluster.ClusterVersion(); ok && current.compare(v.cfg.Server.minor()) >= 0 {
		return false
	}
	s := v.cfg.Cluster.Status()
	return s.Role == peerpb.MemberRole_MEMBER_ROLE_LEADER && v.run.due(now, s.Term)
}

// Check asks all members for their versions, and proposes the version of the cluster if it
// has to change.
func (v *Versions) Check(ctx context.Context, now time.Time) {
	v.run.began(now, v.cfg.Cluster.Status().Term)
	var current *Version
	from := "not_decided"
	if c, ok := v.cfg.Cluster.ClusterVersion(); ok {
		current, from = &c, c.String()
	}
	next, change := decideClusterVersion(current, v.members(ctx))
	if !change || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if err := v.cfg.Cluster.SetClusterVersion(ctx, next); err != nil {
		v.cfg.Logger.Warn().Err(err).Stringer("cluster-version", next).Msg("failed to update cluster version")
		return
	}
	v.cfg.Logger.Info().Str("from", from).Stringer("cluster-version", next).Msg("cluster version is updated")
}

// members returns the versions of all members; nil for one that is unknown.
func (v *Versions) members(ctx context.Context) []*Version {
	var all []*Version
	for _, id := range v.cfg.Cluster.Members() {
		all = append(all, v.member(ctx, id))
	}
	return all
}

func (v *Versions) member(ctx context.Context, id uint64) *Version {
	if id == v.cfg.MemberID {
		return &v.cfg.Server
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var server Version
	s, err := v.cfg.Peers.Status(ctx, id)
	if err == nil {
		server, err = ParseVersion(s.ServerVersion)
	}
	if err != nil {
		v.cfg.Logger.Warn().Str("remote-member-id", hex(id)).Err(err).Msg("failed to get version")
		return nil
	}
	if server.compare(v.cfg.Server) > 0 {
		v.cfg.Logger.Warn().Str("remote-member-id", hex(id)).Stringer("local-member-version", v.cfg.Server).
			Str("remote-member-version", s.ServerVersion).Msg("leader found higher-versioned member")
	}
	return &server
}
