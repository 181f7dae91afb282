package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/walactor"
)

// metrics are those of the member's parts, in one registry. They outlive reboots of the
// core.
type metrics struct {
	raft    *raftactor.Metrics
	wal     *walactor.Metrics
	apply   *applyactor.Metrics
	mvcc    *mvccactor.Metrics
	lease   *leaseactor.Metrics
	gateway *grpcgw.Metrics
}

func (n *Node) newMetrics() metrics {
	r := prometheus.NewRegistry()
	return metrics{
		raft:  raftactor.NewMetrics(r, raftactor.MetricsConfig{Member: n.cfg.MemberID, State: n.raft, Applied: n.applied}),
		wal:   walactor.NewMetrics(r),
		apply: applyactor.NewMetrics(r, applyactor.MetricsConfig{Member: n.cfg.MemberID, View: n.published.View}),
		lease: leaseactor.NewMetrics(r),
		mvcc:  mvccactor.NewMetrics(r, mvccactor.MetricsConfig{SlowApply: n.cfg.SlowApply, Published: n.published}),
		gateway: grpcgw.NewMetrics(grpcgw.MetricsConfig{
			Registry: r, Mailboxes: n.registry.Stats, QuotaBytes: n.cfg.Gateway.QuotaBytes,
			Descriptors: func() (int, uint64, error) {
				used, err := n.files.count()
				return used, n.files.limit, err
			},
			Checks:    troubleChecks,
			Extensive: n.cfg.ExtensiveMetrics, Features: n.cfg.Features,
		}),
	}
}
