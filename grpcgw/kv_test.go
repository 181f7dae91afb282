package grpcgw

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// isError reports whether the error of a client is that of the server.
func isError(got, want error) bool {
	return status.Code(got) == status.Code(want) && rpctypes.ErrorDesc(got) == rpctypes.ErrorDesc(want)
}

func wantHeader(t *testing.T, h *pb.ResponseHeader, revision int64) {
	t.Helper()
	want := &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm, Revision: revision}
	if !proto.Equal(h, want) {
		t.Errorf("header: got %v, want %v", h, want)
	}
}

func TestKV(t *testing.T) {
	m := newFakeMember()
	kv := pb.NewKVClient(serve(t, testConfig(m)))
	ctx := t.Context()

	put, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, put.Header, 2)
	put, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("2"), PrevKv: true})
	if err != nil || string(put.PrevKv.GetValue()) != "1" {
		t.Fatalf("second put: got %v, %v, want the previous value 1", put, err)
	}
	got, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	if err != nil || got.Count != 1 || string(got.Kvs[0].Value) != "2" || got.Kvs[0].Version != 2 {
		t.Fatalf("range: got %v, %v, want value 2 of version 2", got, err)
	}
	wantHeader(t, got.Header, 3)
	got, err = kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 2})
	if err != nil || string(got.Kvs[0].Value) != "1" {
		t.Fatalf("range at revision 2: got %v, %v, want value 1", got, err)
	}
	wantHeader(t, got.Header, 3)

	txn, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(putOp("b"), rangeOp("a"), deleteOp("zzz", ""))})
	if err != nil || !txn.Succeeded || len(txn.Responses) != 3 {
		t.Fatalf("txn: got %v, %v, want success with three responses", txn, err)
	}
	wantHeader(t, txn.Header, 4)
	inner := &pb.ResponseHeader{Revision: 4} // only the outer header has the ids
	if h := txn.Responses[1].GetResponseRange().Header; !proto.Equal(h, inner) {
		t.Errorf("nested header: got %v, want %v", h, inner)
	}

	del, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, PrevKv: true})
	if err != nil || del.Deleted != 2 || len(del.PrevKvs) != 2 {
		t.Fatalf("delete: got %v, %v, want two keys", del, err)
	}
	wantHeader(t, del.Header, 5)

	compact, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 4})
	if err != nil || m.awaited != 0 {
		t.Fatalf("compaction: got %v, %v, awaited %d times, want 0", compact, err, m.awaited)
	}
	wantHeader(t, compact.Header, 5)
	if _, err = kv.Compact(ctx, &pb.CompactionRequest{Revision: 5, Physical: true}); err != nil || m.awaited != 1 {
		t.Fatalf("physical compaction: got %v, awaited %d times, want 1", err, m.awaited)
	}
}

