// Package auth is the state of authentication: users, roles and their permissions, and whether
// authentication is on. It decides what users may do, as etcd does.
//
//	state.go   State, which never changes: a change returns another one
//	change.go  the requests that change it, with etcd's errors in etcd's order
//	access.go  what a user may do: keys, ranges, transactions, administration
//	ranges.go  the permissions of a user, merged
//
// The outcome of a change depends on the state and the request alone, so that all members come to
// the same state.
package auth
