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

func TestParseSum(t *testing.T) {
	const text = "# TYPE x counter\nx{To=\"a b\"} 2\nx{To=\"c\"} 3e1\nx_total 100\ny 7\n"
	for name, want := range map[string]int64{"x": 32, "y": 7, "z": 0} {
		if got, err := parseSum(strings.NewReader(text), name); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", name, got, err, want)
		}
	}
	if _, err := parseSum(strings.NewReader("x{} many\n"), "x"); err == nil {
		t.Error("got no error for a value that is no number")
	}
}
