package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// peers is a network on which these URLs answer, in place of their handlers' bodies. A body
// that begins with "!" is served without the id of a cluster.
func peers(t testing.TB, bodies map[string]string) Network {
	n := offline(t)
	n.Client = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		body, ok := bodies[r.URL.String()]
		if !ok {
			return nil, errors.New("connection refused")
		}
		w := httptest.NewRecorder()
		if !strings.HasPrefix(body, "!") {
			w.Header().Set("X-Etcd-Cluster-ID", "abc")
		}
		_, _ = io.WriteString(w, strings.TrimPrefix(body, "!"))
		return w.Result(), nil
	})}
	return n
}

const twoMembers = `[{"id":7,"peerURLs":["http://10.0.0.2:1"]},{"id":5,"peerURLs":["http://10.0.0.1:1"],"name":"first","clientURLs":["http://10.0.0.1:2"]}]`

const goodVersion = `{"etcdserver":"3.7.3","etcdcluster":"3.7.0"}`

func TestJoin(t *testing.T) {
	const cluster = "--initial-cluster=a=http://10.0.0.1:1,b=http://10.0.0.2:1"
	one := map[string]string{"http://10.0.0.1:1/members": twoMembers, "http://10.0.0.1:1/version": goodVersion}
	with := func(url, body string) map[string]string {
		m := map[string]string{}
		for k, v := range one {
			m[k] = v
		}
		m[url] = body
		return m
	}
	existing := "{ClusterID:abc Members:[&{ID:5 RaftAttributes:{PeerURLs:[http://10.0.0.1:1] IsLearner:false} Attributes:{Name:first ClientURLs:[http://10.0.0.1:2]}} " +
		"&{ID:7 RaftAttributes:{PeerURLs:[http://10.0.0.2:1] IsLearner:false} Attributes:{Name: ClientURLs:[]}}] RemovedMemberIDs:[]}"
	for _, tc := range []struct {
		name string
		flag string
		net  map[string]string
		want string // the error
	}{
		{"joins", cluster, one, ""},
		{"joins by name", "--initial-cluster=a=http://10.0.0.1:1,b=http://host:1", with("http://10.0.0.1:1/members", strings.ReplaceAll(twoMembers, "10.0.0.2", "10.0.0.9")), ""},
		{"one url more", cluster + ",a=http://10.0.0.8:1", one,
			"error validating peerURLs " + existing + `: PeerURLs: no match found for existing member (5, [http://10.0.0.1:1]), last resolver error (len(["http://10.0.0.1:1"]) != len(["http://10.0.0.1:1" "http://10.0.0.8:1"]))`},
		{"own version", cluster, with("http://10.0.0.2:1/version", `{"etcdcluster":"3.8.0"}`), ""},
		{"nobody", cluster, nil, "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"},
		{"no cluster id", cluster, with("http://10.0.0.1:1/members", "!"+twoMembers), "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"},
		{"garbage", cluster, with("http://10.0.0.1:1/members", "x"), "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"},
		{"no members", cluster, with("http://10.0.0.1:1/members", "[]"), "cannot fetch cluster info from peer urls: failed to get raft cluster member(s) from the given URLs"},
		{"one more", cluster + ",c=http://10.0.0.3:1", one, "error validating peerURLs " + existing + ": member count is unequal"},
		{"other url", "--initial-cluster=a=http://10.0.0.1:1,b=http://10.0.0.3:1", one, "error validating peerURLs " + existing +
			`: PeerURLs: no match found for existing member (7, [http://10.0.0.2:1]), last resolver error (resolved urls: "http://10.0.0.2:1" != "http://10.0.0.3:1")`},
		{"newer cluster", cluster, with("http://10.0.0.1:1/version", `{"etcdcluster":"3.8.0"}`), "incompatible with current running cluster"},
		{"older cluster", cluster, with("http://10.0.0.1:1/version", `{"etcdcluster":"2.3.0"}`), "incompatible with current running cluster"},
		{"undecided cluster", cluster, with("http://10.0.0.1:1/version", `{"etcdcluster":"not_decided"}`), "incompatible with current running cluster"},
		{"learners", cluster, with("http://10.0.0.1:1/members", strings.ReplaceAll(twoMembers, `"peerURLs"`, `"isLearner":true,"peerURLs"`)),
			"membership: too many learner members in cluster"},
		{"not named", "--initial-cluster=a=http://10.0.0.1:1", one, `couldn't find local name "b" in the initial cluster configuration`},
		{"twice", cluster + ",b=http://10.0.0.1:1", one,
			"initial cluster a=http://10.0.0.1:1,b=http://10.0.0.1:1,b=http://10.0.0.2:1 has duplicate url"},
	} {
		c, _ := mustParse(t, []string{"--name=b", "--initial-cluster-state=existing", tc.flag})
		err := c.Bootstrap(t.Context(), false, peers(t, tc.net))
		if got := fmt.Sprint(err); tc.want != "" && got != tc.want {
			t.Errorf("%s: got error %s, want %s", tc.name, got, tc.want)
		}
		if tc.want != "" {
			continue
		}
		n := &c.Node
		if err != nil || !n.Join || n.MemberID != 7 || n.ClusterID != 0xabc || len(n.Members) != 2 || n.Members[0].Id != 5 || n.Members[0].Name != "first" {
			t.Errorf("%s: got member %x of %v in cluster %x, join %v, error %v, want member 7 of cluster abc", tc.name,
				n.MemberID, n.Members, n.ClusterID, n.Join, err)
		}
	}
}

