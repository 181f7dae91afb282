package grpcgw

import (
	"net/http"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// TestAccess: the responses are those of etcd 3.7.3 with the same --cors and
// --host-whitelist.
func TestAccess(t *testing.T) {
	for _, tc := range []struct {
		name        string
		cors, hosts []string
		method      string
		target      string
		origin      string
		status      int
		allow       string // Access-Control-Allow-Origin
	}{
		{name: "preflight", method: "OPTIONS", target: "/version", status: 200, allow: "*"},
		{name: "preflight of nothing", method: "OPTIONS", target: "/nothing", status: 200, allow: "*"},
		{name: "get", target: "/version", status: 200, allow: "*"},
		{name: "get with origin", target: "/health", origin: "http://a", status: 200, allow: "*"},
		{name: "metrics", target: "/metrics", status: 200, allow: "*"},
		{name: "debug", target: "/debug/vars", status: 200, allow: "*"},
		{name: "error", target: "/nothing", status: 404, allow: "*"},
		{name: "wrong method", method: "POST", target: "/version", status: 405, allow: "*"},
		{name: "star", cors: []string{"http://a", "*"}, target: "/version", origin: "http://b", status: 200, allow: "*"},
		{name: "listed origin", cors: []string{"http://a", "http://b"}, target: "/version", origin: "http://b", status: 200, allow: "http://b"},
		{name: "other origin", cors: []string{"http://a"}, target: "/version", origin: "http://b", status: 200},
		{name: "no origin", cors: []string{"http://a"}, target: "/version", status: 200},
		{name: "preflight of other origin", cors: []string{"http://a"}, method: "OPTIONS", target: "/version", origin: "http://b", status: 200},
		{name: "listed host", hosts: []string{"example.com"}, target: "/version", status: 200, allow: "*"},
		{name: "listed host with port", hosts: []string{"a"}, target: "http://a:2379/version", status: 200, allow: "*"},
		{name: "listed address", hosts: []string{"::1"}, target: "http://[::1]:2379/version", status: 200, allow: "*"},
		{name: "any host", hosts: []string{"*"}, target: "/version", status: 200, allow: "*"},
		{name: "other host", hosts: []string{"a"}, target: "/version", status: 421},
		{name: "preflight of other host", hosts: []string{"a"}, method: "OPTIONS", target: "/version", status: 421},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := new(logBuffer)
			h := NewHTTPHandler(HTTPConfig{Member: newMonitored(t), Metrics: NewMetrics(MetricsConfig{}), Logger: zerolog.New(log),
				CORS: tc.cors, HostWhitelist: tc.hosts})
			if tc.method == "" {
				tc.method = http.MethodGet
			}
			var header []string
			if tc.origin != "" {
				header = []string{"Origin", tc.origin}
			}
			resp := request(t, h, tc.method, tc.target, header...)
			if resp.StatusCode != tc.status {
				t.Errorf("got status %d, want %d", resp.StatusCode, tc.status)
			}
			want := map[string]string{"Access-Control-Allow-Origin": tc.allow}
			if tc.allow != "" {
				want["Access-Control-Allow-Methods"] = "POST, GET, OPTIONS, PUT, DELETE"
				want["Access-Control-Allow-Headers"] = "accept, content-type, authorization"
			}
			for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"} {
				if got := resp.Header.Get(name); got != want[name] {
					t.Errorf("%s: got %q, want %q", name, got, want[name])
				}
			}
			if tc.status == http.StatusMisdirectedRequest {
				if text := body(t, resp); !strings.Contains(text, `--host-whitelist="example.com"`) {
					t.Errorf("got %q, want how to allow the host", text)
				}
				if text := log.String(); !strings.Contains(text, `"host":"example.com"`) {
					t.Errorf("got log %q, want the host", text)
				}
			}
		})
	}
	// As in etcd, the listeners for metrics do not send these headers.
	h := NewMetricsHandler(HTTPConfig{Member: newMonitored(t), Metrics: NewMetrics(MetricsConfig{})})
	if got := request(t, h, http.MethodGet, "/health").Header.Get("Access-Control-Allow-Origin"); got != "" {
		t.Errorf("metrics listener: got allowed origin %q, want none", got)
	}
}
