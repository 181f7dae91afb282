package node

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/grpcgw"
)

// leftOut are the metrics of etcd that a member does not export, and why.
var leftOut = map[string]string{

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

// scraped starts a member, uses it and returns its metrics.
func scraped(t *testing.T) string {
	t.Helper()
	m := startMember(t, t.TempDir(), func(c *Config) {
		c.Features = []grpcgw.Feature{{Name: "FastLeaseKeepAlive", Stage: "BETA", Enabled: true}}
		c.ExtensiveMetrics = true
	})
	defer m.shut()
	m.put("k", "v")
	m.get("k")
	for _, path := range []string{"/readyz", "/livez", "/health", "/metrics"} {
		m.http(path)
	}
	raise := &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_ACTIVATE, Alarm: etcdserverpb.AlarmType_NOSPACE}
	if _, err := etcdserverpb.NewMaintenanceClient(m.client.ActiveConnection()).Alarm(context.Background(), raise); err != nil {
		t.Fatal(err)
	}
	_, text := m.http("/metrics")
	return text
}

// TestEtcdMetrics: every metric that a new etcd 3.7.3 of one member exports is exported with
// the same type, unless leftOut has a reason. The file has the "# TYPE" lines of etcd's
// /metrics.
func TestEtcdMetrics(t *testing.T) {
	b, err := os.ReadFile("testdata/etcd-3.7.3-metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for line := range strings.Lines(scraped(t)) {
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
			t.Errorf("%s is exported, but in leftOut: %s", name, reason)
		case reason == "" && got != want:
			t.Errorf("%s: got type %q, want %q", name, got, want)
		}
	}
	for name := range leftOut {
		if !known[name] {
			t.Errorf("%s is in leftOut, but etcd has no such metric", name)
		}
	}
	if len(known) < 100 {
		t.Fatalf("got %d metrics in the list, want at least 100", len(known))
	}
}

// TestTroubleOfHealthyMember: each check of /readyz that a member may fail has a sample
// while it is healthy, so that an alert can tell 0 from a metric that is missing.
func TestTroubleOfHealthyMember(t *testing.T) {
	var got []string
	for line := range strings.Lines(scraped(t)) {
		if rest, ok := strings.CutPrefix(line, "troupe_member_trouble{"); ok {
			got = append(got, strings.TrimSpace(rest))
		}
	}
	want := []string{`check="apply"} 0`, `check="corruption"} 0`, `check="fsync"} 0`, `check="log"} 0`, `check="space"} 0`, `check="store"} 0`}
	if !slices.Equal(got, want) {
		t.Errorf("got the samples %q, want %q", got, want)
	}
}

// labelValue matches the value of a label, with its quotes.
var labelValue = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// TestMetricsAreStable: names, types, help texts, labels and the bounds of histograms are
// those in the file, because dashboards and alerts rely on them. With UPDATE_METRICS=1 it
// writes the file.
func TestMetricsAreStable(t *testing.T) {
	const file = "testdata/metrics.txt"
	var got []string
	for line := range strings.Lines(scraped(t)) {
		line = strings.TrimSpace(line)
		if name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "); strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue // of the client library
		}
		if !strings.HasPrefix(line, "#") {
			line = line[:strings.LastIndex(line, " ")] // without the value
			name, labels, ok := strings.Cut(line, "{")
			if bound := strings.Index(labels, `le="`); bound >= 0 {
				labels = labelValue.ReplaceAllString(labels[:bound], "") + labels[bound:]
			} else {
				labels = labelValue.ReplaceAllString(labels, "")
			}
			if line = name; ok {
				line += "{" + labels
			}
		}
		if !slices.Contains(got, line) {
			got = append(got, line)
		}
	}
	if os.Getenv("UPDATE_METRICS") != "" {
		if err := os.WriteFile(file, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("missing: %s", l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			t.Errorf("new, and not in %s: %s", file, l)
		}
	}
}
