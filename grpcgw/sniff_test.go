package grpcgw

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// conns reads the metrics of connections.
type conns struct {
	t        *testing.T
	metrics  *Metrics
	registry *prometheus.Registry
}

func newConns(t *testing.T) *conns {
	r := prometheus.NewRegistry()
	return &conns{t, NewMetrics(MetricsConfig{Registry: r}), r}
}

func (c *conns) count(reason string) int {
	return int(actorstest.Metric(c.t, c.registry, "troupe_client_connections_refused_total", reason))
}

func (c *conns) opened() int {
	return int(actorstest.Metric(c.t, c.registry, "troupe_client_connections"))
}

// start serves a gateway on TCP until the test ends.
func start(t *testing.T, cfg Config) (g *Gateway, addr string) {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // connections are closed at once
		_ = g.Stop(ctx)
		if err := <-served; !errors.Is(err, ErrStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return g, l.Addr().String()
}

func connect(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// h2client returns an HTTP client with prior knowledge of HTTP/2.
func h2client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: protocols}}
}

// flight returns the bytes of a client: the preface, and what write adds.
func flight(write func(*http2.Framer)) []byte {
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	if write != nil {
		write(http2.NewFramer(&b, nil))
	}
	return b.Bytes()
}

// headers writes a request of HTTP/2, split into frames of at most size bytes.
func headers(f *http2.Framer, size int, fields ...string) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	b := block.Bytes()
	first := b[:min(size, len(b))]
	b = b[len(first):]
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: len(b) == 0,
		PadLength: 7, Priority: http2.PriorityParam{Weight: 3}})
	for len(b) > 0 {
		next := b[:min(size, len(b))]
		b = b[len(next):]
		_ = f.WriteContinuation(1, len(b) == 0, next)
	}
}

// TestHTTP2WithoutGRPC: plain requests over HTTP/2 are served beside gRPC, both for clients
// that wait for the server's SETTINGS and for those that do not.
func TestHTTP2WithoutGRPC(t *testing.T) {
	cfg := testConfig(newFakeMember())
	cfg.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Proto, " ", r.Method, " ", r.URL.Path, " ", len(body))
	})
	_, addr := start(t, cfg)
	client := h2client()
	for range 3 { // the later ones over the same connection
		for _, size := range []int{0, 1000, 300_000} {
			resp, err := client.Post("http://"+addr+"/version", "text/plain", strings.NewReader(strings.Repeat("x", size)))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := body(t, resp), fmt.Sprint("HTTP/2.0 POST /version ", size); got != want {
				t.Errorf("answered %q, want %q", got, want)
			}
		}
	}
	if _, err := pb.NewKVClient(dial(t, addr)).Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Errorf("gRPC: %v", err)
	}

	// Byte by byte and in frames of a few bytes, as no library sends them.
	for _, patient := range []bool{false, true} {
		c := connect(t, addr)
		_, _ = c.Write(flight(nil))
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		if patient {
			if frame, err := f.ReadFrame(); err != nil || frame.Header().Type != http2.FrameSettings {
				t.Fatalf("before the request: %v, %v, want SETTINGS", frame, err)
			}
			_ = f.WriteSettingsAck()
		}
		headers(f, 5, ":method", "GET", ":scheme", "http", ":authority", addr, ":path", "/health", "x", strings.Repeat("y", 2000))
		if got, want := answer(t, f), "HTTP/2.0 GET /health 0"; got != want {
			t.Errorf("patient %v: answered %q, want %q", patient, got, want)
		}
	}
}

// TestHTTPServer: the listeners for metrics serve both versions of HTTP too.
func TestHTTPServer(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	s := NewHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	for want, client := range map[string]*http.Client{"HTTP/1.1": {Transport: &http.Transport{}}, "HTTP/2.0": h2client()} {
		resp, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, resp); got != want {
			t.Errorf("served over %q, want %q", got, want)
		}
	}
	_ = s.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// answer reads a response to stream 1, acknowledging SETTINGS.
func answer(t *testing.T, f *http2.Framer) string {
	t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			t.Fatalf("no answer, but %v: %s", frame, frame.DebugData())
		case *http2.HeadersFrame:
			if frame.StreamEnded() {
				t.Fatal("got headers alone, want an answer with a body")
			}
		case *http2.DataFrame:
			if len(frame.Data()) > 0 {
				return string(frame.Data())
			}
		}
	}
}

