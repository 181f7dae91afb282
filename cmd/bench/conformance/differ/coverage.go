package differ

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"text/tabwriter"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

// Coverage counts the calls, options and replies in the sequences.
type Coverage map[string]int

// Add counts one step. The reply is the reference's.
func (c Coverage) Add(call Call, r Reply) {
	c["call "+string(call.Method)]++
	for _, name := range manners(call) {
		c["manner "+name]++
	}
	seen := make(map[string]bool) // an option counts once a call
	for _, option := range options(call) {
		seen[string(call.Method)+": "+option] = true
	}
	for name := range seen {
		c["option "+name]++
	}
	if r.Code != codes.OK {
		c[fmt.Sprintf("error %s: %s %s", call.Method, r.Code, withoutSizes(r.Error))]++
	}
	if created, ok := r.Message.(*pb.WatchResponse); ok && created.Canceled {
		c[fmt.Sprintf("error %s: %s", call.Method, created.CancelReason)]++
	}
	for _, m := range r.Messages {
		for _, kind := range eventKinds(m) {
			c["watch "+kind]++
		}
	}
}

// Merge adds another count.
func (c Coverage) Merge(other Coverage) {
	for name, n := range other {
		c[name] += n
	}
}

// want makes the table show names that are never exercised.
func (c Coverage) want(names []string) {
	for _, name := range names {
		c[name] += 0
	}
}

// Below lists what was exercised fewer than least times, including everything wanted that
// was never exercised.
func (c Coverage) Below(least int) []string {
	var short []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if c[name] < least {
			short = append(short, fmt.Sprintf("%s: %d", name, c[name]))
		}
	}
	return short
}

// Print writes the table.
func (c Coverage) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if _, err := fmt.Fprintf(t, "%d\t%s\n", c[name], name); err != nil {
			return fmt.Errorf("differ: %w", err)
		}
	}
	return t.Flush()
}

var numbers = regexp.MustCompile(`\d+ vs\. \d+`)

// withoutSizes removes the sizes from the transport's errors for large messages.
func withoutSizes(text string) string { return numbers.ReplaceAllString(text, "N vs. M") }

// manners lists in which ways the caller identifies itself.
func manners(c Call) (list []string) {
	for kind, name := range map[string]string{"user": c.User, "presented": c.Presented, "signed token": c.Forged, "certificate": c.Certificate} {
		if name != "" {
			list = append(list, kind+" "+name)
		}
	}
	if c.Earlier > 0 {
		list = append(list, "an earlier token")
	}
	return list
}

// wantedOfAuth lists what a long run with authentication must exercise. With TLS these are the
// certificates, too.
func wantedOfAuth(tls bool) (list []string) {
	for _, m := range []Method{AuthEnable, AuthDisable, AuthStatus, Authenticate, UserAdd, UserGet, UserList, UserDelete, UserChangePassword,
		UserGrantRole, UserRevokeRole, RoleAdd, RoleGet, RoleList, RoleDelete, RoleGrantPermission, RoleRevokePermission, WatchOnce, WatchFollow,
		Range, RangeStream, Put, DeleteRange, Txn, Compact, HashKV, Hash, Status, Alarm, Defragment, MemberList, MemberAdd, MemberRemove, MemberUpdate,
		MoveLeader, Downgrade, Snapshot, LeaseGrant, LeaseRevoke, LeaseTimeToLive, LeaseKeepAlive, LeaseLeases} {
		list = append(list, "call "+string(m))
		switch m {
		case AuthStatus, Authenticate, WatchOnce, WatchFollow: // anybody may, or the response has the error
			continue
		case LeaseGrant, MemberList, Status: // any user may
		default:
			list = append(list, fmt.Sprintf("error %s: PermissionDenied etcdserver: permission denied", m))
		}
		list = append(list, fmt.Sprintf("error %s: InvalidArgument etcdserver: user name is empty", m))
	}
	for _, user := range append([]string{strange}, authUsers...) {
		list = append(list, "manner user "+user)
	}
	for name := range presentations {
		if name != "" {
			list = append(list, "manner presented "+name)
		}
	}
	for name := range withoutToken {
		list = append(list, "manner presented "+name)
	}
	for _, f := range forgeries {
		list = append(list, "manner signed token "+f.name)
	}
	if tls {
		for _, name := range authClients {
			list = append(list, "manner certificate "+name)
		}
	}
	return append(list, "manner an earlier token", "error Put: Unauthenticated etcdserver: invalid auth token",
		"error Put: InvalidArgument etcdserver: revision of auth store is old")
}

