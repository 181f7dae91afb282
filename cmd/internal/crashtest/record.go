package crashtest

import (
	"fmt"
	"math"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Never is the return time of a call with an unknown outcome: it may be executed at any
// time after it was made.
const Never = math.MaxInt64

// Operation is a call that reads or writes the current state, with its outcome.
type Operation struct {
	Client  int
	Request *pb.RequestOp
	// Response has headers with only the revision. It is nil if the call failed; the
	// call may then have been executed or not.
	Response *pb.ResponseOp
	// Refused means that the call failed with an error that proves that it was not executed.
	Refused bool
	// Call and Return are the times of the call and of its response, in nanoseconds on
	// the clock of the record. Return is Never if the call failed.
	Call, Return int64
}

// revision returns the revision of the response: the one that a write made, or that
// another call read.
func (o *Operation) revision() int64 {
	switch r := o.Response.Response.(type) {
	case *pb.ResponseOp_ResponseRange:
		return r.ResponseRange.Header.GetRevision()
	case *pb.ResponseOp_ResponsePut:
		return r.ResponsePut.Header.GetRevision()
	case *pb.ResponseOp_ResponseDeleteRange:
		return r.ResponseDeleteRange.Header.GetRevision()
	case *pb.ResponseOp_ResponseTxn:
		return r.ResponseTxn.Header.GetRevision()
	}
	panic(fmt.Sprintf("crashtest: answer of kind %T", o.Response.Response))
}

// wrote reports whether the response says that something was changed.
func wrote(resp *pb.ResponseOp) bool {
	switch r := resp.Response.(type) {
	case *pb.ResponseOp_ResponsePut:
		return true
	case *pb.ResponseOp_ResponseDeleteRange:
		return r.ResponseDeleteRange.Deleted > 0
	case *pb.ResponseOp_ResponseTxn:
		for _, each := range r.ResponseTxn.Responses {
			if wrote(each) {
				return true
			}
		}
	}
	return false
}

// Outcome is the outcome of a FloorCall.
type Outcome int

// Outcomes of a FloorCall.
const (
	Failed    Outcome = iota // unknown; failed reads are not recorded
	Done                     // it succeeded
	Compacted                // refused, because the revision was compacted
)

func (o Outcome) String() string { return [...]string{"failed", "done", "compacted"}[o] }

// FloorCall is a call that depends on the compact revision: a compaction or a read of the
// past.
type FloorCall struct {
	Compact  bool              // a compaction; otherwise Read is set
	Read     *pb.RangeRequest  // at Revision
	Response *pb.RangeResponse // of a read with the outcome Done
	Revision int64
	Outcome  Outcome

	Call, Return int64 // as in Operation
}

// The texts below are for failures. Values are shortened: their first bytes identify the
// writer.

func describeValue(v []byte) string {
	const shown = 16 // bytes
	if len(v) <= shown {
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprintf("%q+%d", v[:shown], len(v)-shown)
}

func describeKV(i int, kv *mvccpb.KeyValue) string {
	if kv == nil {
		return fmt.Sprintf("no %s", Key(i))
	}
	return fmt.Sprintf("%s=%s (created %d, modified %d, version %d)", kv.Key, describeValue(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version)
}

func describeRange(key, end []byte) string {
	if len(end) == 0 {
		return string(key)
	}
	return fmt.Sprintf("%s to %s", key, end)
}

func describeRequest(op *pb.RequestOp) string {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return "get " + describeRange(r.RequestRange.Key, r.RequestRange.RangeEnd)
	case *pb.RequestOp_RequestPut:
		return fmt.Sprintf("put %s=%s", r.RequestPut.Key, describeValue(r.RequestPut.Value))
	case *pb.RequestOp_RequestDeleteRange:
		return "delete " + describeRange(r.RequestDeleteRange.Key, r.RequestDeleteRange.RangeEnd)
	case *pb.RequestOp_RequestTxn:
		var b strings.Builder
		b.WriteString("txn if")
		for _, c := range r.RequestTxn.Compare {
			fmt.Fprintf(&b, " %s %v %v %s,", c.Key, c.Target, c.Result, describeTarget(c))
		}
		b.WriteString(" then" + describeRequests(r.RequestTxn.Success))
		b.WriteString(" else" + describeRequests(r.RequestTxn.Failure))
		return b.String()
	}
	return fmt.Sprintf("%T", op.Request)
}

func describeRequests(ops []*pb.RequestOp) string {
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&b, " {%s}", describeRequest(op))
	}
	return b.String()
}

func describeTarget(c *pb.Compare) string {
	switch c.Target {
	case pb.Compare_VALUE:
		return describeValue(c.GetValue())
	case pb.Compare_VERSION:
		return fmt.Sprint(c.GetVersion())
	case pb.Compare_CREATE:
		return fmt.Sprint(c.GetCreateRevision())
	}
	return fmt.Sprint(c.GetModRevision())
}

func describeResponse(op *pb.ResponseOp) string {
	switch r := op.Response.(type) {
	case *pb.ResponseOp_ResponseRange:
		var b strings.Builder
		fmt.Fprintf(&b, "revision %d:", r.ResponseRange.Header.GetRevision())
		for _, kv := range r.ResponseRange.Kvs {
			fmt.Fprintf(&b, " %s=%s (modified %d, version %d)", kv.Key, describeValue(kv.Value), kv.ModRevision, kv.Version)
		}
		return b.String()
	case *pb.ResponseOp_ResponsePut:
		return fmt.Sprintf("revision %d", r.ResponsePut.Header.GetRevision())
	case *pb.ResponseOp_ResponseDeleteRange:
		return fmt.Sprintf("revision %d, %d deleted", r.ResponseDeleteRange.Header.GetRevision(), r.ResponseDeleteRange.Deleted)
	case *pb.ResponseOp_ResponseTxn:
		var b strings.Builder
		fmt.Fprintf(&b, "revision %d, succeeded %v", r.ResponseTxn.Header.GetRevision(), r.ResponseTxn.Succeeded)
		for _, each := range r.ResponseTxn.Responses {
			fmt.Fprintf(&b, " {%s}", describeResponse(each))
		}
		return b.String()
	}
	return fmt.Sprintf("%T", op.Response)
}

// String is for people.
func (o *Operation) String() string {
	if o.Response == nil {
		return fmt.Sprintf("client %d at %d: %s: not answered", o.Client, o.Call, describeRequest(o.Request))
	}
	return fmt.Sprintf("client %d at %d to %d: %s: %s", o.Client, o.Call, o.Return, describeRequest(o.Request), describeResponse(o.Response))
}
