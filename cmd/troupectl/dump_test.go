package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

func lines(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

// TestDump: one line per record, in order, each with its file and offset; entries with
// their requests.
func TestDump(t *testing.T) {
	dir := filled(t, 2)
	code, out, errs := troupectl(t, dir, "wal", "dump", dir)
	if code != exitOK || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	records := 0
	must(t, wal.Dump(wal.OSFS{}, filepath.Join(dir, "member", "wal"), func(r wal.Record) error {
		line := lines(out)[records]
		if want := fmt.Sprintf("%s %d batch=%d %s ", r.File, r.Offset, r.BatchSeq, r.Kind); !strings.HasPrefix(line+" ", want) {
			t.Errorf("line %q, want %q", line, want)
		}
		records++
		return nil
	}))
	if n := len(lines(out)); n != records {
		t.Errorf("%d lines, %d records", n, records)
	}
	for _, want := range []string{
		`entry term=1 index=1 type=confchange ConfChangeAddNode=2 peer-urls=http://localhost:2382`,
		`entry term=2 index=2 type=normal empty`,
		`entry term=2 index=\d+ type=normal id=[0-9a-f]+ requests=1: MemberAttributes member=2 name="default" client-urls=`,
		`entry term=2 index=\d+ type=normal id=[0-9a-f]+ requests=1: Put key="key42" value=1000 bytes`,
		`requests=1: DeleteRange key="key1" end="key2"`,
		`requests=1: Txn if\(VERSION key="a" EQUAL\) then\(Put key="a" value=12 bytes, Range key="b"\) else\(DeleteRange key="a"\)`,
		`requests=1: Compact revision=20 physical=false`,
		`hardstate term=2 vote=2 commit=3`,
		`metadata cluster=c1 member=2 durable=\d+`,
		`segment-end`,
	} {
		if !regexp.MustCompile(`(?m)` + want + `$`).MatchString(out) {
			t.Errorf("no line %q", want)
		}
	}
}

// TestDumpRange: the entries in the range and the records between them.
func TestDumpRange(t *testing.T) {
	dir := filled(t, 2)
	code, out, _ := troupectl(t, dir, "wal", "dump", "--from", "10", dir, "-to=11", "--values")
	if code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	got := lines(out)
	for i, want := range []string{" entry term=2 index=10 ", " hardstate ", " entry term=2 index=11 ", " hardstate "} {
		if i >= len(got) || !strings.Contains(got[i], want) {
			t.Fatalf("line %d is not %q:\n%s", i, want, out)
		}
	}
	if len(got) != 4 || !strings.Contains(got[0], `value="`) || strings.Contains(got[0], " bytes") {
		t.Errorf("%d lines:\n%s", len(got), out)
	}
}

// TestDumpDamage: the records before the damage are printed, and then its place.
func TestDumpDamage(t *testing.T) {
	dir := filled(t, 2)
	_, whole, _ := troupectl(t, dir, "wal", "dump", dir)
	flip(t, segments(t, dir)[1], 20_000)
	code, out, errs := troupectl(t, dir, "wal", "dump", dir)
	name := filepath.Base(segments(t, dir)[1])
	if code != exitFailed || !strings.Contains(errs, "corrupt: "+name+" at offset 1") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if !strings.HasPrefix(whole, out) || !strings.Contains(out, name) {
		t.Errorf("printed %d lines of %d", len(lines(out)), len(lines(whole)))
	}
}

// TestDumpTorn: the tail that a start will truncate is reported.
func TestDumpTorn(t *testing.T) {
	dir := filled(t, 2)
	last := segments(t, dir)[len(segments(t, dir))-1]
	change(t, last, func(b []byte) []byte {
		b[len(b)-200] = 1
		return b
	})
	code, out, _ := troupectl(t, dir, "wal", "dump", dir)
	if end := lines(out)[len(lines(out))-1]; code != exitOK || !strings.HasPrefix(end, filepath.Base(last)) || !strings.Contains(end, " torn tail: ") {
		t.Errorf("exit code %d, last line %q", code, end)
	}
}

// TestDumpRecords: a mark with its configuration, and an entry that cannot be
// decoded.
func TestDumpRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	must(t, os.MkdirAll(filepath.Join(dir, "member"), 0o700))
	l, err := wal.Create(wal.OSFS{}, filepath.Join(dir, "member", "wal"),
		wal.Config{ClusterID: 1, MemberID: 0xab, SegmentBytes: 64 << 10, Rand: rand.Uint64},
		wal.Batch{Mark: &wal.Mark{Index: 7, Term: 3, ConfState: &raftpb.ConfState{Voters: []uint64{0xab, 1}, Learners: []uint64{2}}},
			Entries: []*raftpb.Entry{entry(8, 3, "\xff")}})
	must(t, err)
	must(t, l.Close())
	_, out, _ := troupectl(t, dir, "wal", "dump", dir)
	for _, want := range []string{
		"mark term=3 index=7 replaces=true voters=[ab 1] learners=[2]\n",
		"entry term=3 index=8 type=normal 1 bytes that cannot be decoded: ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestDescribe: every kind of request and of entry.
func TestDescribe(t *testing.T) {
	key, end, value := []byte("k\n"), []byte("l"), []byte("\x00v")
	for _, c := range []struct {
		req  *applymsg.Request
		want string
	}{
		{&applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: key, Value: value, Lease: 0x1f, PrevKv: true}}},
			`Put key="k\n" value=2 bytes lease=1f prev-kv`},
		{&applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: key, IgnoreValue: true, IgnoreLease: true}}},
			`Put key="k\n" value=0 bytes ignore-value ignore-lease`},
		{&applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end}}},
			`DeleteRange key="k\n" end="l"`},
		{&applymsg.Request{Op: &applymsg.Request_Txn{Txn: &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: key}, {Key: end, Target: pb.Compare_VALUE, Result: pb.Compare_NOT_EQUAL}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}}, {}},
		}}}, `Txn if(VERSION key="k\n" EQUAL, VALUE key="l" NOT_EQUAL) then(Txn if() then() else(), nothing) else()`},
		{&applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{Revision: 5, Physical: true}}},
			`Compact revision=5 physical=true`},
		{&applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 0xab, Alarm: pb.AlarmType_NOSPACE}}},
			`Alarm ACTIVATE NOSPACE member=ab`},
		{&applymsg.Request{Op: &applymsg.Request_DamageAlarm{DamageAlarm: &applymsg.DamageAlarm{MemberId: 0xab}}},
			`DamageAlarm member=ab raised=false`},
		{&applymsg.Request{Op: &applymsg.Request_DiskAlarm{DiskAlarm: &applymsg.DiskAlarm{MemberId: 0xab, Raised: true}}},
			`DiskAlarm member=ab raised=true`},
		{&applymsg.Request{Op: &applymsg.Request_MemberAttributes{MemberAttributes: &applymsg.MemberAttributes{MemberId: 1, Name: "n", ClientUrls: []string{"http://a", "http://b"}}}},
			`MemberAttributes member=1 name="n" client-urls=http://a,http://b`},
		{&applymsg.Request{Op: &applymsg.Request_ClusterVersion{ClusterVersion: &applymsg.Version{Major: 3, Minor: 7}}},
			`ClusterVersion 3.7`},
		{&applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: 0xab, TTL: 60}}},
			`LeaseGrant id=ab ttl=60`},
		{&applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{0xab}}}},
			`LeaseRevoke leases=1 ab`},
		{&applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{1, 2, 3, 4, 5, 6, 7, 8, 9}, Expired: true, Term: 3}}},
			`LeaseRevoke leases=9 expired term=3 1 2 3 4 5 6 7 8`},
		{&applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: &applymsg.LeaseCheckpoint{Term: 3, Leases: []*applymsg.LeaseRemaining{{Id: 0xab, Ttl: 20}}}}},
			`LeaseCheckpoint leases=1 term=3 ab=20`},
	} {
		if got := describeRequest(c.req, false); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	if got := describeRequest(&applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: key, Value: value}}}, true); got != `Put key="k\n" value="\x00v"` {
		t.Errorf("with the value: %s", got)
	}
	cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: proto.Uint64(0xab)}}}
	data, err := proto.Marshal(cc)
	must(t, err)
	got := describeRecord(&wal.Record{Kind: wal.KindEntry, Index: 4, Term: 2, EntryType: raftpb.EntryConfChangeV2, Data: data}, false)
	if want := "entry term=2 index=4 type=confchange2 ConfChangeRemoveNode=ab"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestDescribeMemberChange: a change that a member proposed, and one with which a cluster
// begins.
func TestDescribeMemberChange(t *testing.T) {
	m := &applymsg.Member{Id: 0xab, PeerUrls: []string{"http://a", "http://b"}}
	cc := (&raftpb.ConfChange{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(0xab))}).AsV2()
	for want, context := range map[string]proto.Message{
		"ConfChangeAddLearnerNode=ab peer-urls=http://a,http://b":                          m,
		"id=cd MEMBER_ADD_LEARNER ConfChangeAddLearnerNode=ab peer-urls=http://a,http://b": &applymsg.MemberChange{BatchId: 0xcd, Kind: applymsg.MemberChangeKind_MEMBER_ADD_LEARNER, Member: m},
	} {
		data, err := proto.Marshal(context)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := describeChange(cc, data); err != nil || got != want {
			t.Errorf("got %q and error %v, want %q", got, err, want)
		}
	}
}
