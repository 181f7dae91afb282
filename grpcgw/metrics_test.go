package grpcgw

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	libmetrics "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func scrapeText(t *testing.T, m *Metrics) string {
	t.Helper()
	h := NewMetricsHandler(HTTPConfig{Member: newMonitored(t), Metrics: m, Logger: zerolog.Nop()})
	resp := request(t, h, http.MethodGet, "/metrics")
	text := body(t, resp)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, text)
	}
	return text
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	have := strings.Split(text, "\n")
	for _, l := range lines {
		if !slices.Contains(have, l) {
			name, _, _ := strings.Cut(l, " ")
			name, _, _ = strings.Cut(name, "{")
			var close []string
			for _, h := range have {
				if strings.HasPrefix(h, name) {
					close = append(close, h)
				}
			}
			t.Errorf("missing %q; there is:\n%s", l, strings.Join(close, "\n"))
		}
	}
}

// TestMetricsOfState: metrics that never change are exported in etcd 3.7.3's form.
func TestMetricsOfState(t *testing.T) {
	m := NewMetrics(MetricsConfig{
		Features: []Feature{{"FastLeaseKeepAlive", "BETA", true}},
	})
	wantLines(t, scrapeText(t, m),
		`etcd_server_version{server_version="3.7.3"} 1`,
		"etcd_server_quota_backend_bytes 2.147483648e+09",
		`etcd_server_feature_enabled{name="FastLeaseKeepAlive",stage="BETA"} 1`,
	)
}

// TestMetricsAtTheStart: series exist before the first event that they count.
func TestMetricsAtTheStart(t *testing.T) {
	m := NewMetrics(MetricsConfig{})
	m.Started(methodRange, KindUnary, "3.7")
	wantLines(t, scrapeText(t, m), "etcd_mvcc_db_open_read_transactions 1",
		`troupe_client_connections_refused_total{reason="limit"} 0`, "troupe_client_connections 0")
}

func TestMetricsOfStages(t *testing.T) {
	m := NewMetrics(MetricsConfig{})
	m.ObserveRange(true, time.Millisecond)
	m.SentEvents(4, 8*time.Millisecond)
	m.SentControl(2 * time.Millisecond)
	m.SentProgress(3 * time.Millisecond)
	wantLines(t, scrapeText(t, m),
		"etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds_sum 0.008",
		"etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds_sum 0.002",
		"etcd_debugging_server_watch_send_loop_control_stream_duration_seconds_sum 0.002",
		"etcd_debugging_server_watch_send_loop_progress_duration_seconds_sum 0.003",
		`etcd_server_range_duration_seconds_count{success="true"} 1`,
	)
}

type announced map[string]grpc.ServiceInfo

func (a announced) GetServiceInfo() map[string]grpc.ServiceInfo { return a }

func TestMetricsOfRPCs(t *testing.T) {
	m := NewMetrics(MetricsConfig{Extensive: true})
	m.Announce(announced{
		"etcdserverpb.KV":    {Methods: []grpc.MethodInfo{{Name: "Put"}, {Name: "Range"}, {Name: "RangeStream", IsServerStream: true}}},
		"etcdserverpb.Watch": {Methods: []grpc.MethodInfo{{Name: "Watch", IsClientStream: true, IsServerStream: true}}},
	})
	const put = "/etcdserverpb.KV/Put"
	m.Started(put, KindUnary, "3.7")
	m.Handled(put, KindUnary, nil, 3*time.Millisecond)
	m.Started(put, KindUnary, "3.7")
	m.Handled(put, KindUnary, status.Error(codes.InvalidArgument, "etcdserver: key is not provided"), time.Millisecond)
	m.Started(put, KindUnary, "unknown")
	m.Handled(put, KindUnary, fmt.Errorf("put: %w", context.DeadlineExceeded), time.Second)
	m.Started(methodRange, KindUnary, "3.7")
	m.Handled(methodRange, KindUnary, nil, time.Millisecond)
	m.Started(methodDefragment, KindUnary, "3.7")
	m.Received(10)
	m.Sent(20)
	s := m.CountStream("/etcdserverpb.Watch/Watch", silentStream{})
	if s.RecvMsg(nil) != nil || s.SendMsg(nil) != nil || s.SendMsg(nil) != nil {
		t.Fatal("stream failed")
	}
	label := func(rest string) string {
		return `{` + rest + `grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`
	}
	wantLines(t, scrapeText(t, m),
		"grpc_server_started_total"+label("")+" 3",
		"grpc_server_handled_total"+label(`grpc_code="OK",`)+" 1",
		"grpc_server_handled_total"+label(`grpc_code="InvalidArgument",`)+" 1",
		"grpc_server_handled_total"+label(`grpc_code="DeadlineExceeded",`)+" 1",
		"grpc_server_handled_total"+label(`grpc_code="Aborted",`)+" 0",
		"grpc_server_msg_received_total"+label("")+" 3",
		"grpc_server_msg_sent_total"+label("")+" 1",
		"grpc_server_handling_seconds_count"+label("")+" 3",
		`grpc_server_started_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 0`,
		`grpc_server_msg_received_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 1`,
		`grpc_server_msg_sent_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 2`,
		`etcd_server_request_duration_seconds_count{success="true",type="Put"} 1`,
		`etcd_server_request_duration_seconds_count{success="false",type="Put"} 1`,
		`etcd_server_client_requests_total{client_api_version="3.7",type="unary"} 4`,
		`etcd_server_client_requests_total{client_api_version="unknown",type="unary"} 1`,
		"etcd_network_client_grpc_received_bytes_total 10",
		"etcd_network_client_grpc_sent_bytes_total 20",
		"etcd_disk_defrag_inflight 1",
	)
	m.Handled(methodDefragment, KindUnary, nil, time.Second)
	wantLines(t, scrapeText(t, m), "etcd_disk_defrag_inflight 0", "etcd_disk_backend_defrag_duration_seconds_count 1")
}

type silentStream struct{ grpc.ServerStream }

func (silentStream) SendMsg(any) error { return nil }
func (silentStream) RecvMsg(any) error { return nil }

// TestClientVersionsAreBounded: invented client versions do not create series without bound.
func TestClientVersionsAreBounded(t *testing.T) {
	m := NewMetrics(MetricsConfig{})
	for i := range 10 * maxClientVersions {
		m.Started(methodRange, KindUnary, fmt.Sprint(i))
	}
	m.Started(methodRange, KindUnary, "\xff")
	text := scrapeText(t, m)
	if n := strings.Count(text, "\netcd_server_client_requests_total{"); n != maxClientVersions+1 {
		t.Errorf("got %d series, want %d", n, maxClientVersions+1)
	}
	wantLines(t, text, fmt.Sprintf(`etcd_server_client_requests_total{client_api_version="other",type="unary"} %d`, 9*maxClientVersions+1))
}

// BenchmarkRPCMetrics compares the cost of counting a unary request with that of the usual
// library, which is why rpcMetrics exists.
func BenchmarkRPCMetrics(b *testing.B) {
	const put = "/etcdserverpb.KV/Put"
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		m := NewMetrics(MetricsConfig{})
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.Started(put, KindUnary, "3.7")
				m.Received(300)
				m.Sent(30)
				m.Handled(put, KindUnary, nil, time.Millisecond)
			}
		})
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		lib := libmetrics.NewServerMetrics()
		prometheus.NewRegistry().MustRegister(lib)
		intercept := lib.UnaryServerInterceptor()
		info := &grpc.UnaryServerInfo{FullMethod: put}
		handler := func(context.Context, any) (any, error) { return nil, nil }
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := intercept(context.Background(), nil, info, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
