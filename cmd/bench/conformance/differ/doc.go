// Package differ finds differences between two servers that speak the etcd v3
// API. It sends one seeded random sequence of calls, valid and invalid, to
// both and compares every reply: the message, the header's revision, the gRPC
// code and the error text. Sequences include restarts by SIGTERM and by
// SIGKILL.
//
// The calls are sent through gRPC stubs without a client library, so that requests
// that a library would refuse or change reach the servers.
//
// The fields that are not compared are listed in Exemptions, each with its reason.
package differ