// TestIdentify: the first bytes of a client determine its server. gRPC's content type is found
// wherever it is in the header, so that no gRPC connection goes to net/http.
func TestIdentify(t *testing.T) {
	settings := func(f *http2.Framer) { _ = f.WriteSettings() }
	request := func(fields ...string) func(*http2.Framer) {
		return func(f *http2.Framer) {
			settings(f)
			_ = f.WriteWindowUpdate(0, 100)
			_ = f.WritePing(false, [8]byte{1})
			headers(f, 16, append([]string{":method", "POST", ":scheme", "http", ":path", "/etcdserverpb.KV/Range"}, fields...)...)
		}
	}
	const (
		toGRPC = "gRPC"
		toHTTP = "HTTP"
		closed = "closed"
		late   = "closed, and counted as too late"
	)
	for name, tc := range map[string]struct {
		sent []byte
		ends bool // the client sends no more, and closes
		want string
	}{
		"http 1":               {sent: []byte("GET / HTTP/1.1\r\n"), want: toHTTP},
		"nothing":              {want: late},
		"half a method":        {sent: []byte("PR"), want: late},
		"half a preface":       {sent: flight(nil)[:20], want: late},
		"not the preface":      {sent: []byte("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"), want: closed},
		"preface only":         {sent: flight(nil), want: late},
		"half of SETTINGS":     {sent: flight(settings)[:30], want: late},
		"PING before SETTINGS": {sent: flight(func(f *http2.Framer) { _ = f.WritePing(false, [8]byte{}) }), want: closed},
		"acknowledgement":      {sent: flight(func(f *http2.Framer) { _ = f.WriteSettingsAck() }), want: closed},
		"no request":           {sent: flight(settings), want: toGRPC},
		"no request, and ends": {sent: flight(settings), ends: true, want: closed},
		"grpc":                 {sent: flight(request("content-type", "application/grpc")), want: toGRPC},
		"grpc with subtype":    {sent: flight(request("x", "y", "content-type", "application/grpc+proto")), want: toGRPC},
		"grpc with parameter":  {sent: flight(request("content-type", "application/grpc;x=y")), want: toGRPC},
		"grpc-web":             {sent: flight(request("content-type", "application/grpc-web")), want: toHTTP},
		"json":                 {sent: flight(request("content-type", "application/json")), want: toHTTP},
		"no content type":      {sent: flight(request()), want: toHTTP},
		"half a request":       {sent: cutBy(flight(request()), 3), want: toGRPC},
		"too large a header":   {sent: flight(request("x", strings.Repeat("~", headBytesMax))), want: toGRPC},
		"bad header":           {sent: flight(request("UPPER", "case")), want: toGRPC},
		"only other frames": {want: toGRPC, sent: flight(func(f *http2.Framer) {
			settings(f)
			for range headBytesMax {
				_ = f.WriteSettings()
			}
		})},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := newConns(t)
				cfg := testConfig(newFakeMember())
				cfg.Metrics = seen.metrics
				g, err := New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				ours, theirs := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, theirs) }()
				go func() {
					_, _ = theirs.Write(tc.sent)
					if tc.ends {
						_ = theirs.Close()
					}
				}()
				taken := make(chan string, 2)
				for protocol, q := range map[string]*port.Queue{toGRPC: g.grpcConns, toHTTP: g.httpConns} {
					defer q.Close()
					go func() { // ends with the queue
						if _, err := q.Accept(); err == nil {
							taken <- protocol
						}
					}()
				}
				c := g.conns.add(ours, true)
				go g.dispatch(c)
				time.Sleep(sniffTimeout + requestWait)
				synctest.Wait()
				got := closed
				select {
				case got = <-taken:
				default:
					if seen.count(RefusedTimeout) > 0 {
						got = late
					}
				}
				if got != tc.want {
					t.Errorf("got %s, want %s", got, tc.want)
				}
				if c.head != nil && !bytes.HasPrefix(tc.sent, c.head) {
					t.Errorf("head %q is not what was sent", c.head)
				}
				_ = c.Close()
				_ = theirs.Close()
				if len(g.conns.open) != 0 || g.conns.silent.Len() != 0 {
					t.Errorf("%d connections are left in the table", len(g.conns.open))
				}
			})
		})
	}
}

func cutBy(b []byte, n int) []byte { return b[:len(b)-n] }

// TestRecordedAcknowledgement: net/http reads everything but the acknowledgement of the SETTINGS
// that the sniffer sent.
func TestRecordedAcknowledgement(t *testing.T) {
	var want, sent bytes.Buffer
	both := func(write func(*http2.Framer)) {
		write(http2.NewFramer(&want, nil))
		write(http2.NewFramer(&sent, nil))
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	settings := func(f *http2.Framer) { _ = f.WriteSettings() }
	want.Write(flight(settings))
	both(func(f *http2.Framer) { headers(f, 20, ":method", "GET", ":scheme", "http", ":path", "/") })
	both(func(f *http2.Framer) { _ = f.WritePing(false, [8]byte{}) })
	_ = http2.NewFramer(&sent, nil).WriteSettingsAck()
	both(func(f *http2.Framer) { _ = f.WritePing(false, [8]byte{2}) })
	go func() {
		_, _ = theirs.Write(flight(settings))
		_, _ = http2.NewFramer(nil, theirs).ReadFrame()
		_, _ = theirs.Write(sent.Bytes())
	}()
	g, err := New(testConfig(newFakeMember()))
	if err != nil {
		t.Fatal(err)
	}
	c := g.conns.add(ours, true)
	isGRPC, err := g.identify(c)
	if err != nil || isGRPC {
		t.Fatalf("gRPC %v, %v", isGRPC, err)
	}
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("read %q, %v, want %q", got, err, want.Bytes())
	}
}

