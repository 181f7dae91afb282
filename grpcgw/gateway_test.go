package grpcgw

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

func dial(t *testing.T, target string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestOneListener: gRPC and HTTP are served on a TCP and on a unix socket.
func TestOneListener(t *testing.T) {
	m := newFakeMember()
	cfg := testConfig(m)
	cfg.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Method, " ", r.URL.Path)
	})
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "client.sock")
	tcp, unix := listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", path)
	served := make(chan error)
	go func() { served <- g.Serve(tcp, unix) }()

	for _, target := range []string{tcp.Addr().String(), "unix:" + path} {
		if _, err := pb.NewKVClient(dial(t, target)).Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); err != nil {
			t.Errorf("gRPC on %s: %v", target, err)
		}
	}
	for _, l := range []net.Listener{tcp, unix} {
		client := &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return net.Dial(l.Addr().Network(), l.Addr().String())
			},
		}}
		// PRI and PROPFIND, POST, PUT share their first letters.
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "PROPFIND"} {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://member/health", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || string(body) != method+" /health" {
				t.Errorf("HTTP on %s: %q, %v", l.Addr(), body, err)
			}
			_ = resp.Body.Close()
		}
	}
	if err := g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, ErrStopped) {
		t.Errorf("Serve returned %v", err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the unix socket is still there")
	}
	if err := g.Serve(listen(t, "tcp", "127.0.0.1:0")); !errors.Is(err, ErrStopped) {
		t.Errorf("Serve after Stop returned %v", err)
	}
}

func TestServeReportsListener(t *testing.T) {
	g, err := New(testConfig(newFakeMember()))
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(l); !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrStopped) {
		t.Errorf("Serve on a closed listener returned %v", err)
	}
	if err := g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStop: Stop waits for a put in progress, or fails it when its context ends.
func TestStop(t *testing.T) {
	for _, finish := range []bool{true, false} {
		m := newFakeMember()
		m.hold, m.held = make(chan struct{}), make(chan struct{}, 1)
		g, err := New(testConfig(m))
		if err != nil {
			t.Fatal(err)
		}
		l := listen(t, "tcp", "127.0.0.1:0")
		served := make(chan error, 1)
		go func() { served <- g.Serve(l) }()
		// A connection whose protocol is not identified.
		silent, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		put := make(chan error, 1)
		kv := pb.NewKVClient(dial(t, l.Addr().String()))
		go func() {
			_, err := kv.Put(context.Background(), &pb.PutRequest{Key: []byte("a")})
			put <- err
		}()
		<-m.held

		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- g.Stop(ctx) }()
		if err := <-served; !errors.Is(err, ErrStopped) {
			t.Errorf("Serve returned %v", err)
		}
		if finish {
			close(m.hold)
			if err := <-put; err != nil {
				t.Errorf("the put under way: %v", err)
			}
			if err := <-stopped; err != nil {
				t.Errorf("Stop: %v", err)
			}
		} else {
			cancel()
			if err := <-stopped; !errors.Is(err, context.Canceled) {
				t.Errorf("Stop out of time: %v", err)
			}
			if err := <-put; err == nil {
				t.Error("a put outlived the gateway")
			}
		}
		cancel()
		wantClosed(t, silent)
		_ = silent.Close()
	}
}

// wantClosed checks that the other end of a connection is closed already, and not only after
// sniffTimeout.
func wantClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(sniffTimeout / 5)); errors.Is(err, io.ErrClosedPipe) {
		return // a pipe knows at once
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is not closed: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"member":   func(c *Config) { c.Member = nil },
		"no bytes": func(c *Config) { c.MaxRequestBytes = 0 },
		"bytes":    func(c *Config) { c.MaxRequestBytes = 1 << 31 },
		"ops":      func(c *Config) { c.MaxTxnOps = 0 },
		"streams":  func(c *Config) { c.MaxConcurrentStreams = 0 },
		"slow":     func(c *Config) { c.SlowRequest = -1 },
		"time":     func(c *Config) { c.KeepaliveTimeout = -1 },
	} {
		cfg := testConfig(newFakeMember())
		spoil(&cfg)
		if _, err := New(cfg); !errors.Is(err, errConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBooting: requests fail while the member has no view.
func TestBooting(t *testing.T) {
	m := newFakeMember()
	m.pub = mvcc.NewPublished()
	conn := serve(t, testConfig(m))
	if _, err := pb.NewMaintenanceClient(conn).Status(t.Context(), &pb.StatusRequest{}); !isError(err, rpctypes.ErrGRPCStopped) {
		t.Errorf("status: %v", err)
	}
	if _, err := readStream(t.Context(), pb.NewKVClient(conn), everything); !isError(err, rpctypes.ErrGRPCStopped) {
		t.Errorf("stream: %v", err)
	}
}

// TestRPCsAreCounted: unary calls, streams and rejected calls are counted.
func TestRPCsAreCounted(t *testing.T) {
	cfg, registry := testConfig(newFakeMember()), prometheus.NewRegistry()
	cfg.Metrics = NewMetrics(MetricsConfig{Registry: registry})
	kv := pb.NewKVClient(serve(t, cfg))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "client-api-version", "3.7")
	req := &pb.RangeRequest{Key: []byte("a")}
	if _, err := kv.Range(ctx, req); err != nil {
		t.Fatal(err)
	}
	if _, err := readStream(t.Context(), kv, req); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(ctx, &pb.PutRequest{}); err == nil {
		t.Fatal("a put without key")
	}
	const service = "etcdserverpb.KV"
	for _, m := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"grpc_server_started_total", []string{"Range", service, "unary"}, 1},
		{"grpc_server_handled_total", []string{"OK", "Range", service, "unary"}, 1},
		{"grpc_server_started_total", []string{"RangeStream", service, "server_stream"}, 1},
		{"grpc_server_handled_total", []string{"OK", "RangeStream", service, "server_stream"}, 1},
		{"grpc_server_started_total", []string{"Put", service, "unary"}, 1},
		{"grpc_server_handled_total", []string{"InvalidArgument", "Put", service, "unary"}, 1},
		{"etcd_server_client_requests_total", []string{"3.7", KindUnary}, 2},
		{"etcd_server_client_requests_total", []string{"unknown", KindStream}, 1},
		{"etcd_network_client_grpc_received_bytes_total", nil, 6}, // two requests of 3 bytes, and an empty one
	} {
		actorstest.Await(t, fmt.Sprint(m), func() bool { return actorstest.Metric(t, registry, m.name, m.labels...) == m.want })
	}
	if sent := actorstest.Metric(t, registry, "etcd_network_client_grpc_sent_bytes_total"); sent == 0 {
		t.Error("got no bytes sent")
	}
}

