package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/mvccactor/backend"
)

// samples are the values of a member's metrics, by name with labels.
type samples map[string]float64

func (m *clusterMember) scrape() (samples, string) {
	m.c.t.Helper()
	s, text, err := scrape(m.addr)
	if err != nil {
		m.c.t.Fatal(err)
	}
	return s, text
}

// scrapeTimeout is what a busy machine may take.
const scrapeTimeout = 10 * time.Second

func scrape(addr string) (all samples, _ string, err error) {
	client := http.Client{Timeout: scrapeTimeout}
	resp, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, "", err
	}
	all = samples{}
	for line := range bytes.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			all[name] = v
		}
	}
	return all, string(text), nil
}

// clusterTypes are the metrics that etcd 3.7.3 exports only as a member of a cluster.
var clusterTypes = map[string]string{
	"etcd_network_active_peers":                 "gauge",
	"etcd_network_disconnected_peers_total":     "counter",
	"etcd_network_peer_received_bytes_total":    "counter",
	"etcd_network_peer_round_trip_time_seconds": "histogram",
	"etcd_network_peer_sent_bytes_total":        "counter",
	"etcd_network_peer_sent_failures_total":     "counter",
}

// TestClusterMetrics: what etcd's alerts and its dashboard read of a cluster is exported, and
// changes as in etcd when members write, stop and return.
func TestClusterMetrics(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	leader, _ := c.leader()
	for i := range 20 {
		c.members[i%3].mustPut("k", fmt.Sprint(i))
	}
	c.wantEqual()
	peer := func(name, label string, m *clusterMember) string {
		return fmt.Sprintf("%s{%s=%q}", name, label, fmt.Sprintf("%x", m.id))
	}
	between := func(name string, local, remote *clusterMember) string {
		return fmt.Sprintf("%s{Local=%q,Remote=%q}", name, fmt.Sprintf("%x", local.id), fmt.Sprintf("%x", remote.id))
	}
	var others []*clusterMember // of the leader
	for _, m := range c.members {
		if m != leader {
			others = append(others, m)
		}
		c.eventually(fmt.Sprintf("m%d has round-trip times", m.i), func() bool {
			s, _ := m.scrape()
			n := 0.0
			for _, other := range c.members {
				n += min(1, s[peer("etcd_network_peer_round_trip_time_seconds_count", "To", other)])
			}
			return n == 2
		})
		s, text := m.scrape()
		for name, kind := range clusterTypes {
			if !strings.Contains(text, "# TYPE "+name+" "+kind+"\n") {
				t.Errorf("m%d: %s is not exported as a %s", m.i, name, kind)
			}
		}
		leads := 0.0
		if m == leader {
			leads = 1
		}
		for name, want := range map[string]float64{
			"etcd_server_has_leader": 1, "etcd_server_is_leader": leads, "etcd_server_is_learner": 0,
			"etcd_server_proposals_pending": 0, "etcd_server_proposals_failed_total": 0,
			"etcd_server_learner_promote_successes": 0, "etcd_server_heartbeat_send_failures_total": s["etcd_server_heartbeat_send_failures_total"],
		} {
			if got, ok := s[name]; !ok || got != want {
				t.Errorf("m%d: %s: got %v, %v, want %v", m.i, name, got, ok, want)
			}
		}
		for _, name := range []string{"etcd_server_leader_changes_seen_total", "etcd_server_proposals_committed_total", "etcd_server_proposals_applied_total"} {
			if least := map[bool]float64{true: 20, false: 1}[strings.Contains(name, "proposals")]; s[name] < least {
				t.Errorf("m%d: %s: got %v, want at least %v", m.i, name, s[name], least)
			}
		}
		for _, other := range c.members {
			if got := s[between("etcd_network_known_peers", m, other)]; got != 1 {
				t.Errorf("m%d: known_peers of m%d: got %v, want 1", m.i, other.i, got)
			}
			if other == m {
				continue
			}
			if got := s[between("etcd_network_active_peers", m, other)]; got != 1 {
				t.Errorf("m%d: active_peers of m%d: got %v, want 1", m.i, other.i, got)
			}
			for _, name := range []string{peer("etcd_network_peer_sent_bytes_total", "To", other), peer("etcd_network_peer_received_bytes_total", "From", other)} {
				if s[name] == 0 {
					t.Errorf("m%d: %s: got 0, want bytes", m.i, name)
				}
			}
		}
	}

	names := map[string]bool{}
	for _, b := range leader.Actors().Mailboxes {
		names[b.Name] = true
	}
	for _, want := range []string{actors.EdgePeer(others[0].id, "control"), actors.EdgePeer(others[1].id, "log"),
		actors.EdgePeer(others[1].id, "forward"), actors.EdgeSnapshot(0), actors.EdgeSnapshot(1), actors.EdgeLeases} {
		if !names[want] {
			t.Errorf("the debug page has no %s", want)
		}
	}

	gone := others[0]
	before, _ := leader.scrape()
	gone.stop()
	for i := range 20 {
		others[1].mustPut("k", fmt.Sprint(i))
	}
	lag := peer("troupe_raft_peer_match_lag_entries", "To", gone)
	c.eventually("the leader counts what the stopped member lacks", func() bool {
		s, _ := leader.scrape()
		return s[between("etcd_network_active_peers", leader, gone)] == 0 && s[lag] >= 20 &&
			s[peer("troupe_raft_peer_recent_active", "To", gone)] == 0 &&
			s[between("etcd_network_disconnected_peers_total", leader, gone)] > before[between("etcd_network_disconnected_peers_total", leader, gone)] &&
			s[peer("etcd_network_peer_sent_failures_total", "To", gone)] > before[peer("etcd_network_peer_sent_failures_total", "To", gone)]
	})
	s, _ := leader.scrape()
	if got := s[peer("troupe_raft_peer_match_lag_entries", "To", others[1])]; got > 1 {
		t.Errorf("a member in step lags by %v entries, want at most 1", got)
	}
	gone.start(nil)
	gone.awaitReady()
	c.eventually("the member that returned is in step", func() bool {
		s, _ := leader.scrape()
		lag, known := s[lag]
		return known && lag == 0 && s[peer("troupe_raft_peer_replicating", "To", gone)] == 1 && s[between("etcd_network_active_peers", leader, gone)] == 1
	})

	seen, _ := others[1].scrape()
	leader.stop()
	c.leader()
	c.eventually("the change of leader is counted", func() bool {
		s, _ := others[1].scrape()
		return s["etcd_server_leader_changes_seen_total"] > seen["etcd_server_leader_changes_seen_total"] && s["etcd_server_has_leader"] == 1
	})
	others[0].stop()
	c.eventually("a member without a quorum reports that it has no leader", func() bool {
		s, _ := others[1].scrape()
		return s["etcd_server_has_leader"] == 0 && s["etcd_server_is_leader"] == 0
	})
	if s, _ := others[1].scrape(); s[lag] != 0 {
		t.Errorf("a member that does not lead exports a lag of %v", s[lag])
	}
}