func TestKVErrors(t *testing.T) {
	m := newFakeMember()
	kv := pb.NewKVClient(serve(t, testConfig(m)))
	ctx := t.Context()
	for range 3 {
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 3}); err != nil {
		t.Fatal(err)
	}
	key := []byte("a")
	futureOp := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, Revision: 9}}}
	for _, tc := range []struct {
		name string
		do   func() error
		want error
	}{
		{"range without key", func() error { _, err := kv.Range(ctx, &pb.RangeRequest{}); return err }, rpctypes.ErrGRPCEmptyKey},
		{"range compacted", func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key, Revision: 2}); return err }, rpctypes.ErrGRPCCompacted},
		{"range of the future", func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key, Revision: 9}); return err }, rpctypes.ErrGRPCFutureRev},
		{"put without key", func() error { _, err := kv.Put(ctx, &pb.PutRequest{}); return err }, rpctypes.ErrGRPCEmptyKey},
		{"put with lease", func() error { _, err := kv.Put(ctx, &pb.PutRequest{Key: key, Lease: 5}); return err }, rpctypes.ErrGRPCLeaseNotFound},
		{"put ignoring nothing", func() error { _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("no"), IgnoreValue: true}); return err }, rpctypes.ErrGRPCKeyNotFound},
		{"delete without key", func() error { _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{}); return err }, rpctypes.ErrGRPCEmptyKey},
		{"txn with duplicates", func() error {
			_, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(putOp("x"), putOp("x"))})
			return err
		}, rpctypes.ErrGRPCDuplicateKey},
		{"txn of the future", func() error { _, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(futureOp)}); return err }, rpctypes.ErrGRPCFutureRev},
		{"compact compacted", func() error {
			_, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 3, Physical: true})
			return err
		}, rpctypes.ErrGRPCCompacted},
		{"compact the future", func() error { _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 99}); return err }, rpctypes.ErrGRPCFutureRev},
	} {
		if err := tc.do(); !isError(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestReadsAreLinearizable(t *testing.T) {
	m := newFakeMember()
	conn := serve(t, testConfig(m))
	kv, cl := pb.NewKVClient(conn), pb.NewClusterClient(conn)
	ctx, key := t.Context(), []byte("a")
	readOp := func(serializable bool) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{
			RequestRange: &pb.RangeRequest{Key: key, Serializable: serializable},
		}}
	}
	for _, tc := range []struct {
		name        string
		do          func() error
		reads, puts int
	}{
		{"range", func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key}); return err }, 1, 0},
		{"serializable range", func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key, Serializable: true}); return err }, 0, 0},
		{"read-only txn", func() error {
			_, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(readOp(true)), Failure: ops(readOp(false))})
			return err
		}, 1, 0},
		{"serializable txn", func() error {
			_, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(readOp(true)), Failure: ops(readOp(true))})
			return err
		}, 0, 0},
		{"txn that may put", func() error {
			_, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(readOp(true)), Failure: ops(putOp("b"))})
			return err
		}, 0, 1},
		{"range stream", func() error { _, err := readStream(ctx, kv, &pb.RangeRequest{Key: key}); return err }, 1, 0},
		{"serializable stream", func() error {
			_, err := readStream(ctx, kv, &pb.RangeRequest{Key: key, Serializable: true})
			return err
		}, 0, 0},
		{"members", func() error { _, err := cl.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}); return err }, 1, 0},
		{"local members", func() error { _, err := cl.MemberList(ctx, &pb.MemberListRequest{}); return err }, 0, 0},
	} {
		m.set(func() { m.readIndexes, m.proposals = 0, 0 })
		if err := tc.do(); err != nil {
			t.Errorf("%s: got %v, want no error", tc.name, err)
		}
		if m.readIndexes != tc.reads || m.proposals != tc.puts {
			t.Errorf("%s: got %d read indexes and %d proposals, want %d and %d", tc.name, m.readIndexes, m.proposals, tc.reads, tc.puts)
		}
	}
	m.set(func() { m.readCode = raftmsg.Code_LEADER_CHANGED })
	for _, req := range []*pb.RangeRequest{{Key: key}, {Key: key, CountOnly: true}} {
		if _, err := kv.Range(ctx, req); !isError(err, rpctypes.ErrGRPCLeaderChanged) {
			t.Errorf("range without a read index: got %v", err)
		}
		if _, err := readStream(ctx, kv, req); !isError(err, rpctypes.ErrGRPCLeaderChanged) {
			t.Errorf("stream without a read index: got %v", err)
		}
	}
}

// readStream returns the chunks of a RangeStream.
func readStream(ctx context.Context, kv pb.KVClient, req *pb.RangeRequest) (chunks []*pb.RangeResponse, err error) {
	stream, err := kv.RangeStream(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return chunks, nil
		}
		if err != nil {
			return chunks, err
		}
		chunks = append(chunks, resp.RangeResponse)
	}
}

