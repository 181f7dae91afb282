package grpcgw

import (
	"testing"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// TestVersions: a lone member counts its own version until the version of the cluster is set.
// The version of the storage follows, but exists from 3.6 on.
func TestVersions(t *testing.T) {
	alone := []*applymsg.Member{{Id: 1}}
	several := []*applymsg.Member{{Id: 1}, {Id: 2}}
	for _, c := range []struct {
		cluster          *mvccmsg.Cluster
		version, storage string
	}{
		{nil, "3.7.0", "3.7.0"},
		{&mvccmsg.Cluster{Members: alone}, "3.7.0", "3.7.0"},
		{&mvccmsg.Cluster{Members: several}, "", "3.5.0"},
		{&mvccmsg.Cluster{Members: several, Version: &applymsg.Version{Major: 3}}, "3.0.0", "3.5.0"},
		{&mvccmsg.Cluster{Members: several, Version: &applymsg.Version{Major: 3, Minor: 5}}, "3.5.0", "3.5.0"},
		{&mvccmsg.Cluster{Members: alone, Version: &applymsg.Version{Major: 3, Minor: 6}}, "3.6.0", "3.6.0"},
		{&mvccmsg.Cluster{Members: several, Version: &applymsg.Version{Major: 3, Minor: 7}}, "3.7.0", "3.7.0"},
		{&mvccmsg.Cluster{Members: several, Version: &applymsg.Version{Major: 4}}, "4.0.0", "4.0.0"},
	} {
		if got := ClusterVersion(c.cluster); got != c.version {
			t.Errorf("%v: got version %q, want %q", c.cluster, got, c.version)
		}
		if got := storageVersion(c.cluster); got != c.storage {
			t.Errorf("%v: got storage version %q, want %q", c.cluster, got, c.storage)
		}
	}
}