// options lists the options of a call.
func options(c Call) []string {
	var tags tags
	switch r := c.Request.(type) {
	case *pb.RangeRequest:
		tags.addRange(r)
	case *pb.PutRequest:
		tags.addPut(r)
	case *pb.DeleteRangeRequest:
		tags.addDelete(r)
	case *pb.TxnRequest:
		tags.addTxn(r, 1)
	case *pb.CompactionRequest:
		tags.add(r.Physical, "physical")
		tags.add(true, "revision "+sign(r.Revision))
	case *pb.HashKVRequest:
		tags.add(true, "revision "+sign(r.Revision))
	case *pb.AlarmRequest:
		tags.add(true, fmt.Sprintf("%s %s", r.Action, r.Alarm))
	case *pb.LeaseGrantRequest:
		tags.addGrant(r)
	case *pb.LeaseTimeToLiveRequest:
		tags.add(r.Keys, "keys")
	case *pb.WatchCreateRequest:
		tags.addWatch(r)
	case *pb.MemberAddRequest:
		tags.add(r.IsLearner, "learner")
	case *pb.MemberListRequest:
		tags.add(r.Linearizable, "linearizable")
	}
	return tags
}

type tags []string

func (t *tags) add(present bool, name string) {
	if present {
		*t = append(*t, name)
	}
}

func (t *tags) addRange(r *pb.RangeRequest) {
	t.add(true, spanForm(r.Key, r.RangeEnd))
	t.add(r.Limit > 0, "limit")
	t.add(r.Limit < 0, "limit negative")
	t.add(r.Revision != 0, "revision "+sign(r.Revision))
	t.addSort(r.SortOrder, r.SortTarget)
	t.add(r.KeysOnly, "keys_only")
	t.add(r.CountOnly, "count_only")
	t.add(r.Serializable, "serializable")
	t.add(r.MinModRevision != 0, "min_mod_revision")
	t.add(r.MaxModRevision != 0, "max_mod_revision")
	t.add(r.MinCreateRevision != 0, "min_create_revision")
	t.add(r.MaxCreateRevision != 0, "max_create_revision")
}

func (t *tags) addSort(order pb.RangeRequest_SortOrder, target pb.RangeRequest_SortTarget) {
	_, orderKnown := pb.RangeRequest_SortOrder_name[int32(order)]
	_, targetKnown := pb.RangeRequest_SortTarget_name[int32(target)]
	t.add(!orderKnown, "unknown sort order")
	t.add(!targetKnown, "unknown sort target")
	t.add(orderKnown && targetKnown, fmt.Sprintf("sort %s by %s", order, target))
}

func (t *tags) addCompare(c *pb.Compare) {
	_, targetKnown := pb.Compare_CompareTarget_name[int32(c.Target)]
	_, resultKnown := pb.Compare_CompareResult_name[int32(c.Result)]
	t.add(!targetKnown, "compare of an unknown target")
	t.add(!resultKnown, "compare with an unknown operator")
	t.add(targetKnown && resultKnown, fmt.Sprintf("compare %s %s", c.Target, c.Result))
	t.add(len(c.RangeEnd) > 0, "compare of a range")
	t.add(c.TargetUnion == nil, "compare without operand")
	t.add(c.TargetUnion != nil && !operandFits(c), "compare with another target's operand")
}

func (t *tags) addPut(r *pb.PutRequest) {
	t.add(len(r.Key) == 0, "no key")
	t.add(r.PrevKv, "prev_kv")
	t.add(r.IgnoreValue, "ignore_value")
	t.add(r.IgnoreLease, "ignore_lease")
	t.add(r.Lease != 0, "lease")
	t.add(len(r.Value) >= largeValueMin && len(r.Value) <= largeValueMax, "value of 10 to 100 KB")
	t.add(len(r.Value) > largeValueMax, "value near or above 1.5 MiB")
}

