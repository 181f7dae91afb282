package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// withStore opens the store, for a test to make changes that no member makes.
func withStore(t *testing.T, dir string, do func(s backend.Store)) {
	t.Helper()
	s, err := backend.Open(backend.Config{Dir: filepath.Join(dir, "member", "db"),
		MemTableBytes: 128 << 10, ValueLogBytes: 2 << 20})
	must(t, err)
	do(s)
	must(t, s.Close())
}

// withState changes the state in the store.
func withState(t *testing.T, dir string, do func(d *mvccmsg.Durable)) {
	t.Helper()
	withStore(t, dir, func(s backend.Store) {
		d := new(mvccmsg.Durable)
		must(t, s.State(func(e backend.Entry) error { return proto.Unmarshal(e.Value, d) }))
		do(d)
		b, err := proto.Marshal(d)
		must(t, err)
		must(t, s.Commit(backend.Batch{Set: []backend.Entry{{Key: "state", Value: b}}}))
	})
}

// newLog replaces the log by one with these entries.
func newLog(t *testing.T, dir string, clusterID, memberID uint64, entries ...*raftpb.Entry) {
	t.Helper()
	path := filepath.Join(dir, "member", "wal")
	must(t, os.RemoveAll(path))
	l, err := wal.Create(wal.OSFS{}, path, wal.Config{ClusterID: clusterID, MemberID: memberID,
		SegmentBytes: 64 << 10, Rand: rand.Uint64}, wal.Batch{Entries: entries})
	must(t, err)
	must(t, l.Close())
}

func entry(index, term uint64, data string) *raftpb.Entry {
	return &raftpb.Entry{Index: &index, Term: &term, Data: []byte(data)}
}

// packOf returns the nth pack of the store, and the value log that holds it. The
// record begins at the offset or a little before.
func packOf(t *testing.T, dir string, n int) (pack backend.Pack, file string, offset int64) {
	t.Helper()
	db := filepath.Join(dir, "member", "db")
	rep, err := backend.VerifyWith(backend.VerifyConfig{Dir: db, VisitPack: func(id backend.PackID, value []byte) error {
		if n--; n == -1 {
			pack = backend.Pack{ID: id, Parts: [][]byte{bytes.Clone(value)}}
		}
		return nil
	}})
	must(t, err)
	if pack.Parts == nil || len(rep.Problems) > 0 {
		t.Fatalf("%d packs, %v", rep.Packs, rep.Problems)
	}
	logs, err := filepath.Glob(filepath.Join(db, "*.vlog"))
	must(t, err)
	for _, path := range logs {
		b, err := os.ReadFile(path)
		must(t, err)
		if at := bytes.LastIndex(b, pack.Parts[0]); at >= 0 {
			return pack, filepath.Base(path), int64(at)
		}
	}
	t.Fatalf("pack %s is in no value log", pack.ID)
	return
}

// verifyJSON runs verify and returns the report.
func verifyJSON(t *testing.T, dir string, flags ...string) (int, *report) {
	t.Helper()
	code, out, errs := troupectl(t, dir, append([]string{"verify", "--json", dir}, flags...)...)
	rep := new(report)
	if err := json.Unmarshal([]byte(out), rep); err != nil || errs != "" {
		t.Fatalf("%v: %s\n%s", err, out, errs)
	}
	if rep.Good != (code == exitOK) || rep.Good != (len(rep.Problems) == 0) {
		t.Errorf("exit code %d, report: %s", code, out)
	}
	return code, rep
}

