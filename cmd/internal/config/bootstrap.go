package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/troupe-db/troupe/applyactor/membership"
)

// Bootstrap is what a member that starts without data knows of its cluster.
type Bootstrap struct {
	ClusterID, MemberID uint64
	Members             []InitialMember // sorted by id, this one included
}

// InitialMember is a member of a new cluster.
type InitialMember struct {
	ID       uint64
	Name     string
	PeerURLs []string // sorted
}

// Bootstrap derives the ids and the members of the initial cluster. It concerns
// members without data only: on a restart these flags are ignored, and need not
// make sense any more.
func (c *Config) Bootstrap() (*Bootstrap, error) {
	urls, err := parseCluster(c.InitialCluster)
	if err != nil {
		return nil, err
	}
	if err := c.checkCluster(urls); err != nil {
		return nil, err
	}
	b := &Bootstrap{}
	ids := make([]uint64, 0, len(urls))
	for name, u := range urls {
		m := InitialMember{ID: membership.MemberID(u, c.InitialClusterToken), Name: name, PeerURLs: u}
		if name == c.Name {
			b.MemberID = m.ID
		}
		b.Members = append(b.Members, m)
		ids = append(ids, m.ID)
	}
	slices.SortFunc(b.Members, func(x, y InitialMember) int {
		if x.ID < y.ID {
			return -1
		}
		return 1
	})
	b.ClusterID = membership.ClusterID(ids)
	return b, nil
}

// parseCluster reads name=url,name=url, where a name may stand several times.
func parseCluster(s string) (map[string][]string, error) {
	lists := map[string][]string{}
	for pair := range strings.SplitSeq(s, ",") {
		if pair == "" {
			continue
		}
		name, u, _ := strings.Cut(pair, "=")
		lists[name] = append(lists[name], u)
	}
	for name, list := range lists {
		urls, err := parseURLs(list)
		if err != nil {
			return nil, fmt.Errorf("--initial-cluster: %w", err)
		}
		lists[name] = urlStrings(urls)
	}
	return lists, nil
}

func (c *Config) checkCluster(urls map[string][]string) error {
	mine, ok := urls[c.Name]
	if !ok {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.Name)
	}
	advertised := urlStrings(c.AdvertisePeerURLs)
	if missing := difference(mine, advertised); len(missing) > 0 {
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s",
			pairs(c.Name, missing), strings.Join(advertised, ","))
	}
	if missing := difference(advertised, mine); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s",
			strings.Join(missing, ","), pairs(c.Name, mine))
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(urls)) {
		for _, u := range urls[name] {
			if seen[u] {
				return fmt.Errorf("initial cluster %s has duplicate url", c.InitialCluster)
			}
			seen[u] = true
		}
	}
	return nil
}

func difference(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func pairs(name string, urls []string) string {
	list := make([]string, len(urls))
	for i, u := range urls {
		list[i] = name + "=" + u
	}
	return strings.Join(list, ",")
}
