package grpcgw

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// The version of the cluster is the lowest of its members' versions, major and minor alone;
// the leader sets it. Until then, a lone member counts its own.

// ClusterVersion returns the version of the cluster, such as 3.7.0; empty if it has several
// members and their leader has not set it.
func ClusterVersion(c *mvccmsg.Cluster) string {
	if set := c.GetVersion(); set != nil {
		return fmt.Sprintf("%d.%d.0", set.Major, set.Minor)
	}
	if len(c.GetMembers()) > 1 {
		return ""
	}
	return version.Cluster(version.Version) + ".0"
}

// storageVersion returns what etcd reports as the version of its storage: the version of the
// cluster, or 3.5.0 if that is below 3.6, when storage has none. The format of the store does
// not depend on it.
func storageVersion(c *mvccmsg.Cluster) string {
	set, v := c.GetVersion(), ClusterVersion(c)
	if v == "" || set != nil && set.Major <= 3 && set.Minor <= 5 {
		return version.V3_5.String()
	}
	return v
}
