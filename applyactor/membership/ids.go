// Package membership derives the ids of members and clusters as etcd does: the same flags
// give the same ids, on which tools and scripts may rely.
package membership

import (
	"crypto/sha1"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MemberID derives the id of a member of an initial cluster: the first eight bytes of the
// SHA-1 of its sorted and concatenated peer URLs and the cluster's token. All members
// derive the same ids without communicating.
func MemberID(peerURLs []string, token string) uint64 {
	sorted := slices.Sorted(slices.Values(peerURLs))
	return hash64([]byte(strings.Join(sorted, "") + token))
}

// AddedMemberID derives the id of a member that is added to a cluster: as MemberID, with
// the time in seconds in place of the token, so that a member which returns under its old
// URLs has another id.
func AddedMemberID(peerURLs []string, now time.Time) uint64 {
	return MemberID(peerURLs, strconv.FormatInt(now.Unix(), 10))
}

// ClusterID derives the id of a cluster from the ids of its initial members: the first
// eight bytes of the SHA-1 of the ids in ascending order, each as eight bytes big endian.
func ClusterID(members []uint64) uint64 {
	var b []byte
	for _, id := range slices.Sorted(slices.Values(members)) {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	return hash64(b)
}

// hash64 returns the first eight bytes of the SHA-1 of b. It is not for security: existing
// clusters derive their ids this way.
func hash64(b []byte) uint64 {
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:])
}
