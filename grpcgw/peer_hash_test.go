package grpcgw

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/proto/raftmsg"
)

// TestPeerHash: the answers are those of etcd 3.7.3.
func TestPeerHash(t *testing.T) {
	m := filled(t, 3, 10)
	s := httptest.NewServer(NewPeerHandler(PeerConfig{Member: m}))
	defer s.Close()
	check := func(method, path, cluster, body string, status int, want string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if cluster != "" {
			req.Header.Set(HeaderClusterID, cluster)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status || string(got) != want {
			t.Errorf("%s %s with %.40q: got %d %q, want %d %q", method, path, body, resp.StatusCode, got, status, want)
		}
		if id := resp.Header.Get(HeaderClusterID); status == 200 && id != "cdf818194e3a8c32" {
			t.Errorf("%s %s: got cluster id %q, want cdf818194e3a8c32", method, path, id)
		}
	}
	hash := func(rev int64) string {
		h, err := m.pub.HashKV(rev, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"header":{"revision":4},"hash":%d,"compact_revision":-1,"hash_revision":%d}`, h.Hash, h.HashRevision)
	}
	check("GET", "/members/hashkv", "", `{"revision":3}`, 200, hash(3))
	check("GET", "/members/hashkv", "cdf818194e3a8c32", `{}`, 200, hash(4))
	check("GET", "/members/hashkv", "1", `{}`, 412, "cluster ID mismatch\n")
	check("GET", "/members/hashkv", "", `{"revision":5}`, 400, "mvcc: required revision is a future revision\n")
	check("GET", "/members/hashkv", "", "", 400, "error unmarshalling request\n")
	check("GET", "/members/hashkv", "", "x", 400, "error unmarshalling request\n")
	check("GET", "/members/hashkv", "", strings.Repeat(" ", hashRequestBytesMax+1), 400, "error reading body\n")
	check("POST", "/members/hashkv", "", "{}", 405, "Method Not Allowed\n")

	check("GET", "/downgrade/enabled", "", "", 200, "false")
	check("POST", "/downgrade/enabled", "", "", 405, "Method Not Allowed\n")
	m.set(func() { m.readCode = raftmsg.Code_NO_LEADER })
	check("GET", "/downgrade/enabled", "", "", 500, "failed linearized read: etcdserver: no leader\n")
}