func TestRangeStream(t *testing.T) {
	const keys = 300
	m := filled(t, keys, 100) // a key and value take about 120 bytes
	cfg := testConfig(m)
	cfg.MaxRequestBytes = 4000
	kv := pb.NewKVClient(serve(t, cfg))
	for _, tc := range []struct {
		name  string
		req   *pb.RangeRequest
		sizes []int // keys per chunk
		more  bool
		count int64
	}{
		// 10 keys are below half of 4000 bytes, 20 and more are not.
		{"all", &pb.RangeRequest{}, append([]int{10}, repeat(20, 14, 10)...), false, keys},
		{"small limit", &pb.RangeRequest{Limit: 4}, []int{4}, true, keys},
		{"limit", &pb.RangeRequest{Limit: 35}, []int{10, 20, 5}, true, keys},
		{"limit above", &pb.RangeRequest{Limit: 1000}, append([]int{10}, repeat(20, 14, 10)...), false, keys},
		{"limit of all", &pb.RangeRequest{Limit: keys}, append([]int{10}, repeat(20, 14, 10)...), false, keys},
		{"negative limit", &pb.RangeRequest{Limit: -1}, []int{keys}, false, keys},
		{"count only", &pb.RangeRequest{CountOnly: true}, []int{0}, false, keys},
		{"old", &pb.RangeRequest{Revision: 11}, []int{10}, false, 10},
		{"old with limit", &pb.RangeRequest{Revision: 101, Limit: 10}, []int{10}, true, 100},
	} {
		tc.req.Key, tc.req.RangeEnd = []byte("key-"), []byte{0}
		chunks, err := readStream(t.Context(), kv, tc.req)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		checkStream(t, tc.name, chunks, tc.sizes)
		if last := chunks[len(chunks)-1]; last.More != tc.more || last.Count != tc.count {
			t.Errorf("%s: got more %v, count %d, want %v, %d", tc.name, last.More, last.Count, tc.more, tc.count)
		}
	}
	for _, tc := range []struct {
		req  *pb.RangeRequest
		want error
	}{
		{&pb.RangeRequest{}, rpctypes.ErrGRPCEmptyKey},
		{&pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_DESCEND}, errStreamOrder},
		{&pb.RangeRequest{Key: []byte("a"), MaxModRevision: 4}, errStreamFilters},
		{&pb.RangeRequest{Key: []byte("a"), Revision: 4000}, rpctypes.ErrGRPCFutureRev},
	} {
		if _, err := readStream(t.Context(), kv, tc.req); !isError(err, tc.want) {
			t.Errorf("%v: got %v, want %v", tc.req, err, tc.want)
		}
	}
}

// repeat returns n times v, and last.
func repeat(v, n, last int) (list []int) {
	for range n {
		list = append(list, v)
	}
	return append(list, last)
}

func checkStream(t *testing.T, name string, chunks []*pb.RangeResponse, sizes []int) {
	t.Helper()
	var got []int
	n := 0
	for i, c := range chunks {
		got = append(got, len(c.Kvs))
		for _, kv := range c.Kvs {
			if want := fmt.Sprintf("key-%06d", n); string(kv.Key) != want {
				t.Fatalf("%s: got key %s, want %s", name, kv.Key, want)
			}
			n++
		}
		if last := i == len(chunks)-1; !last && (c.Header != nil || c.More || c.Count != 0) {
			t.Errorf("%s: chunk %d: got header %v, more %v, count %d", name, i, c.Header, c.More, c.Count)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(sizes) {
		t.Errorf("%s: got chunks of %v keys, want %v", name, got, sizes)
	}
	wantHeader(t, chunks[len(chunks)-1].Header, 301)
}

// TestRangeStreamPinned: writes and a compaction between two chunks do not change a stream of
// the current revision. A stream of an older revision fails.
func TestRangeStreamPinned(t *testing.T) {
	for _, tc := range []struct {
		revision int64
		want     error
	}{{0, nil}, {41, rpctypes.ErrGRPCCompacted}} {
		m := filled(t, 40, 10)
		g, err := New(testConfig(m))
		if err != nil {
			t.Fatal(err)
		}
		k := &kv{Gateway: g}
		var chunks []*pb.RangeResponse
		send := func(msg any) error {
			resp := new(pb.RangeStreamResponse)
			if err := proto.Unmarshal(msg.(*rangeChunk).splice(nil), resp); err != nil {
				return err
			}
			chunks = append(chunks, resp.RangeResponse)
			return overtake(m)
		}
		err = k.streamRange(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: tc.revision}, send)
		if !errors.Is(err, tc.want) {
			t.Fatalf("revision %d: got %v, want %v", tc.revision, err, tc.want)
		}
		if tc.want != nil {
			continue
		}
		n := 0
		for _, c := range chunks {
			for _, kv := range c.Kvs {
				if kv.Version != 1 {
					t.Fatalf("%s: got version %d, want 1", kv.Key, kv.Version)
				}
				n++
			}
		}
		if last := chunks[len(chunks)-1]; n != 40 || last.Header.Revision != 41 || last.Count != 40 {
			t.Errorf("got %d keys, count %d, %v, want 40 of revision 41", n, last.Count, last.Header)
		}
	}
}

// overtake changes every key, adds one, and compacts the revisions before.
func overtake(m *fakeMember) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range 41 {
		if _, err := m.store.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "key-%06d", i)}); err != nil {
			return err
		}
	}
	if err := m.store.Compact(m.store.Revision()); err != nil {
		return err
	}
	m.publish()
	for done, cut := false, true; !done && cut; {
		n, d := m.store.CompactStep(1000)
		cut, done = n, d
	}
	m.publish()
	return nil
}

