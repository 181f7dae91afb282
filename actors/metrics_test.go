package actors

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestMetrics: the whole mailbox has an empty lane, and each of several lanes has its own
// series; a watch stream has none.
func TestMetrics(t *testing.T) {
	box := NewMailbox(MailboxConfig{
		Name: CoreProposer,
		Lanes: []Lane{
			{Name: "control", Class: Credit, Limit: Limit{Requests: 1, Bytes: 1}},
			{Name: "calls", Class: Refuse, Limit: Limit{Requests: 6, Bytes: 99}, Hold: true},
		},
	})
	for lane, requests := range []int{1, 2} {
		if err := box.TryPost(lane, "message", Cost{Requests: requests, Bytes: 1}); err != nil {
			t.Fatal(err)
		}
	}
	registry := NewRegistry()
	registry.Add(box)
	registry.Add(NewMailbox(MailboxConfig{Name: EdgeWatch(17), Class: Credit, Limit: Limit{Requests: 1, Bytes: 1}}))
	from := prometheus.NewRegistry()
	from.MustRegister(registry)
	got := map[string]float64{} // by name and lane
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "mailbox" && l.GetValue() != CoreProposer {
					t.Errorf("%s has a series of %s", f.GetName(), l.GetValue())
				}
				if l.GetName() == "lane" {
					key += " " + l.GetValue()
				}
			}
			got[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for key, want := range map[string]float64{
		"troupe_mailbox_limit ": 7, "troupe_mailbox_limit_bytes ": 100, "troupe_mailbox_depth ": 3,
		"troupe_mailbox_depth calls": 2, "troupe_mailbox_requests_total calls": 2, "troupe_mailbox_service_seconds": 0,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s: got %v, want %v", key, v, want)
		}
	}
}

// TestBucketsOfMailboxes: the exported buckets are cumulative, always the same
// ones, and no value is in a bucket below it.
func TestBucketsOfMailboxes(t *testing.T) {
	var h Histogram
	values := []int64{0, 1023, 1024, 4096, 5_000_000, 1 << 36}
	for _, v := range values {
		h.Record(1, v)
	}
	total, _ := h.Read(1)
	buckets := bucketsOf(&total)
	if len(buckets) != 13 {
		t.Errorf("%d buckets", len(buckets))
	}
	for log := firstBucketLog; log <= lastBucketLog; log += bucketLogStep {
		want := uint64(0)
		for _, v := range values {
			if v < 1<<log {
				want++
			}
		}
		bound := float64(int64(1)<<log) * 1e-9
		if got, ok := buckets[bound]; !ok || got != want {
			t.Errorf("bucket %g: %d (%v), want %d", bound, got, ok, want)
		}
	}
}

func TestPerStream(t *testing.T) {
	for name, want := range map[string]bool{
		EdgeWatch(17): true, EdgeWatchHub: false, CoreWAL: false, "edge/watch/": false,
	} {
		if perStream(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