func (t *tags) addDelete(r *pb.DeleteRangeRequest) {
	t.add(true, spanForm(r.Key, r.RangeEnd))
	t.add(r.PrevKv, "prev_kv")
}

func (t *tags) addTxn(r *pb.TxnRequest, depth int) {
	t.add(true, fmt.Sprintf("depth %d", depth))
	t.add(len(r.Compare)+len(r.Success)+len(r.Failure) == 0, "nothing in it")
	t.add(max(len(r.Compare), len(r.Success), len(r.Failure)) >= txnOpsMax, "128 operations or more")
	for _, c := range r.Compare {
		t.addCompare(c)
	}
	for _, op := range operations(r) {
		t.addOp(op, depth)
	}
}

func (t *tags) addOp(op *pb.RequestOp, depth int) {
	inner := tags(nil)
	kind := ""
	switch {
	case op.GetRequestRange() != nil:
		kind = "range"
		t.add(op.GetRequestRange().Revision != 0, "range at a revision")
	case op.GetRequestPut() != nil:
		kind = "put"
		inner.addPut(op.GetRequestPut())
	case op.GetRequestDeleteRange() != nil:
		kind = "delete"
		inner.addDelete(op.GetRequestDeleteRange())
	case op.GetRequestTxn() != nil:
		t.addTxn(op.GetRequestTxn(), depth+1)
		return
	default:
		kind = "empty operation"
	}
	t.add(true, kind)
	for _, name := range inner {
		t.add(true, kind+" "+name)
	}
}

// operandFits reports whether the operand belongs to the compare's target.
func operandFits(c *pb.Compare) bool {
	switch c.TargetUnion.(type) {
	case *pb.Compare_Version:
		return c.Target == pb.Compare_VERSION
	case *pb.Compare_CreateRevision:
		return c.Target == pb.Compare_CREATE
	case *pb.Compare_ModRevision:
		return c.Target == pb.Compare_MOD
	case *pb.Compare_Value:
		return c.Target == pb.Compare_VALUE
	case *pb.Compare_Lease:
		return c.Target == pb.Compare_LEASE
	}
	return false
}

func sign(revision int64) string {
	switch {
	case revision < 0:
		return "negative"
	case revision == 0:
		return "0"
	}
	return "positive"
}

// spanForm classifies a key and range end.
func spanForm(key, end []byte) string {
	k, e := string(key), string(end)
	switch {
	case k == "":
		return "no key"
	case e == "":
		return "one key"
	case k == fromKey && e == fromKey:
		return "all keys"
	case e == fromKey:
		return "from key"
	case e == k:
		return "empty range"
	case e < k:
		return "inverted range"
	case e == prefixEnd(k):
		return "prefix"
	}
	return "range"
}

// Wanted lists what a long run must exercise, so that a run shows if the generator no
// longer makes something. Names that are not listed are counted too.
var Wanted = wanted()