func TestQuota(t *testing.T) {
	m := newFakeMember()
	cfg := testConfig(m)
	cfg.QuotaBytes = m.pub.View().Sizes.InUse() + 2*(keyOverhead+1) + 1
	conn := serve(t, cfg)
	kv, maint := pb.NewKVClient(conn), pb.NewMaintenanceClient(conn)
	ctx := t.Context()
	txn := func(failure ...*pb.RequestOp) error {
		_, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(putOp("a")), Failure: failure})
		return err
	}
	if err := txn(deleteOp("x", ""), txnOp(ops(putOp("b")), ops(putOp("c"), putOp("d")))); err != nil {
		t.Fatalf("txn whose most expensive path just fits: got %v, want no error", err)
	}
	if n := m.proposals; n != 1 {
		t.Fatalf("got %d proposals, want 1", n)
	}
	if err := txn(txnOp(nil, ops(putOp("b"), putOp("c"), putOp("d")))); !isError(err, rpctypes.ErrGRPCNoSpace) {
		t.Fatalf("txn beyond the quota: got %v, want no space", err)
	}
	alarm, err := maint.Alarm(ctx, &pb.AlarmRequest{})
	if err != nil || len(alarm.Alarms) != 1 || alarm.Alarms[0].MemberID != testMember || alarm.Alarms[0].Alarm != pb.AlarmType_NOSPACE {
		t.Fatalf("got %v, %v, want NOSPACE of this member", alarm, err)
	}
	// The quota is checked before anything else, and the alarm is raised once.
	big := &pb.PutRequest{Value: make([]byte, 3*keyOverhead)}
	if _, err := kv.Put(ctx, big); !isError(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("put beyond the quota: got %v, want no space", err)
	}
	if n := m.proposals; n != 2 {
		t.Errorf("got %d proposals, want the txn and one alarm", n)
	}
	if _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Errorf("delete: got %v, want no error", err)
	}

	cfg.QuotaBytes = m.pub.View().Sizes.InUse() + keyOverhead + 1
	if _, err := pb.NewKVClient(serve(t, cfg)).Put(ctx, &pb.PutRequest{Key: []byte("a")}); !isError(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("put up to the quota: got %v, want no space", err)
	}
	cfg.QuotaBytes = -1
	if _, err := maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: testMember, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewKVClient(serve(t, cfg)).Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: big.Value}); err != nil {
		t.Errorf("put without quota: got %v, want no error", err)
	}
}

// TestClearedAlarm: a member that has not applied the end of an alarm yet refuses no write
// because of it.
func TestClearedAlarm(t *testing.T) {
	m := newFakeMember()
	cleared := m.cluster
	cfg := leaseConfig(m)
	cfg.QuotaBytes = -1
	conn := serve(t, cfg)
	kv, lease, ctx := pb.NewKVClient(conn), pb.NewLeaseClient(conn), t.Context()
	for name, write := range map[string]func() error{
		"put": func() error {
			_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("a")})
			return err
		},
		"txn": func() error {
			_, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(putOp("a"))})
			return err
		},
		"grant": func() error {
			_, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
			return err
		},
	} {
		m.set(func() {
			m.cluster = &mvccmsg.Cluster{Alarms: []*applymsg.Alarm{{MemberId: 5, Type: pb.AlarmType_NOSPACE, Disk: true}}}
			m.publish()
			m.onRead, m.readErr = nil, nil
		})
		if err := write(); !isError(err, rpctypes.ErrGRPCNoSpace) {
			t.Errorf("%s with an alarm: got %v, want no space", name, err)
		}
		m.set(func() { m.readCode = raftmsg.Code_TIMED_OUT })
		if err := write(); !isError(err, rpctypes.ErrGRPCTimeout) {
			t.Errorf("%s without a quorum: got %v, want a timeout", name, err)
		}
		m.set(func() {
			m.readCode = raftmsg.Code_OK
			m.onRead = func() {
				m.cluster = cleared
				m.publish()
			}
		})
		if err := write(); err != nil {
			t.Errorf("%s after the alarm was cleared: got %v, want no error", name, err)
		}
	}
}