// TestSnapshotMetrics: a snapshot in progress is shown on both sides, and is counted when it
// has ended.
func TestSnapshotMetrics(t *testing.T) {
	t.Parallel()
	const value, missed = 256 << 10, 24 // more than the log in memory
	var serves atomic.Bool              // the member that was away
	var installing atomic.Int64         // how often it exported so while it opened a store
	c := startCluster(t, 3, func(_ int, cfg *Config) {
		addr := cfg.Listeners[0].Addr().String()
		cfg.SnapshotSendRate, cfg.CatchUpBytes = 2<<20, 1<<20
		cfg.Logger = cfg.Logger.Hook(zerolog.HookFunc(func(_ *zerolog.Event, level zerolog.Level, msg string) {
			if level >= zerolog.ErrorLevel {
				t.Errorf("logged as an error: %s", msg)
			}
		}))
		cfg.Heartbeat, cfg.Election = 100*time.Millisecond, 3*time.Second // one leader sends it, also on a busy machine
		cfg.Storage = core.Storage{LogSegmentBytes: 8 << 20, MemTableBytes: 8 << 20, ValueLogBytes: 32 << 20,
			OpenStore: func(b backend.Config) (backend.Store, error) {
				if !serves.Load() {
					return backend.Open(b)
				}
				if s, _, err := scrape(addr); err == nil && s["etcd_server_snapshot_apply_in_progress_total"] == 1 {
					installing.Add(1)
				}
				return backend.Open(b)
			}}
	})
	leader, gone := c.leader()
	gone.stop()
	text := make([]byte, value)
	for i := range text {
		text[i] = byte('a' + i%26)
	}
	for i := range missed {
		leader.mustPut(fmt.Sprint("k", i), string(text))
	}
	gone.start(nil)
	serves.Store(true)
	exported := func() bool {
		s, _ := leader.scrape()
		return s[fmt.Sprintf("troupe_snapshot_transferred_bytes{direction=\"send\",peer=\"%x\"}", gone.id)] > 0
	}
	c.eventually("the snapshot is in progress on both sides", func() bool {
		out, in := leader.Cluster(context.Background()), gone.Cluster(context.Background())
		for _, p := range out.Progress {
			if p.ID == gone.id && p.PendingSnapshot == 0 {
				return false
			}
		}
		return len(out.Snapshots) == 1 && !out.Snapshots[0].Receiving && out.Snapshots[0].Peer == gone.id && out.Snapshots[0].Bytes > 0 &&
			out.Snapshots[0].Estimate > value && len(in.Snapshots) == 1 && in.Snapshots[0].Receiving && in.Snapshots[0].Peer == leader.id && exported()
	})
	gone.awaitReady()
	to, from := fmt.Sprintf("{To=\"%x\"}", gone.id), fmt.Sprintf("{From=\"%x\"}", leader.id)
	c.eventually("the snapshot is counted", func() bool {
		out, _ := leader.scrape()
		in, _ := gone.scrape()
		return out["etcd_network_snapshot_send_success"+to] == 1 && out["etcd_network_snapshot_send_inflights_total"+to] == 0 &&
			out["etcd_network_snapshot_send_total_duration_seconds_count"+to] == 1 &&
			in["etcd_network_snapshot_receive_success"+from] == 1 && in["etcd_network_snapshot_receive_inflights_total"+from] == 0 &&
			in["etcd_snap_db_save_total_duration_seconds_count"] == 1 && out["etcd_network_snapshot_send_failures"+to] == 0 &&
			len(leader.Cluster(context.Background()).Snapshots) == 0 && in["etcd_server_snapshot_apply_in_progress_total"] == 0
	})
	if installing.Load() == 0 {
		t.Error("the member that installs a snapshot does not export that it does")
	}
	c.wantEqual()
}
