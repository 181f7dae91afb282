package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// FuzzIdentity: a file of any content names a member or is refused, and what it
// names comes back when it is written again.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"cluster_id": 1, "member_id": 2, "name": "default", "peer_urls": ["http://localhost:2380"]}`))
	f.Add([]byte(`{"cluster_id": 18446744073709551615, "member_id": 18446744073709551615}`))
	f.Add([]byte(`{"cluster_id": 1, "member_id": 0}`))
	f.Add([]byte(`{"cluster_id": -1, "member_id": 2}`))
	f.Add([]byte(`{"cluster_id": 1e3, "member_id": "2"}`))
	f.Add([]byte(`{"cluster_id": 1, "member_id": 2`))
	f.Add([]byte("{\"cluster_id\": 1, \"member_id\": 2, \"name\": \"\xff\"}"))
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "identity.json") // one for all: a run is one goroutine
	f.Fuzz(func(t *testing.T, text []byte) {
		id, err := parseIdentity(text)
		if err != nil {
			if id.ClusterID != 0 || id.MemberID != 0 {
				t.Fatalf("refused as %v, and is %+v", err, id)
			}
			return
		}
		if id.ClusterID == 0 || id.MemberID == 0 {
			t.Fatalf("accepted %+v", id)
		}
		if err := writeIdentity(path, id); err != nil {
			t.Fatal(err)
		}
		again, err := ReadIdentity(path)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(id)
		if got, _ := json.Marshal(again); string(got) != string(want) {
			t.Fatalf("%s is written, %s is read", want, got)
		}
		if _, err := os.Stat(path + ".tmp"); err == nil {
			t.Fatal("a temporary file is left")
		}
	})
}
