// Package certs is the TLS of a member: it turns etcd's flags into handshakes, with the
// clients and with the other members.
//
// An Endpoint is the TLS of one of these two. It has the certificates, keys, authorities
// and revocation lists of files, and looks for changes of the files while the member runs:
//
//  1. Endpoint.Poll compares the state of the files with what was read last. A file that has
//     changed is read when it has rested for one interval, so that a file that is being
//     written is usually not read at all.
//  2. What cannot be used (half of a PEM block, a key of another certificate) is logged once,
//     and what was read before stays in use.
//  3. The next handshake uses the new files: each takes the newest material, which is
//     immutable. Sessions are never resumed, because a resumed session would skip the checks.
//  4. If the authorities or the revocation lists have changed, the certificates of all open
//     sessions are verified again, and connections whose certificate fails are closed. A
//     certificate that has merely expired since its handshake ends no session.
//
// Listeners return connections whose handshake is not done yet. The server that accepts one
// calls Conn.Handshake on a goroutine of the connection, so a client that never ends its
// handshake delays nobody.
package certs
