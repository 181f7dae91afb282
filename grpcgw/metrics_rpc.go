package grpcgw

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// rpcMetrics counts RPCs under the names of go-grpc-middleware, which are the usual
// ones: grpc_server_{started,handled,msg_received,msg_sent}_total and
// grpc_server_handling_seconds.
//
// The library is not used because it looks up four counters by their labels for each
// request, which costs several times as much as counting (BenchmarkRPCMetrics). Here the
// counters of a method are looked up once, and each count is one atomic addition.
type rpcMetrics struct {
	seconds *prometheus.HistogramVec // nil unless extensive

	methods sync.Map // full method name → *methodMetrics
	clients sync.Map // clientKey → prometheus.Counter
	// clientVersions counts the attempts to add to clients. Only the first
	// maxClientVersions succeed.
	clientVersions atomic.Int64

	received, sent atomic.Uint64 // bytes

	requests       *prometheus.HistogramVec
	clientRequests *prometheus.CounterVec
}

// codesKnown is the number of gRPC codes: OK to Unauthenticated.
const codesKnown = int(codes.Unauthenticated) + 1

// maxClientVersions bounds the client versions that have a series of their own. Real
// clients send one version per release. Without a bound, a client that sends invented
// versions would fill the memory.
const maxClientVersions = 64

type clientKey struct{ kind, version string }

// methodMetrics are the counters of one method.
type methodMetrics struct {
	labels []string // kind (unary, client_stream, server_stream, bidi_stream), service, method

	started, received, sent atomic.Uint64
	handled                 [codesKnown]atomic.Uint64
	seconds                 prometheus.Observer // nil unless extensive

	// For etcd_server_request_duration_seconds; nil if etcd does not export the method.
	success, failure prometheus.Observer
}

func newRPCMetrics(r *prometheus.Registry, extensive bool) *rpcMetrics {
	m := &rpcMetrics{}
	if extensive {
		m.seconds = register(r, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "Time in which the server handled an RPC.",
			Buckets: prometheus.DefBuckets,
		}, rpcLabels))
	}
	m.requests = register(r, prometheus.NewHistogramVec(histogramOpts(namespace, "server", "request_duration_seconds",
		"Time to answer a request, by its type.", 0.001, 14), []string{"type", "success"}))
	m.clientRequests = register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: "server", Name: "client_requests_total",
		Help: "Client requests by the API version that the client names.",
	}, []string{"type", "client_api_version"}))
	r.MustRegister(m)
	return m
}

// requestTypes maps the methods in etcd_server_request_duration_seconds to the values of
// its label type.
var requestTypes = map[string]string{
	"/etcdserverpb.KV/Range":          "Range",
	"/etcdserverpb.KV/Put":            "Put",
	"/etcdserverpb.KV/DeleteRange":    "DeleteRange",
	"/etcdserverpb.KV/Txn":            "Txn",
	"/etcdserverpb.KV/Compact":        "Compaction",
	"/etcdserverpb.Maintenance/Alarm": "Alarm",
}

// Kinds of RPC, as etcd's metrics name them.
const (
	KindUnary  = "unary"
	KindStream = "stream"
)

// Methods that are also counted by metrics of their own.
const (
	methodRange      = "/etcdserverpb.KV/Range"
	methodStream     = "/etcdserverpb.KV/RangeStream"
	methodHash       = "/etcdserverpb.Maintenance/Hash"
	methodHashKV     = "/etcdserverpb.Maintenance/HashKV"
	methodDefragment = "/etcdserverpb.Maintenance/Defragment"
	methodSnapshot   = "/etcdserverpb.Maintenance/Snapshot"
)

// Announce creates the series of every method of a server. A rate over a series that
// begins with the first request would miss that request. Call it before serving.
func (m *Metrics) Announce(server interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}) {
	for service, info := range server.GetServiceInfo() {
		for _, method := range info.Methods {
			name := "/" + service + "/" + method.Name
			m.rpc.methods.Store(name, m.rpc.newMethod(name, streamKind(method.IsClientStream, method.IsServerStream)))
		}
	}
}