func TestSlowRequestLog(t *testing.T) {
	m := newFakeMember()
	m.slowest = actors.CorePersister
	m.timeline.Note(actors.TimelineProposer, 1, 1_000_000, 3_000_000, 4_000_000)
	m.timeline.Note(actors.TimelineWAL, 1, 4_000_000, 4_500_000, 24_500_000)
	var out bytes.Buffer
	cfg := testConfig(m)
	cfg.Logger = zerolog.New(&out)
	cfg.SlowRequest = 1 // a nanosecond: every request is slow
	kv := pb.NewKVClient(serve(t, cfg))
	line := func() map[string]any {
		t.Helper()
		var fields map[string]any
		if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
			t.Fatalf("%v in %q", err, out.String())
		}
		if strings.Contains(out.String(), "secret") {
			t.Errorf("a key or value in the log: %s", out.String())
		}
		out.Reset()
		return fields
	}
	if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("secret"), Value: []byte("secret")}); err != nil {
		t.Fatal(err)
	}
	got := line()
	for field, want := range map[string]any{
		"level": "warn", "message": "slow request", "method": "/etcdserverpb.KV/Put",
		"request_keys": 1.0, "request_key_bytes": 6.0, "request_bytes": 16.0, "raft_index": 1.0,
		"slowest_stage": "core/persister",
		"stages": map[string]any{
			"core/proposer": map[string]any{"wait_us": 2000.0, "service_us": 1000.0},
			"core/wal":      map[string]any{"wait_us": 500.0, "service_us": 20000.0},
		},
	} {
		if fmt.Sprint(got[field]) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", field, got[field], want)
		}
	}

	// A request without a response.
	m.proposeCode, m.readCode = raftmsg.Code_STOPPED, raftmsg.Code_STOPPED
	key := []byte("secret")
	for what, call := range map[string]func() error{
		"range":  func() error { _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: key}); return err },
		"put":    func() error { _, err := kv.Put(t.Context(), &pb.PutRequest{Key: key}); return err },
		"delete": func() error { _, err := kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: key}); return err },
		"txn":    func() error { _, err := kv.Txn(t.Context(), &pb.TxnRequest{Success: ops(putOp("secret"))}); return err },
		"compaction": func() error {
			_, err := kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 1})
			return err
		},
	} {
		if err := call(); err == nil {
			t.Fatalf("%s succeeded", what)
		}
		if got := line(); got["error"] == nil || got["response_bytes"] != nil {
			t.Errorf("%s: %v", what, got)
		}
	}
	m.proposeCode, m.readCode = 0, 0

	txn := &pb.TxnRequest{Failure: ops(rangeOp("secret"), rangeOp("secret")), Compare: []*pb.Compare{{Key: []byte("secret")}}}
	if _, err := kv.Txn(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	got = line()
	if got["request_keys"] != 3.0 || got["response_keys"] != 2.0 || got["raft_index"] != nil {
		t.Errorf("txn: got %v, want 3 keys requested, 2 in the response, no entry", got)
	}
	if _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("secret"), RangeEnd: []byte{0}}); err != nil {
		t.Fatal(err)
	}
	got = line()
	if got["response_keys"] != 1.0 || got["error"] != nil {
		t.Errorf("range: got %v, want one key and no error", got)
	}
	stages, _ := got["stages"].(map[string]any)
	for _, stage := range []string{"read/index", "read/scan", "read/encode"} {
		if stages[stage] == nil {
			t.Errorf("range: got stages %v, want %s among them", stages, stage)
		}
	}
	if _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("secret"), Revision: 9}); err == nil {
		t.Fatal("range at a future revision: got no error")
	}
	if got = line(); got["error"] == nil || got["response_bytes"] != nil {
		t.Errorf("failed range: got %v, want an error and no response", got)
	}
}

// TestHandlerPanic: a panic of a handler fails its request, and does not end the process.
func TestHandlerPanic(t *testing.T) {
	m := newFakeMember()
	var out bytes.Buffer
	cfg := testConfig(m)
	cfg.Logger = zerolog.New(&out)
	kv := pb.NewKVClient(serve(t, cfg))
	m.panics = true
	_, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")})
	if status.Code(err) != codes.Internal {
		t.Fatalf("got %v, want Internal", err)
	}
	if log := out.String(); !strings.Contains(log, "KV/Put") || !strings.Contains(log, "fakeMember") {
		t.Errorf("got log %s, want method and panic", log)
	}
	m.panics = false
	if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
}
