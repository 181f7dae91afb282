package membership

import (
	"slices"
	"testing"
)

// TestKnownIDs holds ids that etcd 3.7.3 logged when started with these flags.
func TestKnownIDs(t *testing.T) {
	for _, tc := range []struct {
		name    string
		token   string
		urls    [][]string // of each initial member
		members []uint64   // 0 when not known
		cluster uint64
	}{
		{"no flags", "etcd-cluster", [][]string{{"http://localhost:2380"}}, []uint64{0x8e9e05c52164694d}, 0xcdf818194e3a8c32},
		{"other port", "etcd-cluster", [][]string{{"http://127.0.0.1:29380"}}, []uint64{0x151aa8a8d37c3e01}, 0xac5aa2af9d61fc5a},
		{"two urls", "etcd-cluster", [][]string{{"http://10.0.0.9:2380", "http://10.0.0.1:2380"}}, []uint64{0xbff329cb47b38117}, 0x1b82e5c877b159d7},
		{"three members", "tok", [][]string{{"http://10.0.0.1:2380"}, {"http://10.0.0.2:2380"}, {"http://10.0.0.3:2380"}},
			[]uint64{0x98521e8c6c48c6da, 0x61b046c1789d11d8, 0}, 0x8e67f3b977698ab3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var ids []uint64
			for i, urls := range tc.urls {
				id := MemberID(urls, tc.token)
				if want := tc.members[i]; want != 0 && id != want {
					t.Errorf("member %d: %x, want %x", i, id, want)
				}
				ids = append(ids, id)
			}
			if got := ClusterID(ids); got != tc.cluster {
				t.Errorf("cluster: %x, want %x", got, tc.cluster)
			}
		})
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	urls := []string{"http://b:1", "http://a:1"}
	before := slices.Clone(urls)
	if MemberID(urls, "t") != MemberID([]string{"http://a:1", "http://b:1"}, "t") || ClusterID([]uint64{1, 2}) != ClusterID([]uint64{2, 1}) {
		t.Error("ids depend on the order")
	}
	if !slices.Equal(urls, before) {
		t.Error("the argument was changed")
	}
}
