package apply

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/applymsg"
)

// FindAlarm returns the index of a member's active alarm of a type, -1 if there is none.
// A member has one alarm of a type at most.
func FindAlarm(active []*applymsg.Alarm, member uint64, of pb.AlarmType) int {
	return slices.IndexFunc(active, func(a *applymsg.Alarm) bool { return a.MemberId == member && a.Type == of })
}

// HasAlarm reports whether any member has an active alarm of a type that concerns the whole
// cluster: a member's alarm for damage to its own store does not.
func HasAlarm(active []*applymsg.Alarm, of pb.AlarmType) bool {
	return slices.ContainsFunc(active, func(a *applymsg.Alarm) bool { return a.Type == of && !a.Damage })
}
