package core

import (
	"testing"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// TestJoinedIsRecorded: a member whose first start joined a cluster and was cut short does not
// create a cluster at the next start, whatever its flags say then.
func TestJoinedIsRecorded(t *testing.T) {
	d := DataDir{Path: t.TempDir()}
	given := Identity{ClusterID: 1, MemberID: 2, Name: "m", PeerURLs: []string{"http://localhost:1"}, Joined: true}
	random := func() uint64 { return 7 }
	id, _, err := OpenDataDir(d, given, random)
	if err != nil || !id.Joined {
		t.Fatalf("first start: got %+v, %v, want a member that joined", id, err)
	}
	if err := d.record(id); err != nil {
		t.Fatal(err)
	}
	given.Joined, given.MemberID = false, 3
	again, _, err := OpenDataDir(d, given, random)
	if err != nil || !again.Joined || again.MemberID != 2 || again.DataID != 7 {
		t.Fatalf("second start: got %+v, %v, want %+v", again, err, id)
	}
	for _, joined := range []bool{false, true} {
		again.Joined = joined
		h := New(Config{Dir: d, Identity: again, Members: []*applymsg.Member{{Id: 2}, {Id: 3}},
			Election: 10, Heartbeat: 1, Rand: random, Disk: noDisk{}, Logger: zerolog.Nop()}, NewShared(), nil)
		rep, err := h.newReplica(&wal.Recovered{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := rep.Voter(3), !joined; got != want {
			t.Errorf("joined %v: the replica begins with the voters of a new cluster: got %v, want %v", joined, got, want)
		}
	}
}

// noDisk has no limits.
type noDisk struct{}

func (noDisk) MakeRoom() error                { return nil }
func (noDisk) Full(err error) error           { return err }
func (noDisk) AwaitRoom() bool                { return true }
func (noDisk) PersistRoom(int) bool           { return true }
func (noDisk) Room(int64) bool                { return true }
func (noDisk) LogFull(*applymsg.Request) bool { return false }