func TestRequestSize(t *testing.T) {
	m := newFakeMember()
	cfg := testConfig(m)
	cfg.MaxRequestBytes = 1000
	kv := pb.NewKVClient(serve(t, cfg))
	ctx := t.Context()
	// The size that etcd checks: the put with 1+2 and 1+2+n bytes; its tag and length,
	// 1+2; the tag, length and id of the header, 2+1+10.
	const fits = 1000 - 3 - 3 - 3 - 13
	value := func(n int) []byte { return bytes.Repeat([]byte("v"), n) }
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: value(fits)}); err != nil {
		t.Errorf("largest put: got %v, want no error", err)
	}
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: value(fits + 1)}); !isError(err, rpctypes.ErrGRPCRequestTooLarge) {
		t.Errorf("larger put: got %v, want too large", err)
	}
	put := putOp("k")
	put.GetRequestPut().Value = value(1001)
	if _, err := kv.Txn(ctx, &pb.TxnRequest{Success: ops(put)}); !isError(err, rpctypes.ErrGRPCRequestTooLarge) {
		t.Errorf("large txn: got %v, want too large", err)
	}
	if _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: value(1001)}); !isError(err, rpctypes.ErrGRPCRequestTooLarge) {
		t.Errorf("large delete: got %v, want too large", err)
	}
	if _, err := kv.Range(ctx, &pb.RangeRequest{Key: value(1001)}); err != nil {
		t.Errorf("large read: got %v, want no error", err)
	}
	_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: value(1000 + grpcOverheadBytes)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("put above the limit of gRPC: got %v, want ResourceExhausted", err)
	}
}

func TestCodesReachClients(t *testing.T) {
	m := newFakeMember()
	kv := pb.NewKVClient(serve(t, testConfig(m)))
	for code, name := range raftmsg.Code_name {
		code := raftmsg.Code(code)
		if code == raftmsg.Code_OK {
			continue
		}
		want, ok := codeErrors[code]
		if !ok {
			t.Errorf("%s has no error", name)
			continue
		}
		m.set(func() { m.proposeCode = code })
		_, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("a")})
		if !isError(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	m.set(func() { m.proposeCode = 999 })
	if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); status.Code(err) != codes.Unknown {
		t.Errorf("a code from the future: %v", err)
	}
}

// TestErrorTexts: codes and texts, which clients match, are those of etcd 3.7.
func TestErrorTexts(t *testing.T) {
	for code, want := range map[raftmsg.Code]string{
		raftmsg.Code_TOO_MANY_REQUESTS:      "Unknown etcdserver: too many requests",
		raftmsg.Code_TIMED_OUT:              "Unavailable etcdserver: request timed out",
		raftmsg.Code_LEADER_CHANGED:         "Unavailable etcdserver: leader changed",
		raftmsg.Code_TIMED_OUT_NOT_PROPOSED: "DeadlineExceeded context deadline exceeded",
		raftmsg.Code_NO_LEADER:              "Unavailable etcdserver: no leader",
		raftmsg.Code_STOPPED:                "Unavailable etcdserver: server stopped",
		raftmsg.Code_NO_SPACE:               "ResourceExhausted etcdserver: mvcc: database space exceeded",
		raftmsg.Code_CORRUPT:                "DataLoss etcdserver: corrupt cluster",
		raftmsg.Code_COMPACTED:              "OutOfRange etcdserver: mvcc: required revision has been compacted",
	} {
		err := codeError(code)
		if got := status.Code(err).String() + " " + rpctypes.ErrorDesc(err); got != want {
			t.Errorf("%v: got %q, want %q", code, got, want)
		}
	}
}

