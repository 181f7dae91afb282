package scrape

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestMetric(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# TYPE heap gauge\nheap_max 7\nheap 1.5e+06\nodd x\n")
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	endpoint := strings.TrimPrefix(server.URL, "http://")
	if got, err := Metric(t.Context(), endpoint, "heap"); err != nil || got != 1_500_000 {
		t.Errorf("heap: got %d, %v; want 1500000", got, err)
	}
	for _, name := range []string{"other", "odd"} {
		if got, err := Metric(t.Context(), endpoint, name); err == nil {
			t.Errorf("%s: got %d, want an error", name, got)
		}
	}
	if err := Get(t.Context(), server.URL+"/none", "text/plain", func(io.Reader) error { return nil }); err == nil {
		t.Error("status 404 was accepted")
	}
}