// TestVerifyGood: the report on a good directory matches what was written.
func TestVerifyGood(t *testing.T) {
	dir := filled(t, 2)
	code, rep := verifyJSON(t, dir)
	if code != exitOK || len(rep.Notes) > 0 {
		t.Errorf("%d, %q, %v", code, rep.Notes, rep.Problems)
	}
	if i := rep.Identity; i.ClusterID != "c1" || i.MemberID != "2" || i.Name != "default" ||
		!slices.Equal(i.PeerURLs, []string{"http://localhost:2382"}) {
		t.Errorf("%+v", i)
	}
	l, s := rep.Log, rep.Store
	if l.Segments != len(segments(t, dir)) || l.Bytes != int64(l.Segments)*64<<10 || l.FirstIndex != 1 || l.LastIndex < 195 ||
		l.LastTerm != 2 || l.HardState.Term != 2 || l.HardState.Vote != "2" || l.HardState.Commit != l.LastIndex {
		t.Errorf("%+v, %+v", l, l.HardState)
	}
	// 190 puts of 100 keys, a deletion of 11, and one more put.
	if s.Keys != 90 || s.Revision != 193 || s.CompactRevision != 20 || s.AppliedIndex != l.LastIndex || s.AppliedTerm != 2 || s.Packs == 0 {
		t.Errorf("%+v", s)
	}
	_, out, _ := troupectl(t, dir, "verify", dir)
	for _, want := range []string{"result        good", "90 keys", "revision 193, compacted at 20", `member        2 "default" of cluster c1`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestVerifyInstalled: after a snapshot was installed the store has another folder, which
// CURRENT names. If CURRENT is damaged, the error says so.
func TestVerifyInstalled(t *testing.T) {
	dir := filled(t, 2)
	member := filepath.Join(dir, "member")
	must(t, os.Rename(filepath.Join(member, "db"), filepath.Join(member, "db-00000000000000aa")))
	must(t, snapshot.NewStores(wal.OSFS{}, member).Switch(0xaa))
	code, rep := verifyJSON(t, dir)
	if code != exitOK || rep.Store == nil || rep.Store.Folder != "member/db-00000000000000aa" || rep.Store.Keys != 90 {
		t.Errorf("exit code %d, store %+v, problems %v; want 90 keys in db-00000000000000aa", code, rep.Store, rep.Problems)
	}
	start(t, dir, 2, nil).stop()
	must(t, os.WriteFile(filepath.Join(member, "CURRENT"), []byte("db-00000000000000ab 00000000\n"), 0o600))
	var stdout, stderr bytes.Buffer
	if code := run([]string{"verify", dir}, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "CURRENT is damaged") {
		t.Errorf("damaged CURRENT: exit code %d, %s", code, &stderr)
	}
}

// TestVerifyInterruptedInstall: between the mark in the log and the switch of CURRENT, the
// report is about the store that a start would open, whether CURRENT names the old store, one
// that is damaged or missing, or is damaged itself.
func TestVerifyInterruptedInstall(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, member string){
		"the old store": func(*testing.T, string) {},
		"a damaged store": func(t *testing.T, member string) {
			must(t, os.WriteFile(filepath.Join(member, "db", "MANIFEST"), []byte("?"), 0o600))
		},
		"a missing store": func(t *testing.T, member string) { must(t, os.RemoveAll(filepath.Join(member, "db"))) },
		"a damaged CURRENT": func(t *testing.T, member string) {
			must(t, os.WriteFile(filepath.Join(member, "CURRENT"), []byte("?"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, index := interrupted(t)
			member := filepath.Join(dir, "member")
			spoil(t, member)
			folder := fmt.Sprintf("member/db-%016x", index)
			code, rep := verifyJSON(t, dir)
			if code != exitOK || rep.Store == nil || rep.Store.Folder != folder || rep.Store.Keys != 90 || rep.Log.MarkIndex != index {
				t.Errorf("exit code %d, store %+v, log %+v, problems %+v; want 90 keys in %s, and its mark", code, rep.Store, rep.Log, rep.Problems, folder)
			}
			if len(rep.Notes) != 1 || !strings.HasPrefix(rep.Notes[0], folder+": a snapshot whose installation was interrupted") {
				t.Errorf("got notes %q, want one about the snapshot", rep.Notes)
			}
		})
	}
	dir, _ := interrupted(t)
	m := start(t, dir, 2, nil) // as the note says
	m.stop()
	if code, rep := verifyJSON(t, dir); code != exitOK || len(rep.Notes) != 0 {
		t.Errorf("after a start: exit code %d, notes %q, problems %+v, want none", code, rep.Notes, rep.Problems)
	}
}

// interrupted returns a data directory as a crash leaves it that interrupts the installation of
// a snapshot between the mark and CURRENT, and the index of the snapshot. The old store is empty.
func interrupted(t *testing.T) (dir string, index uint64) {
	t.Helper()
	dir = filled(t, 2)
	member := filepath.Join(dir, "member")
	_, rep := verifyJSON(t, dir)
	index = rep.Store.AppliedIndex
	must(t, os.Rename(filepath.Join(member, "db"), filepath.Join(member, fmt.Sprintf("db-%016x", index))))
	old, err := backend.Open(backend.Config{Dir: filepath.Join(member, "db")})
	must(t, err)
	state, err := proto.Marshal(&mvccmsg.Durable{Format: 2, ClusterId: 0xc1, MemberId: 2, AppliedIndex: 1, AppliedTerm: 1})
	must(t, err)
	must(t, old.Commit(backend.Batch{Set: []backend.Entry{{Key: snapshot.StateName, Value: state}}}))
	must(t, old.Close())
	log, _, err := wal.Open(wal.OSFS{}, filepath.Join(member, "wal"), wal.Config{ClusterID: 0xc1, MemberID: 2, Rand: rand.Uint64, SegmentBytes: 64 << 10})
	must(t, err)
	must(t, log.Install(wal.Mark{Index: index, Term: rep.Store.AppliedTerm, ConfState: &raftpb.ConfState{Voters: []uint64{2}}}))
	must(t, log.Close())
	return dir, index
}

// TestVerifyWALDir: the log may be elsewhere; without the flag it is missing.
func TestVerifyWALDir(t *testing.T) {
	dir := filled(t, 2)
	elsewhere := filepath.Join(t.TempDir(), "log")
	must(t, os.Rename(filepath.Join(dir, "member", "wal"), elsewhere))
	if code, rep := verifyJSON(t, dir, "-wal-dir", elsewhere); code != exitOK || rep.Log.Folder != elsewhere {
		t.Errorf("%+v", rep)
	}
	code, rep := verifyJSON(t, dir)
	if code != exitFailed || !strings.Contains(rep.Problems[0].String(), "--wal-dir") {
		t.Errorf("%v", rep.Problems)
	}
}

// finding describes an expected problem. The offset is that of the damage; the offset of
// the problem is the same or that of the beginning of the record.
type finding struct {
	area   area
	file   string
	offset int64 // 0: none, or not compared
	within int64
	pack   string
	record string
	reason string // is in it
}

func (f finding) matches(p problem) bool {
	return p.Area == f.area && p.File == f.file && p.Pack == f.pack && p.Record == f.record &&
		strings.Contains(p.Reason, f.reason) &&
		(f.offset == 0 || p.Offset != nil && *p.Offset <= f.offset && *p.Offset > f.offset-f.within)
}

// TestVerifyDamage: every damage is found and named by file, offset, pack and record, as
// far as they can be known. Nothing else is reported.
func TestVerifyDamage(t *testing.T) {
	original := filled(t, 2)
	walName := func(i int) string { return "member/wal/" + filepath.Base(segments(t, original)[i]) }
	pack, packFile, packAt := packOf(t, original, 2)
	other, otherFile, otherAt := packOf(t, original, 0)
	inDB := func(name string) string { return "member/db/" + name }
	_, good := verifyJSON(t, original)
	applied := good.Store.AppliedIndex
	for name, c := range map[string]struct {
		damage func(dir string)
		want   []finding
	}{
		"byte of the log": {
			func(dir string) { flip(t, segments(t, dir)[1], 20_000) },
			[]finding{{area: areaLog, file: walName(1), offset: 20_000, within: 1200, reason: "checksum"}},
		},
		"header of a segment": {
			func(dir string) { flip(t, segments(t, dir)[2], 40) },
			[]finding{{area: areaLog, file: walName(2), reason: "checksum"}},
		},
		"segment cut short": {
			func(dir string) { must(t, os.Truncate(segments(t, dir)[0], 30_000)) },
			[]finding{{area: areaLog, file: walName(0), offset: 30_000, within: 1, reason: "30000 bytes"}},
		},
		"segment missing": {
			func(dir string) { must(t, os.Remove(segments(t, dir)[1])) },
			[]finding{{area: areaLog, file: walName(2), reason: "missing"}},
		},
		"no log": {
			func(dir string) { must(t, os.RemoveAll(filepath.Join(dir, "member/wal"))) },
			[]finding{{area: areaLog, file: "member/wal", reason: "no log"}},
		},
		"entry that is no request": {
			func(dir string) {
				withLog(t, dir, func(l *wal.Log, rec *wal.Recovered) {
					must(t, l.Append(wal.Batch{Entries: []*raftpb.Entry{entry(applied+1, 2, "\xff\xff")}, Sync: true}))
				})
			},
			[]finding{{area: areaLog, file: walName(3), offset: 64 << 10, within: 64 << 10, reason: "cannot be decoded"}},
		},
		"byte of a pack": {
			func(dir string) { flip(t, filepath.Join(dir, "member/db", packFile), packAt+1000) },
			[]finding{{area: areaStore, file: inDB(packFile), offset: packAt, within: 64, pack: pack.ID.String(), reason: "checksum"}},
		},
		"bytes of two packs and of the log": {
			func(dir string) {
				flip(t, filepath.Join(dir, "member/db", packFile), packAt+1000)
				flip(t, filepath.Join(dir, "member/db", otherFile), otherAt+1000)
				flip(t, segments(t, dir)[1], 20_000)
			},
			[]finding{
				{area: areaStore, file: inDB(packFile), offset: packAt, within: 64, pack: pack.ID.String(), reason: "checksum"},
				{area: areaStore, file: inDB(otherFile), offset: otherAt, within: 64, pack: other.ID.String(), reason: "checksum"},
				{area: areaLog, file: walName(1), offset: 20_000, within: 1200, reason: "checksum"},
			},
		},
		"file of packs": {
			func(dir string) { must(t, os.Remove(filepath.Join(dir, "member/db", packFile))) },
			[]finding{{area: areaStore, file: inDB(packFile), pack: pack.ID.String(), reason: "file is missing"}},
		},
		"manifest": {
			func(dir string) { must(t, os.Remove(filepath.Join(dir, "member/db/MANIFEST"))) },
			[]finding{{area: areaStore, file: inDB("MANIFEST"), reason: "missing"}, {area: areaIndex, file: "member/db", reason: "not checked"}},
		},
		"table": {
			func(dir string) { flip(t, filepath.Join(dir, "member/db/000001.sst"), 200) },
			[]finding{{area: areaStore, file: inDB("000001.sst"), reason: "checksum"}, {area: areaIndex, file: "member/db", reason: "not checked"}},
		},
		"no store": {
			func(dir string) { must(t, os.RemoveAll(filepath.Join(dir, "member/db"))) },
			[]finding{{area: areaStore, file: "member/db", reason: "no store"}},
		},
		"identity damaged": {
			func(dir string) { must(t, os.Truncate(filepath.Join(dir, "member/identity.json"), 20)) },
			[]finding{{area: areaIdentity, file: "member/identity.json", reason: "no identity in"}},
		},
		"identity of another member": {
			func(dir string) {
				change(t, filepath.Join(dir, "member/identity.json"), func(b []byte) []byte {
					return bytes.Replace(b, []byte(`"member_id": 2`), []byte(`"member_id": 3`), 1)
				})
			},
			[]finding{
				{area: areaTogether, file: "member/wal", reason: "the log is of member 2 in cluster c1, the directory of member 3 in cluster c1"},
				{area: areaTogether, file: "member/db", reason: "the store is of member 2 in cluster c1, the directory of member 3 in cluster c1"},
			},
		},
		"store of another member": {
			func(dir string) {
				must(t, os.RemoveAll(filepath.Join(dir, "member/db")))
				must(t, os.Rename(filepath.Join(filled(t, 3), "member/db"), filepath.Join(dir, "member/db")))
			},
			[]finding{{area: areaTogether, file: "member/db", reason: "the store is of member 3 in cluster c1, the directory of member 2 in cluster c1"}},
		},
		"store of an earlier time": {
			func(dir string) {
				withLog(t, dir, func(l *wal.Log, rec *wal.Recovered) {
					must(t, l.Append(wal.Batch{Entries: []*raftpb.Entry{entry(applied+1, 2, ""), entry(applied+2, 2, "")}}))
					must(t, l.Append(wal.Batch{Mark: &wal.Mark{Index: applied + 1, Term: 2}, Sync: true}))
				})
			},
			[]finding{{area: areaTogether, file: "member/db", reason: "what is between is lost"}},
		},
		"log of an earlier time": {
			func(dir string) { newLog(t, dir, 0xc1, 2, entry(1, 1, ""), entry(2, 2, "")) },
			[]finding{{area: areaTogether, file: "member/wal", reason: "the log ends at entry 2"}},
		},
		"log of another history": {
			func(dir string) {
				var entries []*raftpb.Entry
				for i := range applied + 1 {
					entries = append(entries, entry(i+1, 7, ""))
				}
				newLog(t, dir, 0xc1, 2, entries...)
			},
			[]finding{{area: areaTogether, file: "member/db", reason: "of term 2, the log has one of term 7"}},
		},
		"state that does not decode": {
			func(dir string) {
				withStore(t, dir, func(s backend.Store) {
					must(t, s.Commit(backend.Batch{Set: []backend.Entry{{Key: "state", Value: []byte{0xff}}}}))
				})
			},
			[]finding{{area: areaState, file: "member/db", reason: "state"}, {area: areaIndex, file: "member/db", reason: "not checked"}},
		},
		"state of a later version": {
			func(dir string) { withState(t, dir, func(d *mvccmsg.Durable) { d.Format = 4 }) },
			[]finding{{area: areaState, file: "member/db", reason: "format 4"}, {area: areaIndex, file: "member/db", reason: "not checked"}},
		},
		"state that nobody knows": {
			func(dir string) {
				withStore(t, dir, func(s backend.Store) {
					must(t, s.Commit(backend.Batch{Set: []backend.Entry{{Key: "stare", Value: nil}}}))
				})
			},
			[]finding{{area: areaState, file: "member/db", reason: `"stare"`}, {area: areaIndex, file: "member/db", reason: "not checked"}},
		},
		"impossible compaction": {
			func(dir string) { withState(t, dir, func(d *mvccmsg.Durable) { d.CompactRevision = 1000 }) },
			[]finding{{area: areaState, file: "member/db", reason: "compact revision 1000"}, {area: areaIndex, file: "member/db", reason: "not checked"}},
		},
		"pack that is none": {
			func(dir string) {
				withStore(t, dir, func(s backend.Store) {
					must(t, s.Commit(backend.Batch{Put: []backend.Pack{{ID: pack.ID, Parts: [][]byte{bytes.Repeat([]byte{9}, 2000)}}}}))
				})
			},
			[]finding{{area: areaIndex, file: inDB("000002.vlog"), offset: 20, within: 1, pack: pack.ID.String(), reason: "format 9"}},
		},
		"record of another revision": {
			func(dir string) {
				value := bytes.Clone(pack.Parts[0])
				value[8+11] |= 0x80 // in the table, its first row is of a tombstone
				withStore(t, dir, func(s backend.Store) {
					must(t, s.Commit(backend.Batch{Put: []backend.Pack{{ID: pack.ID, Parts: [][]byte{value}}}}))
				})
			},
			[]finding{{area: areaIndex, file: inDB("000002.vlog"), offset: 20, within: 1, pack: pack.ID.String(),
				record: pack.ID.String(), reason: "of another revision"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 2)
			c.damage(dir)
			code, rep := verifyJSON(t, dir)
			if code != exitFailed {
				t.Fatalf("exit code %d", code)
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(rep.Problems, want.matches) {
					t.Errorf("no problem %+v in %v", want, rep.Problems)
				}
			}
			for _, p := range rep.Problems {
				// A file may hold several packs.
				if !slices.ContainsFunc(c.want, func(f finding) bool { return f.matches(p) || f.reason == "file is missing" && f.file == p.File }) {
					t.Errorf("unexpected: %s %s", p.Area, p)
				}
			}
			if _, out, _ := troupectl(t, dir, "verify", dir); !strings.Contains(out, "DAMAGED") || !strings.Contains(out, rep.Problems[0].String()) {
				t.Errorf("the text is\n%s", out)
			}
		})
	}
}

// TestVerifyRemnants: remnants of a crash are noted and are not damage.
func TestVerifyRemnants(t *testing.T) {
	for name, c := range map[string]struct {
		leave func(dir string)
		want  string
	}{
		"torn tail": {
			func(dir string) {
				last := len(segments(t, dir)) - 1
				change(t, segments(t, dir)[last], func(b []byte) []byte {
					b[len(b)-200] = 1
					return b
				})
			},
			"bytes of an unfinished write",
		},
		"unfinished commit": {
			func(dir string) {
				withState(t, dir, func(d *mvccmsg.Durable) { d.Revision, d.AppliedIndex = d.Revision-40, d.AppliedIndex-44 })
			},
			"packs hold records of an unfinished commit",
		},
		"memtable log": {
			func(dir string) {
				must(t, os.WriteFile(filepath.Join(dir, "member/db/00099.mem"), nil, 0o600))
			},
			"length zero",
		},
		"half an identity": {
			func(dir string) {
				must(t, os.WriteFile(filepath.Join(dir, "member/identity.json.tmp"), []byte("{"), 0o600))
			},
			"an identity that was being written",
		},
		"identity missing": {
			func(dir string) { must(t, os.Remove(filepath.Join(dir, "member/identity.json"))) },
			"the next start writes it",
		},
		"first start": {
			func(dir string) {
				newLog(t, dir, 0xc1, 2)
				must(t, os.RemoveAll(filepath.Join(dir, "member/db")))
				must(t, os.Remove(filepath.Join(dir, "member/identity.json")))
			},
			"the first start was interrupted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 2)
			c.leave(dir)
			code, rep := verifyJSON(t, dir)
			if code != exitOK || !slices.ContainsFunc(rep.Notes, func(n string) bool { return strings.Contains(n, c.want) }) {
				t.Errorf("notes %q, problems %v", rep.Notes, rep.Problems)
			}
		})
	}
}

// TestVerifyInUse: a directory on which a member runs is refused, by the lock of
// its log or by that of its store.
func TestVerifyInUse(t *testing.T) {
	dir := filled(t, 2)
	refused := func(args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := run(append(args, dir), &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "stop the member first") || stdout.Len() > 0 {
			t.Errorf("%v: exit code %d, %s\n%s", args, code, &stderr, &stdout)
		}
	}
	m := start(t, dir, 2, nil)
	refused("verify")
	refused("wal", "dump")
	m.stop()
	withStore(t, dir, func(backend.Store) { refused("verify") })
	// Neither leaves a lock behind.
	if code, _ := verifyJSON(t, dir); code != exitOK {
		t.Error("not good afterwards")
	}
	start(t, dir, 2, nil).stop()
}

// TestVerifyNoData: the error says why a path is not a data directory.
func TestVerifyNoData(t *testing.T) {
	root := t.TempDir()
	put := func(path string, content string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700))
		must(t, os.WriteFile(filepath.Join(root, path), []byte(content), 0o600))
	}
	put("file", "x")
	put("elsewhere/photo.jpg", "x")
	put("etcd/member/snap/db", "x")
	put("etcdlog/member/wal/0000000000000000-0000000000000000.wal", "\x04\x00\x00\x00\x00\x00\x00\x84\x08\x04\x10\x00")
	must(t, os.Mkdir(filepath.Join(root, "empty"), 0o700))
	must(t, os.Rename(filled(t, 2), filepath.Join(root, "good")))
	for name, want := range map[string]string{
		"nothing":     "there is no directory",
		"file":        "is a file",
		"elsewhere":   "holds no member's data",
		"empty":       "is empty",
		"etcd":        "belongs to an etcd member",
		"etcdlog":     "belongs to an etcd member",
		"good/member": "give the one above it",
	} {
		for _, args := range [][]string{{"verify"}, {"wal", "dump"}} {
			var stdout, stderr bytes.Buffer
			path := filepath.Join(root, name)
			code := run(append(args, path), &stdout, &stderr)
			if code != exitFailed || !strings.Contains(stderr.String(), want) || !strings.Contains(stderr.String(), path) || stdout.Len() > 0 {
				t.Errorf("%v %s: exit code %d, %s", args, name, code, &stderr)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(root, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("verify has made a directory")
	}
}

// TestReportBounds: omitted problems are counted.
func TestReportBounds(t *testing.T) {
	dir := filled(t, 2)
	_, rep := verifyJSON(t, dir)
	last := rep.Log.LastIndex
	withLog(t, dir, func(l *wal.Log, _ *wal.Recovered) {
		var entries []*raftpb.Entry
		for i := range uint64(badEntriesMax + 20) {
			entries = append(entries, entry(last+1+i, 2, "\xff"))
		}
		must(t, l.Append(wal.Batch{Entries: entries, Sync: true}))
	})
	_, rep = verifyJSON(t, dir)
	if len(rep.Problems) != badEntriesMax || rep.Omitted != 20 {
		t.Errorf("%d problems, %d omitted", len(rep.Problems), rep.Omitted)
	}
	if _, out, _ := troupectl(t, dir, "verify", dir); !strings.Contains(out, "DAMAGED, problems: 120") || !strings.Contains(out, "and 20 more") {
		t.Errorf("the text is\n%.500s", out)
	}
}
