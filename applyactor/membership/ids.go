// Package membership derives the ids of members and clusters, by the rule that
// etcd uses: the same flags give the same ids, so that tools and scripts which
// know one know the other.
package membership

import (
	"crypto/sha1"
	"encoding/binary"
	"slices"
	"strings"
)

// MemberID derives the id of a member that stands in an initial cluster. It is
// the start of the SHA-1 of the peer URLs, sorted and joined, and the cluster's
// token: all members come to the same ids without talking to each other.
func MemberID(peerURLs []string, token string) uint64 {
	sorted := slices.Sorted(slices.Values(peerURLs))
	return hash64([]byte(strings.Join(sorted, "") + token))
}

// ClusterID derives the id of a cluster from those of its initial members: the
// start of the SHA-1 of the ids in rising order, eight bytes each, big endian.
func ClusterID(members []uint64) uint64 {
	var b []byte
	for _, id := range slices.Sorted(slices.Values(members)) {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	return hash64(b)
}

// hash64 is no protection against anyone; SHA-1 is simply what the ids of
// existing clusters are made with.
func hash64(b []byte) uint64 {
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:])
}