func wanted() []string {
	var list []string
	add := func(kind string, m Method, names ...string) {
		for _, name := range names {
			list = append(list, fmt.Sprintf("%s %s: %s", kind, m, name))
		}
	}
	for _, m := range []Method{Range, RangeStream, Put, DeleteRange, Txn, Compact, HashKV, Hash, Status, Alarm, Defragment, MemberList, Terminate, Kill,
		LeaseGrant, LeaseRevoke, LeaseTimeToLive, LeaseKeepAlive, LeaseLeases, WatchCreate, WatchCancel, WatchSync} {
		list = append(list, "call "+string(m))
	}
	forms := []string{"no key", "one key", "all keys", "from key", "empty range", "inverted range", "prefix", "range"}
	for _, m := range []Method{Range, RangeStream} {
		add("option", m, "unknown sort order", "unknown sort target")
		add("option", m, forms...)
		add("option", m, "limit", "limit negative", "revision positive", "revision negative", "keys_only", "count_only", "serializable",
			"min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
		add("error", m, "OutOfRange etcdserver: mvcc: required revision has been compacted",
			"OutOfRange etcdserver: mvcc: required revision is a future revision",
			"InvalidArgument etcdserver: key is not provided", "InvalidArgument etcdserver: invalid sort option")
	}
	for order := range pb.RangeRequest_SortOrder_name {
		for target := range pb.RangeRequest_SortTarget_name {
			add("option", Range, fmt.Sprintf("sort %s by %s", pb.RangeRequest_SortOrder(order), pb.RangeRequest_SortTarget(target)))
		}
	}
	add("error", RangeStream, "Unimplemented RangeStream does not support custom sort orders",
		"Unimplemented RangeStream does not support revision filters")
	puts := []string{"prev_kv", "ignore_value", "ignore_lease", "lease", "value of 10 to 100 KB"}
	add("option", Put, append(puts, "value near or above 1.5 MiB")...)
	add("option", DeleteRange, append(forms, "prev_kv")...)
	add("option", Txn, "depth 1", "depth 2", "depth 3", "nothing in it", "128 operations or more", "compare of a range", "compare without operand",
		"compare of an unknown target", "compare with an unknown operator",
		"compare with another target's operand", "range", "range at a revision", "put", "delete", "empty operation", "delete from key", "delete prev_kv")
	for _, name := range puts {
		add("option", Txn, "put "+name)
	}
	for target := range pb.Compare_CompareTarget_name {
		for result := range pb.Compare_CompareResult_name {
			add("option", Txn, fmt.Sprintf("compare %s %s", pb.Compare_CompareTarget(target), pb.Compare_CompareResult(result)))
		}
	}
	for _, m := range []Method{Put, Txn} {
		add("error", m, "InvalidArgument etcdserver: key is not provided", "InvalidArgument etcdserver: value is provided",
			"InvalidArgument etcdserver: lease is provided", "InvalidArgument etcdserver: key not found",
			"NotFound etcdserver: requested lease not found", "InvalidArgument etcdserver: request is too large",
			"ResourceExhausted grpc: received message larger than max (N vs. M)",
			"ResourceExhausted etcdserver: mvcc: database space exceeded")
	}
	for _, m := range []Method{Put, DeleteRange, Txn, Compact} {
		add("error", m, "DataLoss etcdserver: corrupt cluster")
	}
	add("error", Txn, "InvalidArgument etcdserver: duplicate key given in txn request", "InvalidArgument etcdserver: too many operations in txn request",
		"InvalidArgument etcdserver: invalid sort option",
		"OutOfRange etcdserver: mvcc: required revision has been compacted", "OutOfRange etcdserver: mvcc: required revision is a future revision")
	for _, m := range []Method{Compact, HashKV} {
		add("option", m, "revision positive", "revision 0", "revision negative")
		add("error", m, "OutOfRange etcdserver: mvcc: required revision has been compacted", "OutOfRange etcdserver: mvcc: required revision is a future revision")
	}
	add("option", Compact, "physical")
	add("option", MemberList, "linearizable")
	add("option", LeaseGrant, "id of the server's choice", "negative id", "ttl too large")
	add("option", LeaseTimeToLive, "keys")
	add("error", LeaseGrant, "FailedPrecondition etcdserver: lease already exists", "OutOfRange etcdserver: too large lease TTL",
		"ResourceExhausted etcdserver: mvcc: database space exceeded", "DataLoss etcdserver: corrupt cluster")
	add("error", LeaseRevoke, "NotFound etcdserver: requested lease not found")
	add("option", WatchCreate, append(forms, "start_revision positive", "start_revision negative", "prev_kv", "fragment",
		"progress_notify", "watch_id", "watch_id negative", "NOPUT", "NODELETE")...)
	for _, what := range []string{"event PUT of a new key", "event PUT of a key that exists", "event DELETE"} {
		list = append(list, "watch "+what)
	}
	list = append(list, "watch event PUT of a key that exists with prev_kv", "watch event DELETE with prev_kv", "watch canceled by compaction")
	for _, kind := range []string{"NOSPACE", "CORRUPT"} {
		add("option", Alarm, "GET "+kind, "ACTIVATE "+kind, "DEACTIVATE "+kind)
	}
	add("option", Alarm, "GET NONE", "ACTIVATE NONE")
	return list
}