// TestSilentConnections: a client is served in spite of many connections that send nothing. The
// oldest of these are closed to make room, and counted.
func TestSilentConnections(t *testing.T) {
	var log bytes.Buffer
	seen := newConns(t)
	cfg := testConfig(newFakeMember())
	cfg.Metrics, cfg.Logger = seen.metrics, zerolog.New(&log)
	cfg.HTTP = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]net.Conn, maxSilent+100)
	for i := range ends {
		var ours net.Conn
		ours, ends[i] = net.Pipe()
		if g.conns.add(ours, true) == nil {
			t.Fatalf("connection %d is refused", i)
		}
	}
	wantClosed(t, ends[0])
	wantClosed(t, ends[99])
	if n := seen.count(RefusedSilent); n != 100 {
		t.Errorf("%d connections are counted as closed, want 100", n)
	}
	if n := seen.opened(); n != maxSilent {
		t.Errorf("%d connections are open, want %d", n, maxSilent)
	}
	// A connection that has sent something is not closed to make room.
	ours, theirs := net.Pipe()
	c := g.conns.add(ours, true)
	if !g.conns.serve(c, true) {
		t.Fatal("no room to serve")
	}
	for range maxSilent {
		ours, _ := net.Pipe()
		g.conns.add(ours, true)
	}
	go func() { _, _ = theirs.Write([]byte("x")) }()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("a connection that is served was closed: %v", err)
	}
	// A shut table closes the connections that no server has.
	g.conns.close()
	if n := seen.opened(); n != 1 {
		t.Errorf("%d connections are open, want the one that is served", n)
	}
	if g.conns.add(ours, true) != nil {
		t.Error("a shut table accepted a connection")
	}
}

// TestConnectionLimit: beyond the limit clients are refused, with a reason if the protocol
// allows one. The last connections are reserved for HTTP, and silent ones are closed to make
// room.
func TestConnectionLimit(t *testing.T) {
	const limit = httpReserve + 2
	log := new(logBuffer)
	seen := newConns(t)
	cfg := testConfig(newFakeMember())
	cfg.Metrics, cfg.Logger = seen.metrics, zerolog.New(log)
	cfg.HTTP = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "well") })
	cfg.MaxConnections = func(int) int { return limit }
	g, addr := start(t, cfg)

	put := func(conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("a")})
		return err
	}
	for i := range 2 {
		if err := put(dial(t, addr)); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
	}
	third := dial(t, addr)
	if err := put(third); status.Code(err) != codes.Unavailable {
		t.Errorf("the client beyond the limit got %v, want Unavailable", err)
	}
	_ = third.Close() // otherwise it would connect again
	beyond := connect(t, addr)
	_, _ = beyond.Write(flight(func(f *http2.Framer) {
		_ = f.WriteSettings()
		headers(f, 100, ":method", "POST", ":scheme", "http", ":path", "/etcdserverpb.KV/Range", "content-type", "application/grpc")
	}))
	if reason := goneAway(http2.NewFramer(nil, beyond)); reason != "too many connections" {
		t.Errorf("a connection beyond the limit ends with %q, want the reason", reason)
	}
	if seen.count(RefusedLimit) == 0 {
		t.Error("the refusal is not counted")
	}

	await(t, "the refused connections are closed", func() bool { return seen.opened() == 2 })
	get := func(client *http.Client) error {
		resp, err := client.Get("http://" + addr + "/health")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		return err
	}
	for range httpReserve {
		if err := get(&http.Client{Transport: &http.Transport{}}); err != nil {
			t.Fatalf("HTTP within its reserve: %v", err)
		}
	}
	refused := seen.count(RefusedLimit)
	if err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}); err == nil {
		t.Error("HTTP beyond the limit is served")
	}
	if n := seen.count(RefusedLimit); n == refused {
		t.Error("the refusal is not counted")
	}
	if n := seen.opened(); n != limit {
		t.Errorf("%d connections are open, want %d", n, limit)
	}
	if !strings.Contains(log.String(), "too many are open") {
		t.Errorf("logged %s", log)
	}

	// The connections of a limited listener count too.
	l := listen(t, "tcp", "127.0.0.1:0")
	defer l.Close()
	limited := g.Limit(l)
	accepted := make(chan error, 1)
	go func() {
		_, err := limited.Accept()
		accepted <- err
	}()
	wantClosed(t, connect(t, l.Addr().String()))
	_ = l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted beyond the limit: %v", err)
	}
}

