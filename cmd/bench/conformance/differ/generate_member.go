package differ

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// membershipPerMille is how many of a thousand plans change the members.
const membershipPerMille = 12

// newURLs bounds the distinct peer URLs of members that never start. They have ports below
// 1024, on which nothing listens.
const newURLs = 1000

// newURL returns a peer URL that was not used before. The id of an added member is derived
// from its URLs and the current second, so that the same URL may have the same id again.
func (g *Generator) newURL() string {
	g.world.urls = g.world.urls%newURLs + 1
	return fmt.Sprint("http://127.0.0.1:", g.world.urls)
}

// badURLs are refused as peer URLs.
var badURLs = [][]string{nil, {""}, {"127.0.0.1:1"}, {"http://127.0.0.1"}, {"ftp://127.0.0.1:1"}, {"http://127.0.0.1:1/path"}, {"http://127.0.0.1:1", "http://"}}

// membership adds a member that never starts, makes other changes in random order, most of
// which are refused, and removes the member again. So no restart happens while the member
// counts for the quorum. An update to bad URLs is left out: etcd 3.7.3 replicates it
// without a check, and then every member panics.
func (g *Generator) membership() []Call {
	call := func(m Method, r proto.Message) Call { return Call{Method: m, Request: r} }
	add := func(learner bool, urls ...string) Call {
		return call(MemberAdd, &pb.MemberAddRequest{PeerURLs: urls, IsLearner: learner})
	}
	update := func(id uint64, urls ...string) Call {
		return call(MemberUpdate, &pb.MemberUpdateRequest{ID: id, PeerURLs: urls})
	}
	promote := func(id uint64) Call { return call(MemberPromote, &pb.MemberPromoteRequest{ID: id}) }
	remove := func(id uint64) Call { return call(MemberRemove, &pb.MemberRemoveRequest{ID: id}) }
	list := call(MemberList, &pb.MemberListRequest{Linearizable: true})

	first, second, third, fourth := g.newURL(), g.newURL(), g.newURL(), g.newURL()
	added := addedPlaceholder + uint64(g.world.added)
	own := g.rng.IntN(g.members)
	learner := g.chance(60)
	middle := []Call{
		add(true, first, third),
		add(false, ownURL(own)),
		add(g.chance(50), badURLs[g.rng.IntN(len(badURLs))]...),
		promote(added),
		promote(placeholder + uint64(own)),
		promote(strangerMember),
		update(added, first, second),
		update(added, ownURL(own)),
		update(strangerMember, third),
		update(placeholder+uint64(own), ownURL(own)),
		remove(strangerMember),
		list,
		call(MemberList, &pb.MemberListRequest{}),
		call(Status, &pb.StatusRequest{}),
		call(Put, g.putRequest()),
	}
	if learner {
		middle = append(middle, add(true, fourth)) // one learner is the limit
	}
	g.rng.Shuffle(len(middle), func(i, j int) { middle[i], middle[j] = middle[j], middle[i] })
	middle = middle[:len(middle)/2+g.rng.IntN(len(middle)/2)]
	return slices.Concat(
		[]Call{add(learner, first), list}, middle,
		[]Call{remove(added), remove(added), promote(added), update(added, first), list})
}

// wantedOfClusters lists what a long run with several members must exercise besides Wanted.
func wantedOfClusters() []string {
	list := []string{"call MemberAdd", "call MemberRemove", "call MemberUpdate", "call MemberPromote", "option MemberAdd: learner"}
	const refused, missing = "FailedPrecondition etcdserver: ", "NotFound etcdserver: member not found"
	return append(list,
		"error MemberAdd: "+refused+"Peer URLs already exists",
		"error MemberAdd: "+refused+"too many learner members in cluster",
		"error MemberAdd: InvalidArgument etcdserver: given member URLs are invalid",
		"error MemberPromote: "+refused+"can only promote a learner member which is in sync with leader",
		"error MemberPromote: "+refused+"can only promote a learner member",
		"error MemberPromote: "+missing,
		"error MemberUpdate: "+refused+"Peer URLs already exists",
		"error MemberUpdate: "+missing,
		"error MemberRemove: "+missing)
}
