package grpcgw

import (
	"time"

	"google.golang.org/grpc"
)

// Kinds of RPC, as etcd's metrics name them.
const (
	KindUnary  = "unary"
	KindStream = "stream"
)

// Observer counts RPCs, messages and client connections. Its methods are on the
// path of each request: they must be cheap and never block.
type Observer interface {
	// Started is called when an RPC begins. Method is as "/etcdserverpb.KV/Put",
	// clientVersion the API version that the client sent, or "unknown".
	Started(method, kind, clientVersion string)
	// Handled is called when the handler of an RPC has returned; err is the client's
	// error.
	Handled(method, kind string, err error, elapsed time.Duration)
	// Announce is called once, before serving, with the methods of the server.
	Announce(server interface {
		GetServiceInfo() map[string]grpc.ServiceInfo
	})
	// CountStream returns a stream that counts its messages.
	CountStream(method string, stream grpc.ServerStream) grpc.ServerStream
	// ObserveRange records a lookup in the keyspace.
	ObserveRange(success bool, elapsed time.Duration)
	// SentEvents, SentControl and SentProgress record how long it took to send a
	// response of a watch stream, or a fragment of one.
	SentEvents(events int, elapsed time.Duration)
	SentControl(elapsed time.Duration)
	SentProgress(elapsed time.Duration)
	// Received and Sent record the encoded size of a message in bytes.
	Received(bytes int)
	Sent(bytes int)
	// Connections adds to the number of open client connections.
	Connections(change int)
	// Refused counts a connection that was closed instead of served, for one of
	// the reasons RefusedLimit, RefusedSilent and RefusedTimeout.
	Refused(reason string)
}

// nopObserver is an Observer that does nothing.
type nopObserver struct{}

func (nopObserver) Started(string, string, string)               {}
func (nopObserver) Handled(string, string, error, time.Duration) {}
func (nopObserver) ObserveRange(bool, time.Duration)             {}
func (nopObserver) SentEvents(int, time.Duration)                {}
func (nopObserver) SentControl(time.Duration)                    {}
func (nopObserver) SentProgress(time.Duration)                   {}
func (nopObserver) Received(int)                                 {}
func (nopObserver) Sent(int)                                     {}
func (nopObserver) Connections(int)                              {}
func (nopObserver) Refused(string)                               {}

func (nopObserver) Announce(interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}) {
}

func (nopObserver) CountStream(_ string, stream grpc.ServerStream) grpc.ServerStream { return stream }
