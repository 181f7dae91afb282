package monitor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/proto/peerpb"
)

func version(t *testing.T, text string) *Version {
	t.Helper()
	if text == "" {
		return nil
	}
	v, err := ParseVersion(text)
	if err != nil {
		t.Fatal(err)
	}
	return &v
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"3.7.3": "3.7.3", "3.7.0-rc.1": "3.7.0", "3.7.3+git": "3.7.3", "4.0.0": "4.0.0",
		"": "", "3": "", "3.7": "", "3.7.3.1": "", "yyyy": "", "3.x.0": "", "3.-1.0": "", "3.4294967296.0": "",
	} {
		v, err := ParseVersion(text)
		if got := v.String(); err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %s and error %v, want %q", text, got, err, want)
		}
	}
}

// TestDecideClusterVersion has the cases of etcd's monitor, except downgrades.
func TestDecideClusterVersion(t *testing.T) {
	const unknown = "unknown"
	for _, c := range []struct {
		name, current string
		members       []string
		want          string // empty for no change
	}{
		{"no members", "", nil, "3.0.0"},
		{"first: the lowest", "", []string{"3.7.3", "3.6.1", "3.7.0"}, "3.6.0"},
		{"first: a release candidate", "", []string{"3.7.0-rc.1"}, "3.7.0"},
		{"first: one unknown", "", []string{"3.7.3", unknown}, "3.0.0"},
		{"raised once all are known", "3.0.0", []string{"3.7.3", "3.7.3", "3.7.1"}, "3.7.0"},
		{"not raised while one is unknown", "3.0.0", []string{"3.7.3", unknown, "3.7.3"}, ""},
		{"not raised while one is old", "3.6.0", []string{"3.7.3", "3.6.9"}, ""},
		{"raised when all are new", "3.6.0", []string{"3.7.0", "3.7.3"}, "3.7.0"},
		{"a new patch is no change", "3.7.0", []string{"3.7.3", "3.7.4"}, ""},
		{"never lowered", "3.7.0", []string{"3.6.0", "3.7.0"}, ""},
		{"not to another major version", "3.7.0", []string{"4.0.0"}, ""},
	} {
		var members []*Version
		for _, m := range c.members {
			if m == unknown {
				m = ""
			}
			members = append(members, version(t, m))
		}
		next, change := decideClusterVersion(version(t, c.current), members)
		got := next.String()
		if !change {
			got = ""
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestVersions: the leader asks all members, sets the version of the cluster, and does so
// again in a new term or after the interval, until it cannot rise any more.
func TestVersions(t *testing.T) {
	c := newFakeCluster(1, 2, 3)
	v := NewVersions(VersionsConfig{MemberID: 1, Server: Version{3, 7, 3}, Cluster: c, Peers: c.peers, Logger: zerolog.Nop()})
	now := time.Unix(1000, 0)
	due := func(at time.Duration, want bool) {
		t.Helper()
		if got := v.Due(now.Add(at)); got != want {
			t.Errorf("after %v in term %d: got due %v, want %v", at, c.status.Term, got, want)
		}
	}
	want := func(text string) {
		t.Helper()
		got := ""
		if c.version != nil {
			got = c.version.String()
		}
		if got != text {
			t.Errorf("got version %q of the cluster, want %q", got, text)
		}
	}
	c.status.Role = peerpb.MemberRole_MEMBER_ROLE_FOLLOWER
	due(0, false)
	c.status.Role = peerpb.MemberRole_MEMBER_ROLE_LEADER
	due(0, true)

	c.peers[2].server = "3.6.0"
	c.peers[3].err = ErrUnreachable
	v.Check(context.Background(), now)
	want("3.0.0")
	due(versionInterval-1, false)
	due(versionInterval, true)
	c.status.Term++
	due(0, true)

	c.peers[3].err = nil
	v.Check(context.Background(), now)
	want("3.6.0")
	c.peers[2].server = "broken"
	v.Check(context.Background(), now)
	want("3.6.0")
	c.peers[2].server = "3.8.0"
	c.fail = errors.New("no leader")
	v.Check(context.Background(), now)
	want("3.6.0")
	c.fail = nil
	due(versionInterval, true)
	v.Check(context.Background(), now)
	want("3.7.0")
	due(time.Hour, false)
}
