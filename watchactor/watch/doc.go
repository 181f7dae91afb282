// Package watch is the core of watching, without actors: the watchers of a stream and
// the next revision of each (Table), the ranges that contain a changed key (Index), the
// subscriptions of all streams (Fanout), and the encoded responses (Response).
//
// # A watcher
//
// A watcher is a range of keys, a filter, and the next revision to deliver; all
// earlier events have been sent. Events reach it in one of two ways: the hub posts
// current events in the ranges that the stream has subscribed to, and the stream reads
// older ones from the log of revisions. A watcher accepts the hub's events only while
// it is in step: its group's subscription began no later than its next revision. So
// no event is lost or sent twice when the two ways overlap:
//
//	in step   the hub's events come next
//	waiting   no older events are missing, and the hub has not answered yet
//	lagging   older revisions have to be read from the log
//
// table.go leads through the files.
//
// # Bytes
//
// An event is encoded once, as the field of the response that carries it. A response
// is a header, an id and a list of such fields; ten thousand watchers of a prefix share
// the bytes of its events.
//
// The package uses the interval tree of go.etcd.io/etcd/pkg.
package watch
