package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// errSeveral is returned because there is no transport between members.
var errSeveral = errors.New("--initial-cluster names several members: only clusters of one member can be started")

// errJoin begins like etcd's error, which comes from asking the existing members.
var errJoin = errors.New("cannot fetch cluster info from peer urls")

// Bootstrap derives the ids and the members of the initial cluster and stores them
// in Node. The flags that it reads are for a member without data. If exists is set,
// the member has data, and the flags are ignored if they are invalid.
//
// If a member of an existing cluster has no data, Bootstrap returns an error. The
// data may be on a disk that is not mounted; creating a new cluster in its place
// would show clients an empty store.
func (c *Config) Bootstrap(exists bool) error {
	if !exists && c.InitialClusterState == StateExisting {
		return fmt.Errorf("%w: --initial-cluster-state is %q, there is no data of a member in %s, and joining a cluster is not implemented",
			errJoin, StateExisting, c.Node.DataDir)
	}
	urls, err := parseCluster(c.InitialCluster)
	if err == nil {
		err = c.checkCluster(urls)
	}
	switch {
	case err != nil && exists:
		return nil
	case err != nil:
		return err
	case len(urls) > 1:
		return errSeveral
	}
	n := &c.Node
	var ids []uint64
	for name, u := range urls {
		m := &applymsg.Member{Id: membership.MemberID(u, c.InitialClusterToken), Name: name, PeerUrls: u}
		if name == n.Name {
			n.MemberID = m.Id
		}
		n.Members = append(n.Members, m)
		ids = append(ids, m.Id)
	}
	n.ClusterID = membership.ClusterID(ids)
	return nil
}

// parseCluster reads name=url,name=url, where a name may occur several times.
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
	mine, ok := urls[c.Node.Name]
	if !ok {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.Node.Name)
	}
	advertised := urlStrings(c.AdvertisePeerURLs)
	if missing := difference(mine, advertised); len(missing) > 0 {
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s",
			pairs(c.Node.Name, missing), strings.Join(advertised, ","))
	}
	if missing := difference(advertised, mine); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s",
			strings.Join(missing, ","), pairs(c.Node.Name, mine))
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