// TestStartedBefore: a member of a new cluster that a peer knows has lost its data.
func TestStartedBefore(t *testing.T) {
	for name, want := range map[string]string{
		`"clientURLs":["http://10.0.0.2:2"],`: "member 61b046c1789d11d8 has already been bootstrapped",
		"":                                    "<nil>",
	} {
		c, _ := mustParse(t, []string{"--name=b", "--initial-advertise-peer-urls=http://10.0.0.2:2380", "--initial-cluster-token=tok",
			"--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.2:2380"})
		err := c.Bootstrap(t.Context(), false, peers(t, map[string]string{
			"http://10.0.0.1:2380/members": fmt.Sprintf(`[{%s"id":%d}]`, name, uint64(0x61b046c1789d11d8))}))
		if got := fmt.Sprint(err); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}

// TestResolve: a name that cannot be resolved is tried again until the time is over.
func TestResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		n := Network{Resolve: func(context.Context, string) (string, error) {
			if tries++; tries%4 != 0 {
				return "", errors.New("no such host")
			}
			return "10.0.0.1:1", nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := n.sameURLs(ctx, []string{"http://a:1"}, []string{"http://b:1"}); err != nil || tries != 8 {
			t.Errorf("got %v after %d tries, want equal URLs after 8", err, tries)
		}
		tries = 0
		n.Resolve = func(context.Context, string) (string, error) { tries++; return "", errors.New("no such host") }
		want := `failed to resolve "http://a:1" (no such host)`
		if err := n.sameURLs(ctx, []string{"http://a:1"}, []string{"http://b:1"}); err == nil || err.Error() != want || tries < 3 {
			t.Errorf("got %v after %d tries, want %s after several", err, tries, want)
		}
	})
}

// TestNewNetwork: an address resolves to itself, and redirects are not followed.
func TestNewNetwork(t *testing.T) {
	n := NewNetwork(nil)
	if got, err := n.Resolve(t.Context(), "127.0.0.1:http"); err != nil || got != "127.0.0.1:80" {
		t.Errorf("got %q and error %v, want 127.0.0.1:80", got, err)
	}
	followed := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		followed = followed || r.URL.Path == "/other"
		http.Redirect(w, r, "/other", http.StatusFound)
	}))
	defer s.Close()
	if _, err := n.fetchMembers(t.Context(), []string{s.URL}, time.Minute); err == nil || followed {
		t.Errorf("got error %v, followed %v, want an error and no redirect", err, followed)
	}
}

func TestOtherURLs(t *testing.T) {
	c, _ := mustParse(t, []string{"--name=b", "--initial-cluster=a=http://z:1,b=http://y:1,c=http://x:1", "--initial-advertise-peer-urls=http://y:1"})
	if err := c.Bootstrap(t.Context(), false, offline(t)); err != nil {
		t.Fatal(err)
	}
	if got, want := c.otherURLs(), []string{"http://x:1", "http://z:1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