func TestContextErrors(t *testing.T) {
	m := newFakeMember()
	kv := pb.NewKVClient(serve(t, testConfig(m)))
	for _, tc := range []struct {
		err             error
		put, get        codes.Code
		putText, getTxt string
	}{
		{context.Canceled, codes.Canceled, codes.Canceled, "etcdserver: request canceled", "context canceled"},
		{fmt.Errorf("propose: %w", context.DeadlineExceeded), codes.Unavailable, codes.DeadlineExceeded,
			"etcdserver: request timed out", "propose: context deadline exceeded"},
		{errors.New("broken"), codes.Unknown, codes.Unknown, "broken", "broken"},
	} {
		m.set(func() { m.proposeErr, m.readErr = tc.err, tc.err })
		_, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("a")})
		if status.Code(err) != tc.put || rpctypes.ErrorDesc(err) != tc.putText {
			t.Errorf("put ended by %v: %v", tc.err, err)
		}
		_, err = kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("a")})
		if status.Code(err) != tc.get || rpctypes.ErrorDesc(err) != tc.getTxt {
			t.Errorf("range ended by %v: %v", tc.err, err)
		}
	}
}

func TestMetadata(t *testing.T) {
	m := newFakeMember()
	kv := pb.NewKVClient(serve(t, testConfig(m)))
	with := func(pairs ...string) (unary, stream error) {
		ctx := metadata.AppendToOutgoingContext(t.Context(), pairs...)
		req := &pb.RangeRequest{Key: []byte("a"), Serializable: true}
		_, unary = kv.Range(ctx, req)
		_, stream = readStream(ctx, kv, req)
		return unary, stream
	}
	check := func(what string, want error, pairs ...string) {
		t.Helper()
		unary, stream := with(pairs...)
		if !isError(unary, want) || !isError(stream, want) {
			t.Errorf("%s: %v and %v, want %v", what, unary, stream, want)
		}
	}
	check("with a leader", nil, "hasleader", "true")
	m.set(func() { m.raft.Leader = 0 })
	check("without a leader", nil)
	check("leader wanted", rpctypes.ErrGRPCNoLeader, "hasleader", "true")
	check("leader not wanted", nil, "hasleader", "false")
	m.set(func() { m.raft.Leader = 1 })
	check("version", nil, "client-api-version", "3.7")

	m.set(func() { m.raft.IsLearner = true })
	unary, stream := with()
	if unary != nil || !isError(stream, rpctypes.ErrGRPCNotSupportedForLearner) {
		t.Errorf("learner: %v and %v", unary, stream)
	}
	if _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); !isError(err, rpctypes.ErrGRPCNotSupportedForLearner) {
		t.Errorf("linearizable read of a learner: %v", err)
	}
}

func TestAdmit(t *testing.T) {
	g, err := New(testConfig(newFakeMember()))
	if err != nil {
		t.Fatal(err)
	}
	// A gRPC library would not send it.
	if err := g.admit(RaftStatus{}, "\xff", true); err != rpctypes.ErrGRPCInvalidClientAPIVersion {
		t.Errorf("version of bad UTF-8: %v", err)
	}
}

func TestFill(t *testing.T) {
	g, err := New(testConfig(filled(t, 3, 1)))
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, g.fill(nil), 4)
	wantHeader(t, g.fill(&pb.ResponseHeader{}), 4)
	wantHeader(t, g.fill(&pb.ResponseHeader{Revision: 2}), 2)
}

func TestUnimplementedServices(t *testing.T) {
	conn := serve(t, testConfig(newFakeMember()))
	ctx := t.Context()
	for _, method := range []string{
		"/etcdserverpb.Cluster/MemberAdd", "/etcdserverpb.Maintenance/MoveLeader",
		"/etcdserverpb.Maintenance/Downgrade", "/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign",
	} {
		if err := conn.Invoke(ctx, method, &pb.StatusRequest{}, &pb.StatusResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
	for _, method := range []string{"/etcdserverpb.Maintenance/Snapshot"} {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(&pb.StatusRequest{}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&pb.StatusResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
}
