package grpcgw

import (
	"context"
	"strconv"
	"time"
)

// leaseList lists the leases that expire first.
type leaseList struct {
	Total int         `json:"total"`
	First []leaseShow `json:"first"`
}

// leaseShow is one lease.
type leaseShow struct {
	ID         string  `json:"id"` // hexadecimal, as in etcdctl
	TTL        int64   `json:"ttl_s"`
	Left       float64 `json:"left_s"`
	Checkpoint int64   `json:"checkpoint_s,omitempty"` // remaining TTL at the last checkpoint
	Keys       int     `json:"keys"`
}

// leasesShown bounds the leases in the list.
const leasesShown = 50

// showLeases lists the leases that expire first; nil if there are none.
func showLeases(ctx context.Context, member Member) *leaseList {
	view := member.Keyspace().View()
	if view == nil || view.Sizes.Leases == 0 {
		return nil
	}
	times, _, _ := member.Leases().List(ctx)
	all := leasesByEnd(view, times)
	list := &leaseList{Total: len(all)}
	for _, l := range all[:min(len(all), leasesShown)] {
		list.First = append(list.First, leaseShow{
			ID: hexID(uint64(l.ID)), TTL: l.TTL, Left: l.left.Round(100 * time.Millisecond).Seconds(),
			Checkpoint: l.Remaining, Keys: view.CountLeaseKeys(l.ID),
		})
	}
	return list
}

func hexID(id uint64) string { return strconv.FormatUint(id, 16) }
