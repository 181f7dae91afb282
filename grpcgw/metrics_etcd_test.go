package grpcgw

import (
	"os"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/actors"
)

// leftOut are the metrics of etcd that a member does not export, and why.
var leftOut = map[string]string{
	"etcd_debugging_auth_revision": "there is no authentication, hence no revision of it",

	"etcd_debugging_disk_backend_commit_rebalance_duration_seconds": "a phase of bbolt's commits",
	"etcd_debugging_disk_backend_commit_spill_duration_seconds":     "a phase of bbolt's commits",
	"etcd_debugging_disk_backend_commit_write_duration_seconds":     "a phase of bbolt's commits",

	"etcd_debugging_store_expires_total":        "of the store of etcd's API v2",
	"etcd_debugging_store_watch_requests_total": "of the store of etcd's API v2",
	"etcd_debugging_store_watchers":             "of the store of etcd's API v2",

	"etcd_grpc_proxy_cache_hits_total":          "of etcd's gRPC proxy, which is another program",
	"etcd_grpc_proxy_cache_keys_total":          "of etcd's gRPC proxy, which is another program",
	"etcd_grpc_proxy_cache_misses_total":        "of etcd's gRPC proxy, which is another program",
	"etcd_grpc_proxy_events_coalescing_total":   "of etcd's gRPC proxy, which is another program",
	"etcd_grpc_proxy_watchers_coalescing_total": "of etcd's gRPC proxy, which is another program",
}

// TestEtcdMetrics: every metric that a new etcd 3.7.3 of one member exports is
// there with the same type, unless it is left out for a reason. The file has the
// "# TYPE" lines of etcd's /metrics.
func TestEtcdMetrics(t *testing.T) {
	b, err := os.ReadFile("testdata/etcd-3.7.3-metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	proposer := actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreProposer, Class: actors.Refuse, Limit: actors.Limit{Requests: 1, Bytes: 1}})
	registry := actors.NewRegistry()
	registry.Add(proposer)
	m := NewMetrics(MetricsConfig{
		Mailboxes:   registry.Stats,
		Features:    []Feature{{"FastLeaseKeepAlive", "BETA", true}},
		Descriptors: func() (int, uint64, error) { return 20, 1024, nil },
		Checks:      []string{"fsync", "space"},
	})
	cfg := testConfig(newFakeMember())
	cfg.Observer = m
	if _, err := New(cfg); err != nil { // announces its methods
		t.Fatal(err)
	}
	member := newMonitored(t)
	m.SetMember(member)
	h := NewHTTPHandler(HTTPConfig{Member: member, Metrics: m})
	for _, target := range []string{"/readyz", "/livez"} {
		request(t, h, "GET", target)
	}
	m.Started(methodRange, KindUnary, "3.7")
	text := scrapeText(t, m)
	types := map[string]string{}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			types[name] = kind
		}
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		name, want, _ := strings.Cut(strings.TrimSpace(line), " ")
		known[name] = true
		got, reason := types[name], leftOut[name]
		switch {
		case reason != "" && got != "":
			t.Errorf("%s is exported, and left out: %s", name, reason)
		case reason == "" && got != want:
			t.Errorf("%s: type %q, want %q", name, got, want)
		}
	}
	for name := range leftOut {
		if !known[name] {
			t.Errorf("%s is left out, but etcd has no such metric", name)
		}
	}
	if len(known) < 100 {
		t.Fatalf("the list has only %d metrics", len(known))
	}
	wantLines(t, text, "os_fd_used 20", "os_fd_limit 1024", "etcd_mvcc_db_open_read_transactions 1",
		`troupe_member_trouble{check="fsync"} 0`, `troupe_member_trouble{check="space"} 0`,
		`etcd_disk_backend_snapshot_duration_seconds_bucket{le="655.36"} 0`,
		`etcd_snap_db_save_total_duration_seconds_bucket{le="51.2"} 0`,
		`etcd_snap_fsync_duration_seconds_bucket{le="8.192"} 0`,
		`troupe_client_connections_refused_total{reason="limit"} 0`, "troupe_client_connections 0")
	member.troubles = []Trouble{{"fsync", "slow"}}
	wantLines(t, scrapeText(t, m), `troupe_member_trouble{check="fsync"} 1`, `troupe_member_trouble{check="space"} 0`)
}
