package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// A member without data gets its ids and its cluster's members in one of two ways:
//
//	new       the ids are derived from --initial-cluster, alike on all members. No peer may
//	          know this member as one that has started: then its data was lost, and under
//	          the same id it could break promises that it gave.
//	existing  the ids are those of the cluster, which a peer reports (join.go). The URLs of
//	          --initial-cluster must be those of the members.
//
// A member with data takes both from its data.

// matchTimeout bounds how long it takes to compare URLs that differ, by resolving their host
// names, as in etcd.
const matchTimeout = 30 * time.Second

// Bootstrap sets the ids and the members of the cluster in Node. The flags that it reads are
// for a member without data. If exists is set, the member has data: the flags are ignored if
// they are invalid, and no peer is asked.
func (c *Config) Bootstrap(ctx context.Context, exists bool, net Network) error {
	urls, err := parseCluster(c.InitialCluster)
	if err == nil {
		err = c.checkCluster(ctx, urls, exists, net)
	}
	if err != nil {
		if exists {
			return nil
		}
		return err
	}
	if c.InitialClusterState == StateExisting && exists {
		c.Node.Join = true // a member whose first start was cut short must not create a cluster now
		return nil
	}
	if err := c.deriveIDs(urls); err != nil || exists {
		return err
	}
	if c.InitialClusterState == StateExisting {
		return c.join(ctx, net)
	}
	return c.checkNotStarted(ctx, net)
}

// deriveIDs derives the ids of a new cluster.
func (c *Config) deriveIDs(urls map[string][]string) error {
	n := &c.Node
	n.MemberID, n.Members = 0, nil
	var ids []uint64
	for _, name := range slices.Sorted(maps.Keys(urls)) {
		m := &applymsg.Member{Id: membership.MemberID(urls[name], c.InitialClusterToken), Name: name, PeerUrls: urls[name]}
		if m.Id == 0 || slices.Contains(ids, m.Id) {
			return fmt.Errorf("member exists with identical ID %x", m.Id)
		}
		if name == n.Name {
			n.MemberID = m.Id
		}
		n.Members = append(n.Members, m)
		ids = append(ids, m.Id)
	}
	slices.SortFunc(n.Members, func(a, b *applymsg.Member) int { return cmp.Compare(a.Id, b.Id) })
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
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		urls, err := membership.ParseURLs(lists[name])
		if err != nil {
			return nil, fmt.Errorf("--initial-cluster: %w", err)
		}
		lists[name] = membership.URLStrings(urls)
	}
	return lists, nil
}

// checkCluster makes etcd's checks of --initial-cluster. A member that joins has announced its
// URLs before, so they need not be those that it advertises.
func (c *Config) checkCluster(ctx context.Context, urls map[string][]string, exists bool, net Network) error {
	mine, ok := urls[c.Node.Name]
	if !ok {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.Node.Name)
	}
	if c.InitialClusterState == StateNew {
		if exists { // the ids of these flags are not used if they are invalid
			net = noNetwork
		}
		if err := c.checkAdvertised(ctx, mine, net); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, list := range urls {
		for _, u := range list {
			if seen[u] {
				return fmt.Errorf("initial cluster %s has duplicate url", formatCluster(urls))
			}
			seen[u] = true
		}
	}
	return nil
}

// checkAdvertised checks that the URLs of this member in --initial-cluster are those that it
// advertises.
func (c *Config) checkAdvertised(ctx context.Context, mine []string, net Network) error {
	advertised := membership.URLStrings(c.AdvertisePeerURLs)
	ctx, cancel := context.WithTimeout(ctx, matchTimeout)
	defer cancel()
	err := net.sameURLs(ctx, advertised, mine)
	if err == nil {
		return nil
	}
	if missing := difference(mine, advertised); len(missing) > 0 {
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s (%w)",
			pairs(c.Node.Name, missing), strings.Join(advertised, ","), err)
	}
	if missing := difference(advertised, mine); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s",
			strings.Join(missing, ","), pairs(c.Node.Name, mine))
	}
	return fmt.Errorf("failed to resolve %s to match --initial-cluster=%s (%w)",
		strings.Join(advertised, ","), pairs(c.Node.Name, mine), err)
}

// checkNotStarted asks the other members of a new cluster whether this one has started before.
// Peers that do not answer in time are skipped: usually none runs yet.
func (c *Config) checkNotStarted(ctx context.Context, net Network) error {
	known, err := net.fetchMembers(ctx, c.otherURLs(), startedTimeout)
	if err != nil {
		return nil
	}
	for _, m := range known.members {
		if m.ID == c.Node.MemberID && len(m.ClientURLs) > 0 {
			return fmt.Errorf("member %x has already been bootstrapped", m.ID)
		}
	}
	return nil
}

// join gets the ids from the members of an existing cluster, and checks that they are those of
// --initial-cluster.
func (c *Config) join(ctx context.Context, net Network) error {
	n := &c.Node
	existing, err := net.fetchMembers(ctx, c.otherURLs(), fetchTimeout)
	if err != nil {
		return fmt.Errorf("cannot fetch cluster info from peer urls: %w", err)
	}
	matched, err := net.match(ctx, n.Members, existing.members)
	if err != nil {
		return fmt.Errorf("error validating peerURLs %s: %w", existing, err)
	}
	n.ClusterID, n.Members, n.Join = existing.id, nil, true
	learners := 0
	for i, m := range existing.members {
		if m.IsLearner {
			learners++
		}
		if matched[i].Name == n.Name {
			n.MemberID = m.ID
		}
		n.Members = append(n.Members, &applymsg.Member{Id: m.ID, Name: m.Name, PeerUrls: m.PeerURLs,
			ClientUrls: m.ClientURLs, IsLearner: m.IsLearner})
	}
	if !net.compatible(ctx, existing.members, n.MemberID) {
		return errors.New("incompatible with current running cluster")
	}
	if learners > n.MaxLearners {
		return errors.New("membership: too many learner members in cluster")
	}
	return nil
}

// otherURLs returns the peer URLs of the other members of --initial-cluster, in order.
func (c *Config) otherURLs() (urls []string) {
	for _, m := range c.Node.Members {
		if m.Name != c.Node.Name {
			urls = append(urls, m.PeerUrls...)
		}
	}
	slices.Sort(urls)
	return urls
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

// formatCluster formats the members of --initial-cluster in order.
func formatCluster(urls map[string][]string) string {
	var list []string
	for name, u := range urls {
		list = append(list, strings.Split(pairs(name, u), ",")...)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}
