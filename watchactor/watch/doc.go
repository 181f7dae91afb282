// Package watch is what there is to know about watching without actors: which
// watchers a stream has and what each of them still has to get (Table), which
// ranges a change falls into (Index), and what the answers look like (Response).
//
// # A watcher
//
// A watcher is a range of keys, a filter, and the next revision to deliver: all
// that happened in the range before has been sent. Events come on two ways. The
// hub posts what has just happened, for ranges that the stream has subscribed to;
// and the stream reads what happened earlier from the log of revisions. A watcher
// takes from the hub only when it is in step: when the subscription began no later
// than its next revision. So neither way can leave a hole or bring anything twice,
// whatever gets lost or comes late on the first one:
//
//	in step   the hub's events are next
//	waiting   nothing older is missing; the hub was asked and has not answered
//	lagging   older revisions have to be read from the log
//
// # Bytes
//
// An event is encoded once, as the field of the response that it will be. A
// response is a header, an id and a number of such fields: for ten thousand
// watchers of a prefix, the events are the same bytes.
//
// The package uses the interval tree of go.etcd.io/etcd/pkg.
package watch
