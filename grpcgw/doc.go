// Package grpcgw serves etcd's gRPC API in front of a member, and plain HTTP on the
// same listeners.
//
// A connection is counted against a limit (conns.go) and goes to the gRPC or the
// HTTP server once its first bytes show its protocol (sniff.go).
//
// A request is checked in etcd's order, so that a bad one gets etcd's error and
// costs the pipeline nothing. A write then goes to the member's proposer and
// waits for its outcome; a read asks for a read index unless it is serializable,
// and is answered from the newest view by the goroutine that serves it, with the
// stored records spliced into the response (codec.go).
//
// One interceptor per kind of RPC does what every request needs: counting, the
// leader and learner checks, and the slow request log. It is on the path of every
// request and must stay cheap.
//
// Only errors.go uses gRPC's codes.
package grpcgw