func streamKind(client, server bool) string {
	switch {
	case client && server:
		return "bidi_stream"
	case client:
		return "client_stream"
	case server:
		return "server_stream"
	}
	return KindUnary
}

// method returns the counters of a method, and creates them if it was not announced. The
// number of methods is bounded, because they are those of registered services.
func (m *rpcMetrics) method(name string) *methodMetrics {
	if v, ok := m.methods.Load(name); ok {
		return v.(*methodMetrics)
	}
	v, _ := m.methods.LoadOrStore(name, m.newMethod(name, KindUnary))
	return v.(*methodMetrics)
}

func (m *rpcMetrics) newMethod(name, kind string) *methodMetrics {
	service, method, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	c := &methodMetrics{labels: []string{kind, service, method}}
	if m.seconds != nil {
		c.seconds = m.seconds.WithLabelValues(c.labels...)
	}
	if t, ok := requestTypes[name]; ok {
		c.success, c.failure = m.requests.WithLabelValues(t, "true"), m.requests.WithLabelValues(t, "false")
	}
	return c
}

// Started counts an RPC that has started. method is a full name such as
// "/etcdserverpb.KV/Put"; clientVersion is the API version that the client sent, or
// "unknown".
func (m *Metrics) Started(method, kind, clientVersion string) {
	c := m.rpc.method(method)
	c.started.Add(1)
	if kind == KindUnary {
		c.received.Add(1)
	}
	m.rpc.client(kind, clientVersion).Inc()
}

func (m *rpcMetrics) client(kind, version string) prometheus.Counter {
	key := clientKey{kind, version}
	if v, ok := m.clients.Load(key); ok {
		return v.(prometheus.Counter)
	}
	if !utf8.ValidString(version) || m.clientVersions.Add(1) > maxClientVersions {
		return m.clientRequests.WithLabelValues(kind, "other")
	}
	v, _ := m.clients.LoadOrStore(key, m.clientRequests.WithLabelValues(kind, version))
	return v.(prometheus.Counter)
}

// Handled counts an RPC whose handler has returned; err is the error that the client
// receives.
func (m *Metrics) Handled(method, kind string, err error, elapsed time.Duration) {
	c := m.rpc.method(method)
	code := grpcCode(err)
	c.handled[code].Add(1)
	if kind == KindUnary && err == nil {
		c.sent.Add(1)
	}
	seconds := elapsed.Seconds()
	if c.seconds != nil {
		c.seconds.Observe(seconds)
	}
	// Requests that the gateway itself rejects are not counted as requests to the
	// server.
	if c.success != nil && code != codes.InvalidArgument {
		if err == nil {
			c.success.Observe(seconds)
		} else {
			c.failure.Observe(seconds)
		}
	}
	if err == nil {
		m.observeMethod(method, seconds)
	}
}

func (m *Metrics) observeMethod(method string, seconds float64) {
	switch method {
	case methodHash:
		m.hash.Observe(seconds)
	case methodHashKV:
		m.hashRevision.Observe(seconds)
	case methodDefragment:
		m.defrag.Observe(seconds)
	case methodSnapshot:
		m.snapshot.Observe(seconds)
	}
}

// grpcCode returns the code that gRPC sends for an error.
func grpcCode(err error) codes.Code {
	code := status.Code(err)
	if code == codes.Unknown && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		code = status.FromContextError(err).Code()
	}
	if int(code) >= codesKnown {
		return codes.Unknown
	}
	return code
}

// Received counts the encoded size of a message in bytes.
func (m *Metrics) Received(bytes int) { m.rpc.received.Add(uint64(bytes)) }

// Sent counts the encoded size of a message in bytes.
func (m *Metrics) Sent(bytes int) { m.rpc.sent.Add(uint64(bytes)) }

