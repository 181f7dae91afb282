// Package grpcgw is the door of a member: it serves etcd's gRPC API, and HTTP on
// the same listeners.
//
// A request is checked in etcd's order, so that a bad one gets etcd's error and
// costs the pipeline nothing. A write then goes to the member's proposer and
// waits for its outcome; a read asks for a read index unless it is serializable,
// and is answered from the newest view by the goroutine that serves it, with the
// stored records spliced into the response (codec.go).
//
// One interceptor per kind of RPC does what every request needs: counting, the
// leader and learner checks, and the log of slow requests. It is kept cheap: the
// processor time of a put is this project's yardstick.
//
// Only errors.go knows gRPC's codes.
package grpcgw
