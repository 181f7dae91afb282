package crashtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
)

// limited returns an executable that runs another one with a limit on open files.
func limited(t *testing.T, binary string, files int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "limited")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %q \"$@\"\n", files, binary)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConnectionsCannotStarveTheStore: with more clients than the process has file
// descriptors, writes succeed, the store opens files, and health checks are answered.
func TestConnectionsCannotStarveTheStore(t *testing.T) {
	const files, clients = 300, 700
	s := Serve(t, Config{Binary: limited(t, Build(t, false), files), DataDir: t.TempDir()})
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	// Clients connect while writes run. They complete HTTP/2's preface, stay idle, and
	// reconnect if they are refused.
	if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	idle := make(chan struct{})
	for range clients {
		go func() {
			defer func() { idle <- struct{}{} }()
			for {
				idleConnection(ctx, s.Addr())
				select {
				case <-time.After(time.Second): // the backoff of gRPC's clients
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	// Two value logs of 64 MiB.
	value := bytes.Repeat([]byte{'v'}, 1<<20)
	for i := range 140 {
		if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, "k", i), Value: value}); err != nil {
			t.Fatalf("put %d: %v\n%s", i, err, s.Log())
		}
	}
	names, err := filepath.Glob(filepath.Join(s.Config().DataDir, "member", "db", "*.vlog"))
	if err != nil || len(names) < 2 {
		t.Errorf("the store has the value logs %v, %v: none was opened meanwhile", names, err)
	}
	// The clients may still be connecting.
	metrics := httpGet(t, s, "/metrics")
	for deadline := time.Now().Add(readyTimeout); strings.Contains(metrics, noneRefused) && time.Now().Before(deadline); {
		metrics = httpGet(t, s, "/metrics")
	}
	for _, want := range []string{fmt.Sprint("os_fd_limit ", files), "os_fd_used "} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
	if strings.Contains(metrics, noneRefused) {
		t.Error("no connection was refused")
	}
	if text := httpGet(t, s, "/health"); !strings.Contains(text, `"health":"true"`) {
		t.Errorf("health: %s", text)
	}
	cancel()
	for range clients {
		<-idle
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, s.Log())
	}
}

// noneRefused is in the metrics as long as no connection was refused.
const noneRefused = `troupe_client_connections_refused_total{reason="limit"} 0`

// idleConnection connects and reads until the server closes the connection.
func idleConnection(ctx context.Context, addr string) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close()
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = http2.NewFramer(c, nil).WriteSettings()
	_, _ = io.Copy(io.Discard, c)
}

// httpGet returns the body of a response. It tries again like any health check: while
// hundreds of clients connect at once, a connection that has sent nothing yet may be
// closed to make room.
func httpGet(t *testing.T, s *Server, path string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: readyTimeout}
	resp, err := client.Get("http://" + s.Addr() + path)
	for deadline := time.Now().Add(readyTimeout); err != nil && time.Now().Before(deadline); {
		resp, err = client.Get("http://" + s.Addr() + path)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, s.Log())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestStartWithTooFewDescriptors: the start fails, and the error says what to do.
func TestStartWithTooFewDescriptors(t *testing.T) {
	s := Start(t, Config{Binary: limited(t, Build(t, false), 100), DataDir: t.TempDir()})
	if err := s.Ready(t.Context()); err == nil {
		t.Fatal("it starts, want it to refuse")
	}
	<-s.Exited()
	if s.State().Success() {
		t.Error("ended with success")
	}
	if !strings.Contains(s.Log(), "the limit of open files is too low") || !strings.Contains(s.Log(), "ulimit -n") {
		t.Errorf("logged %s", s.Log())
	}
}

// TestStopWithHalfAClient: a stop is graceful and in time although a client has sent only
// the preface of HTTP/2. Before that, compressed calls are served, and thousands of
// connections that send nothing do not delay a new one.
func TestStopWithHalfAClient(t *testing.T) {
	s := Serve(t, Config{Binary: Build(t, false), DataDir: t.TempDir()})
	for range 4200 {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	began := time.Now()
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	put := &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}
	if _, err := pb.NewKVClient(conn).Put(t.Context(), put, grpc.UseCompressor(gzip.Name)); err != nil {
		t.Errorf("a compressed put: %v", err)
	}
	// With the old limit clients waited until other connections timed out.
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the first answer took %v beside silent connections", took)
	}
	half, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := io.WriteString(half, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	httpGet(t, s, "/health") // the server has read the preface now
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, s.Log())
	}
}