// CountStream returns a stream that counts its messages for
// grpc_server_msg_{received,sent}_total.
func (m *Metrics) CountStream(method string, stream grpc.ServerStream) grpc.ServerStream {
	return &countedStream{stream, m.rpc.method(method)}
}

type countedStream struct {
	grpc.ServerStream
	counters *methodMetrics
}

// SendMsg implements grpc.ServerStream.
func (s *countedStream) SendMsg(msg any) error {
	err := s.ServerStream.SendMsg(msg)
	if err == nil {
		s.counters.sent.Add(1)
	}
	return err
}

// RecvMsg implements grpc.ServerStream.
func (s *countedStream) RecvMsg(msg any) error {
	err := s.ServerStream.RecvMsg(msg)
	if err == nil {
		s.counters.received.Add(1)
	}
	return err
}

// Descriptions of what rpcMetrics collects.
var (
	rpcLabels   = []string{"grpc_type", "grpc_service", "grpc_method"}
	descStarted = prometheus.NewDesc("grpc_server_started_total",
		"RPCs started on the server.", rpcLabels, nil)
	descHandled = prometheus.NewDesc("grpc_server_handled_total",
		"RPCs completed on the server, by code.", append(rpcLabels[:3:3], "grpc_code"), nil)
	descMsgReceived = prometheus.NewDesc("grpc_server_msg_received_total",
		"Messages of RPCs received on the server.", rpcLabels, nil)
	descMsgSent = prometheus.NewDesc("grpc_server_msg_sent_total",
		"Messages of RPCs sent by the server.", rpcLabels, nil)
	descBytesReceived = prometheus.NewDesc("etcd_network_client_grpc_received_bytes_total",
		"Bytes received from gRPC clients.", nil, nil)
	descBytesSent = prometheus.NewDesc("etcd_network_client_grpc_sent_bytes_total",
		"Bytes sent to gRPC clients.", nil, nil)
	descDefragging = prometheus.NewDesc("etcd_disk_defrag_inflight",
		"1 while a defragmentation runs.", nil, nil)
)

// descReading counts requests instead of transactions: a view is immutable, so a read
// opens no transaction.
var descReading = prometheus.NewDesc("etcd_mvcc_db_open_read_transactions",
	"Range requests under way.", nil, nil)

// Describe implements prometheus.Collector.
func (m *rpcMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descStarted, descHandled, descMsgReceived, descMsgSent,
		descBytesReceived, descBytesSent, descDefragging, descReading} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *rpcMetrics) Collect(ch chan<- prometheus.Metric) {
	m.methods.Range(func(_, v any) bool {
		v.(*methodMetrics).collect(ch)
		return true
	})
	ch <- prometheus.MustNewConstMetric(descBytesReceived, prometheus.CounterValue, float64(m.received.Load()))
	ch <- prometheus.MustNewConstMetric(descBytesSent, prometheus.CounterValue, float64(m.sent.Load()))
	ch <- prometheus.MustNewConstMetric(descDefragging, prometheus.GaugeValue, math.Min(1, m.method(methodDefragment).running()))
	ch <- prometheus.MustNewConstMetric(descReading, prometheus.GaugeValue,
		m.method(methodRange).running()+m.method(methodStream).running())
}

func (c *methodMetrics) collect(ch chan<- prometheus.Metric) {
	labels := c.labels
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	count(descStarted, c.started.Load(), labels...)
	count(descMsgReceived, c.received.Load(), labels...)
	count(descMsgSent, c.sent.Load(), labels...)
	for code := range c.handled {
		count(descHandled, c.handled[code].Load(), append(labels[:3:3], codes.Code(code).String())...)
	}
}

// running returns the number of RPCs of the method in progress.
func (c *methodMetrics) running() float64 {
	handled := uint64(0)
	for i := range c.handled {
		handled += c.handled[i].Load()
	}
	return math.Max(0, float64(c.started.Load())-float64(handled))
}
