package node

import (
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/raft/v3/tracker"

	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/cmd/internal/monitor"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/walactor"
)

// metrics has the metrics of the member's parts, in one registry. They outlive reboots of
// the core.
type metrics struct {
	core    core.Metrics
	peers   *peer.Metrics
	gateway *grpcgw.Metrics
	monitor *monitor.Metrics
}

func (n *Node) newMetrics() metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(n.registry, n.watches, memberCollector{n},
		authn.Collector{Passwords: n.auth.Passwords, Tokens: n.auth.Tokens, Revision: n.authRevision})
	return metrics{
		core: core.Metrics{
			Raft:     raftactor.NewMetrics(r, raftactor.MetricsConfig{Member: n.cfg.MemberID, State: n.shared.Raft, Applied: n.shared.Applied}),
			WAL:      walactor.NewMetrics(r),
			Apply:    applyactor.NewMetrics(r, applyactor.MetricsConfig{Member: n.cfg.MemberID, View: n.shared.Published.View}),
			Lease:    leaseactor.NewMetrics(r),
			Snapshot: snapshot.NewMetrics(r),
			MVCC:     mvccactor.NewMetrics(r, mvccactor.MetricsConfig{SlowApply: n.cfg.SlowApply, Published: n.shared.Published}),
		},
		peers:   peer.NewMetrics(r),
		monitor: monitor.NewMetrics(r),
		gateway: grpcgw.NewMetrics(grpcgw.MetricsConfig{
			Registry: r, QuotaBytes: n.cfg.Gateway.QuotaBytes,
			Extensive: n.cfg.ExtensiveMetrics, Features: n.cfg.Features,
		}),
	}
}

// memberCollector exports the troubles of the member, its file descriptors, the version of
// the cluster, what the leader knows of its followers, and the snapshots in progress.
type memberCollector struct{ n *Node }

// Descriptions of what memberCollector reads.
var (
	descTrouble = prometheus.NewDesc("troupe_member_trouble", "1 if this check of /readyz fails, 0 while the member is healthy.", []string{"check"}, nil)
	descFDUsed  = prometheus.NewDesc("os_fd_used", "File descriptors that the process has open.", nil, nil)
	descVersion = prometheus.NewDesc("etcd_cluster_version", "The API level of the cluster, as a label.", []string{"cluster_version"}, nil)
	descFDLimit = prometheus.NewDesc("os_fd_limit", "File descriptors that the process may have open.", nil, nil)

	descLag       = peerDesc("match_lag_entries", "Committed entries that are not known to be in the log of a member. On the leader only.")
	descInFlight  = peerDesc("in_flight_appends", "Appends to a member that it has not acknowledged. On the leader only.")
	descActive    = peerDesc("recent_active", "1 if a member answered within the last election timeout. On the leader only.")
	descReplicate = peerDesc("replicating", "1 if a member gets the entries of the log in a stream, 0 if it is probed or receives a snapshot. On the leader only.")

	descInstalling  = prometheus.NewDesc("etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot from the leader is applied.", nil, nil)
	descTransferred = prometheus.NewDesc("troupe_snapshot_transferred_bytes", "Bytes so far of the snapshots in progress.", []string{"peer", "direction"}, nil)
	descEstimated   = prometheus.NewDesc("troupe_snapshot_estimated_bytes", "Estimated size of the snapshots in progress.", []string{"peer", "direction"}, nil)
)

func peerDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("troupe_raft_peer_"+name, help, []string{"To"}, nil)
}

// Describe implements prometheus.Collector.
func (c memberCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTrouble, descVersion, descFDUsed, descFDLimit,
		descInstalling, descLag, descInFlight, descActive, descReplicate, descTransferred, descEstimated} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. There is a sample for every check, so that an
// alert on one does not depend on the sample's absence.
func (c memberCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	failing := map[string]float64{}
	for _, t := range c.n.Health() {
		failing[t.Check] = 1
	}
	for _, check := range troubleChecks {
		gauge(descTrouble, failing[check], check)
	}
	if v := c.n.host.Published.View(); v != nil {
		if set := grpcgw.ClusterVersion(v.Cluster); set != "" {
			gauge(descVersion, 1, version.Cluster(set))
		}
	}
	if used, err := c.n.files.count(); err == nil {
		gauge(descFDUsed, float64(used))
		gauge(descFDLimit, float64(c.n.files.limit))
	}
	c.collectPeers(gauge)
}

func (c memberCollector) collectPeers(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	flag := func(on bool) float64 {
		if on {
			return 1
		}
		return 0
	}
	hex := func(id uint64) string { return strconv.FormatUint(id, 16) }
	gauge(descInstalling, flag(c.n.host.Installing()))
	cluster, committed := c.n.Cluster(context.Background()), c.n.host.Raft.Status().Committed
	for _, p := range cluster.Progress {
		to := hex(p.ID)
		gauge(descLag, float64(grpcgw.PeerLag(committed, p)), to)
		gauge(descInFlight, float64(p.InFlight), to)
		gauge(descActive, flag(p.RecentActive), to)
		gauge(descReplicate, flag(p.State == tracker.StateReplicate.String()), to)
	}
	for _, t := range cluster.Snapshots {
		direction := "send"
		if t.Receiving {
			direction = "receive"
		}
		gauge(descTransferred, float64(t.Bytes), hex(t.Peer), direction)
		gauge(descEstimated, float64(t.Estimate), hex(t.Peer), direction)
	}
}