// goneAway returns the reason with which a server of HTTP/2 closes a connection.
func goneAway(f *http2.Framer) string {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		if f, ok := frame.(*http2.GoAwayFrame); ok {
			return string(f.DebugData())
		}
	}
}

// TestSilentMakeRoom: at the limit, a silent connection is closed to make room for a new one.
func TestSilentMakeRoom(t *testing.T) {
	cfg := testConfig(newFakeMember())
	seen := newConns(t)
	cfg.Metrics = seen.metrics
	cfg.MaxConnections = func(int) int { return httpReserve + 1 }
	_, addr := start(t, cfg)
	var silent []net.Conn
	for range httpReserve + 10 {
		silent = append(silent, connect(t, addr))
	}
	if _, err := pb.NewKVClient(dial(t, addr)).Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Errorf("a client beside silent connections: %v", err)
	}
	wantClosed(t, silent[0])
	if seen.count(RefusedSilent) == 0 || seen.count(RefusedLimit) != 0 {
		t.Errorf("got %d silent connections and %d beyond the limit, want some and none", seen.count(RefusedSilent), seen.count(RefusedLimit))
	}
}

// TestStopWithUnfinishedClients: a stop does not wait for clients that have sent only the
// beginning of a request.
func TestStopWithUnfinishedClients(t *testing.T) {
	for name, sent := range map[string][]byte{
		"nothing":            nil,
		"a letter":           []byte("P"),
		"half a request":     []byte("GET /health HTTP/1.1\r\nHost:"),
		"preface":            flight(nil),
		"preface, half more": append(flight(nil), 0, 0, 6),
		"SETTINGS":           flight(func(f *http2.Framer) { _ = f.WriteSettings() }),
		"half a gRPC call": flight(func(f *http2.Framer) {
			_ = f.WriteSettings()
			var block bytes.Buffer
			e := hpack.NewEncoder(&block)
			for _, field := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"},
				{Name: ":path", Value: "/etcdserverpb.KV/Range"}, {Name: "content-type", Value: "application/grpc"}} {
				_ = e.WriteField(field)
			}
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, err := New(testConfig(newFakeMember()))
			if err != nil {
				t.Fatal(err)
			}
			l := listen(t, "tcp", "127.0.0.1:0")
			served := make(chan error, 1)
			go func() { served <- g.Serve(l) }()
			c := connect(t, l.Addr().String())
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			// Wait until the gateway has read it.
			if _, err := pb.NewKVClient(dial(t, l.Addr().String())).Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); err != nil {
				t.Fatal(err)
			}
			const grace = 200 * time.Millisecond
			ctx, cancel := context.WithTimeout(t.Context(), grace)
			defer cancel()
			began := time.Now()
			if err := g.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Stop: %v", err)
			}
			if took := time.Since(began); took > grace+5*time.Second {
				t.Errorf("Stop took %v, want %v", took, grace)
			}
			if err := <-served; !errors.Is(err, ErrStopped) {
				t.Errorf("Serve: %v", err)
			}
			_ = c.SetReadDeadline(time.Now().Add(sniffTimeout / 5))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is not closed")
			}
		})
	}
}

// TestStopDuringHandshake: a stop ends with its context although gRPC's handshake with a
// client that reads nothing is under way, for which both servers wait.
func TestStopDuringHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := New(testConfig(newFakeMember()))
		if err != nil {
			t.Fatal(err)
		}
		l := port.NewQueue("test")
		served := make(chan error, 1)
		go func() { served <- g.Serve(l) }()
		ours, theirs := net.Pipe()
		defer theirs.Close()
		l.Put(ours)
		go func() { _, _ = theirs.Write(flight(func(f *http2.Framer) { _ = f.WriteSettings() })) }()
		time.Sleep(2 * requestWait) // then gRPC has it, and writes
		synctest.Wait()
		const grace = time.Second
		ctx, cancel := context.WithTimeout(t.Context(), grace)
		defer cancel()
		began := time.Now()
		if err := g.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Stop: got %v, want %v", err, context.DeadlineExceeded)
		}
		if took := time.Since(began); took != grace {
			t.Errorf("Stop took %v, want %v", took, grace)
		}
		if err := <-served; !errors.Is(err, ErrStopped) {
			t.Errorf("Serve: got %v, want %v", err, ErrStopped)
		}
	})
}
