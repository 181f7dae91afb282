package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// Timeouts of etcd for the requests of a member that has no data to its peers.
const (
	fetchTimeout   = 10 * time.Second // of a member that joins, for each URL
	startedTimeout = time.Second      // of a member of a new cluster, for each URL
	versionTimeout = 7 * time.Second  // for each URL
	// resolveRetry is the interval at which a host name is resolved again after an error.
	resolveRetry = time.Second
)

// Network is how a member that has no data reaches its peers.
type Network struct {
	// Client sends HTTP requests to peers. It must not follow redirects.
	Client *http.Client
	// Resolve returns the address of host:port as IP:port.
	Resolve func(ctx context.Context, hostport string) (string, error)
	// Failed, if set, is called when a peer does not answer, with its URL and the reason.
	Failed func(url string, err error)
}

// NewNetwork returns the network of the process. transport sends requests to the URLs of peers.
func NewNetwork(transport http.RoundTripper) Network {
	return Network{
		Client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		Resolve: func(ctx context.Context, hostport string) (string, error) {
			host, port, err := net.SplitHostPort(hostport)
			if err != nil {
				return "", err
			}
			number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
			if err != nil {
				return "", err
			}
			addresses, err := net.DefaultResolver.LookupIPAddr(ctx, host)
			if err != nil {
				return "", err
			}
			return net.JoinHostPort(addresses[0].String(), strconv.Itoa(number)), nil
		},
	}
}

var errNoNetwork = errors.New("config: there is no network")

// noNetwork resolves no name, and does not try again.
var noNetwork = Network{}

// existingCluster is a cluster as one of its members reports it.
type existingCluster struct {
	id      uint64
	members []grpcgw.PeerMember
}

// String formats the cluster as in etcd's errors.
func (e *existingCluster) String() string {
	var list []string
	for _, m := range e.members {
		list = append(list, fmt.Sprintf("&{ID:%x RaftAttributes:{PeerURLs:%v IsLearner:%t} Attributes:{Name:%s ClientURLs:%v}}",
			m.ID, m.PeerURLs, m.IsLearner, m.Name, m.ClientURLs))
	}
	return fmt.Sprintf("{ClusterID:%x Members:[%s] RemovedMemberIDs:[]}", e.id, strings.Join(list, " "))
}

// fetchMembers asks the peer URLs for the members of their cluster, one after the other. The
// first one that answers counts. timeout bounds each request.
func (n Network) fetchMembers(ctx context.Context, urls []string, timeout time.Duration) (*existingCluster, error) {
	for _, u := range urls {
		body, header, err := n.get(ctx, u+"/members", timeout)
		if err != nil {
			if n.Failed != nil {
				n.Failed(u, err)
			}
			continue
		}
		e := new(existingCluster)
		if json.Unmarshal(body, &e.members) != nil {
			continue
		}
		if e.id, err = strconv.ParseUint(header.Get(grpcgw.HeaderClusterID), 16, 64); err != nil {
			continue
		}
		if len(e.members) == 0 {
			return nil, errors.New("failed to get raft cluster member(s) from the given URLs")
		}
		slices.SortFunc(e.members, func(a, b grpcgw.PeerMember) int {
			if a.ID < b.ID {
				return -1
			}
			return 1
		})
		return e, nil
	}
	return nil, errors.New("could not retrieve cluster information from the given URLs")
}

func (n Network) get(ctx context.Context, url string, timeout time.Duration) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := n.Client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, grpcgw.PeerAnswerBytesMax))
	return body, resp.Header, err
}

// match finds the member of --initial-cluster for each existing member, by their peer URLs.
func (n Network) match(ctx context.Context, local []*applymsg.Member, existing []grpcgw.PeerMember) ([]*applymsg.Member, error) {
	if len(local) != len(existing) {
		return nil, errors.New("member count is unequal")
	}
	ctx, cancel := context.WithTimeout(ctx, matchTimeout)
	defer cancel()
	matched := make([]*applymsg.Member, len(existing))
	for i, m := range existing {
		var last error
		for _, l := range local {
			if last = n.sameURLs(ctx, m.PeerURLs, l.PeerUrls); last == nil {
				matched[i] = l
				break
			}
		}
		if matched[i] == nil {
			return nil, fmt.Errorf("PeerURLs: no match found for existing member (%x, %v), last resolver error (%w)", m.ID, m.PeerURLs, last)
		}
	}
	return matched, nil
}

// sameURLs returns nil if two lists have the same URLs in any order, perhaps after their host
// names are resolved. A name that cannot be resolved is tried again until ctx ends.
func (n Network) sameURLs(ctx context.Context, a, b []string) error {
	if len(a) != len(b) {
		return fmt.Errorf("len(%q) != len(%q)", a, b)
	}
	if slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))) {
		return nil
	}
	a, err := n.resolveURLs(ctx, a)
	if err != nil {
		return err
	}
	if b, err = n.resolveURLs(ctx, b); err != nil {
		return err
	}
	for i := range a {
		if a[i] != b[i] {
			return fmt.Errorf("resolved urls: %q != %q", a[i], b[i])
		}
	}
	return nil
}

// resolveURLs resolves the host names of URLs and sorts them. As in etcd, localhost stays.
func (n Network) resolveURLs(ctx context.Context, list []string) ([]string, error) {
	urls, err := membership.ParseURLs(list)
	if err != nil {
		return nil, err
	}
	for i := range urls {
		if urls[i].Hostname() == "localhost" || !strings.HasPrefix(urls[i].Scheme, "http") {
			continue
		}
		if urls[i].Host, err = n.resolve(ctx, urls[i]); err != nil {
			return nil, fmt.Errorf("failed to resolve %q (%w)", list[i], err)
		}
	}
	return slices.Sorted(slices.Values(membership.URLStrings(urls))), nil
}

func (n Network) resolve(ctx context.Context, u url.URL) (string, error) {
	if n.Resolve == nil {
		return "", errNoNetwork
	}
	for {
		address, err := n.Resolve(ctx, u.Host)
		if err == nil {
			return address, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(resolveRetry):
		}
	}
}

// compatible reports whether a member of this version can join: at least one other member
// reports a version of the cluster, and each that does reports one that this member supports.
func (n Network) compatible(ctx context.Context, members []grpcgw.PeerMember, self uint64) bool {
	var lowest, highest apiVersion
	if !lowest.parse(version.MinClusterVersion) || !highest.parse(version.Version) {
		panic("config: the version of the API cannot be parsed")
	}
	found := false
	for _, m := range members {
		if m.ID == self {
			continue
		}
		v, ok := n.clusterVersion(ctx, m.PeerURLs)
		if !ok {
			continue
		}
		if v.less(lowest) || highest.less(v) {
			return false
		}
		found = true
	}
	return found
}

// clusterVersion asks a member for the version of its cluster.
func (n Network) clusterVersion(ctx context.Context, urls []string) (v apiVersion, ok bool) {
	for _, u := range urls {
		body, _, err := n.get(ctx, u+"/version", versionTimeout)
		var versions version.Versions
		if err == nil && json.Unmarshal(body, &versions) == nil {
			return v, v.parse(versions.Cluster)
		}
	}
	return v, false
}

// apiVersion is a version without its patch level.
type apiVersion struct{ major, minor int }

func (v *apiVersion) parse(text string) bool {
	n, err := fmt.Sscanf(text, "%d.%d", &v.major, &v.minor)
	return n == 2 && err == nil
}

func (v apiVersion) less(o apiVersion) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}
