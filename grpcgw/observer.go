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

// Observer is told of every RPC and of every message on client connections. Its
// methods are on the path of each request: they must be cheap and never block.
type Observer interface {
	// Started tells that an RPC begins. Method is as "/etcdserverpb.KV/Put",
	// clientVersion what the client says of its API version, "unknown" if
	// nothing.
	Started(method, kind, clientVersion string)
	// Handled tells the outcome of the same RPC: err is what the client gets.
	Handled(method, kind string, err error, elapsed time.Duration)
	// Announce tells, before serving, which methods there are.
	Announce(server interface {
		GetServiceInfo() map[string]grpc.ServiceInfo
	})
	// CountStream returns a stream that counts its messages.
	CountStream(method string, stream grpc.ServerStream) grpc.ServerStream
	// ObserveRange tells of one lookup in the keyspace.
	ObserveRange(success bool, elapsed time.Duration)
	// SentEvents, SentControl and SentProgress tell how long it took to send a
	// response of a watch stream, or a part of one.
	SentEvents(events int, elapsed time.Duration)
	SentControl(elapsed time.Duration)
	SentProgress(elapsed time.Duration)
	// Received and Sent tell the size of a message in its encoding, in bytes.
	Received(bytes int)
	Sent(bytes int)
	// Connections reports by how much the number of open client connections
	// changed.
	Connections(change int)
	// Refused reports a connection that was closed instead of served, for one of
	// the reasons RefusedLimit, RefusedSilent and RefusedTimeout.
	Refused(reason string)
}

// blind is an Observer that counts nothing.
type blind struct{}

func (blind) Started(string, string, string)               {}
func (blind) Handled(string, string, error, time.Duration) {}
func (blind) ObserveRange(bool, time.Duration)             {}
func (blind) SentEvents(int, time.Duration)                {}
func (blind) SentControl(time.Duration)                    {}
func (blind) SentProgress(time.Duration)                   {}
func (blind) Received(int)                                 {}
func (blind) Sent(int)                                     {}
func (blind) Connections(int)                              {}
func (blind) Refused(string)                               {}

func (blind) Announce(interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}) {
}

func (blind) CountStream(_ string, stream grpc.ServerStream) grpc.ServerStream { return stream }
