package core

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/troupe-db/troupe/walactor/wal"
)

// FuzzIdentity: a file of any content is parsed or refused. If it is parsed, it is the same
// after it was written and read again.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"cluster_id": 1, "member_id": 2, "name": "default", "peer_urls": ["http://localhost:2380"]}`))
	f.Add([]byte(`{"cluster_id": 18446744073709551615, "member_id": 18446744073709551615}`))
	f.Add([]byte(`{"cluster_id": 1, "member_id": 0}`))
	f.Add([]byte(`{"cluster_id": -1, "member_id": 2}`))
	f.Add([]byte(`{"cluster_id": 1e3, "member_id": "2"}`))
	f.Add([]byte(`{"cluster_id": 1, "member_id": 2`))
	f.Add([]byte("{\"cluster_id\": 1, \"member_id\": 2, \"name\": \"\xff\"}"))
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "identity.json") // shared: each process runs one input at a time
	f.Fuzz(func(t *testing.T, text []byte) {
		id, err := parseIdentity(text)
		if err != nil {
			if id.ClusterID != 0 || id.MemberID != 0 {
				t.Fatalf("got %+v with %v, want no ids", id, err)
			}
			return
		}
		if id.ClusterID == 0 || id.MemberID == 0 {
			t.Fatalf("got %+v, want both ids", id)
		}
		if err := writeIdentity(wal.OSFS{}, path, id); err != nil {
			t.Fatal(err)
		}
		again, err := ReadIdentity(wal.OSFS{}, path)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(id)
		if got, _ := json.Marshal(again); string(got) != string(want) {
			t.Fatalf("got %s, want %s", got, want)
		}
		if _, err := os.Stat(path + ".tmp"); err == nil {
			t.Fatal("the temporary file exists")
		}
	})
}
