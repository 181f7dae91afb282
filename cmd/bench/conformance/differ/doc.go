// Package differ finds differences between two servers that speak the etcd v3
// API. It sends one seeded random sequence of calls, valid and invalid, to
// both and compares every reply: the message, the header's revision, the gRPC
// code and the error text. Restarts, gentle and by SIGKILL, are part of a
// sequence.
//
// The calls go through gRPC stubs without a client library in between, so
// that requests which a library would refuse or repair reach the servers.
//
// What is not compared is in one table, Exemptions, each with its reason.
package differ
