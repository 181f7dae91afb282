// Package authn checks passwords and tokens. Users, roles and permissions are replicated state:
// their pure core is package auth, which applyactor applies. This package has what a member keeps
// for itself: the actors that compute hashes of passwords, which takes tens of milliseconds each,
// a cache of passwords that were right, and the tokens that were issued.
//
// # Hears
//
//	CheckCall  from the gateway: a password to be compared with a hash
//	HashCall   from the gateway: a password to be hashed
//
// # Says
//
// Nothing but the answers.
//
// # Mailbox
//
//	Refuse, one for each worker. Clients give up after some seconds, so more calls than a worker
//	handles in that time are refused at once
//
// # Supervision
//
//	edge: a worker that fails is replaced; its calls are refused, and clients repeat them
//
// # Invariants
//
//  1. No password is kept or logged. The cache has keyed hashes of user, password and its hash in
//     the store, so an entry is worthless once the password was changed.
//  2. A wrong password takes as long as an unknown user.
//  3. A token is known to a member once it has applied the entry that assigned it.
//
// # Blocks
//
//	A worker computes: it occupies a processor while it does.
package authn
