package applyactor

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// TestMetricsOfTheView: members and alarms are exported by their ids in hexadecimal.
func TestMetricsOfTheView(t *testing.T) {
	registry, view := prometheus.NewRegistry(), (*mvcc.View)(nil)
	NewMetrics(registry, MetricsConfig{Member: 0xa, View: func() *mvcc.View { return view }})
	if families, err := registry.Gather(); err != nil || len(families) != 1 {
		t.Errorf("without a view: got %d metrics (%v), want 1", len(families), err)
	}
	published := mvcc.NewPublished()
	mvcc.NewStore(mvcc.Config{Published: published}).Publish(mvcc.Applied{Cluster: &mvccmsg.Cluster{
		Members: []*applymsg.Member{{Id: 0xa}, {Id: 0xb}},
		Alarms: []*applymsg.Alarm{
			{MemberId: 0xb, Type: pb.AlarmType_NOSPACE, Disk: true}, {MemberId: 0xb, Type: pb.AlarmType_NOSPACE},
			{MemberId: 0xb, Type: pb.AlarmType_CORRUPT},
		},
	}})
	view = published.View()
	for _, m := range []struct {
		name   string
		labels []string
	}{
		{"etcd_debugging_server_alarms", []string{"NOSPACE", "b"}}, {"etcd_debugging_server_alarms", []string{"CORRUPT", "b"}},
		{"etcd_network_known_peers", []string{"a", "a"}}, {"etcd_network_known_peers", []string{"a", "b"}},
	} {
		if got := actorstest.Metric(t, registry, m.name, m.labels...); got != 1 {
			t.Errorf("%s %v: got %v, want 1", m.name, m.labels, got)
		}
	}
}
