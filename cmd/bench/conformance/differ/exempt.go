package differ

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// identity has the ids and URLs of a side, which it reports when it starts.
type identity struct {
	cluster   uint64
	member    uint64
	term      uint64
	peerURL   string
	clientURL string
	all       *roster // nil for a single member
}

// roster is all members of a side.
type roster struct {
	members []identity
	added   []uint64 // ids of the members that the sequence has added, in order
}

// placeholder replaces values that may differ between the sides in compared messages.
// In the requests of a sequence it stands for the id of the side's own member.
const placeholder = 0x5e1f

// Of several members, the i-th has placeholder+i, and its peer URL ownURL(i). The k-th
// member that the sequence has added has addedPlaceholder+k.
const addedPlaceholder = placeholder + 0x100

// ownURL stands for the peer URL of the i-th member in requests.
func ownURL(i int) string { return fmt.Sprint("own", i) }

// mask returns the placeholder of a member's id; other ids remain.
func (id identity) mask(member uint64) uint64 {
	if id.all == nil {
		if member == id.member {
			return placeholder
		}
		return member
	}
	for i, m := range id.all.members {
		if m.member == member {
			return placeholder + uint64(i)
		}
	}
	if k := slices.Index(id.all.added, member); k >= 0 {
		return addedPlaceholder + uint64(k)
	}
	return member
}

// real returns the id that a placeholder stands for; other ids remain.
func (id identity) real(symbol uint64) uint64 {
	switch {
	case symbol == placeholder && id.all == nil:
		return id.member
	case id.all == nil:
	case symbol >= placeholder && symbol < placeholder+uint64(len(id.all.members)):
		return id.all.members[symbol-placeholder].member
	case symbol >= addedPlaceholder && symbol < addedPlaceholder+uint64(len(id.all.added)):
		return id.all.added[symbol-addedPlaceholder]
	}
	return symbol
}

// realURLs replaces the placeholders of URLs.
func (id identity) realURLs(urls []string) {
	for i, u := range urls {
		if id.all == nil {
			if u == ownURL(0) {
				urls[i] = id.peerURL
			}
			continue
		}
		for j, m := range id.all.members {
			if u == ownURL(j) {
				urls[i] = m.peerURL
			}
		}
	}
}

// maskTerm replaces a term. That of a cluster grows at any time.
func (id identity) maskTerm(term *uint64) {
	if *term == id.term || id.all != nil && *term > id.term {
		*term = placeholder
	}
}

// Exemption is a field that is not compared as it is.
type Exemption struct {
	Field  string
	Reason string
	// Check is the condition that the field must satisfy instead.
	Check string
	apply func(identity, proto.Message)
}

// Exemptions lists all exempt fields. A value that fails its check is not replaced, and
// so makes a difference.
var Exemptions = []Exemption{
	{"header.cluster_id", "derived from the peer URLs, which differ because both sides run at once",
		"constant while the data folder lives", exemptHeader(func(id identity, h *pb.ResponseHeader) { mask(&h.ClusterId, id.cluster) })},
	{"header.member_id", "derived from the peer URLs",
		"constant while the data folder lives", exemptHeader(func(id identity, h *pb.ResponseHeader) { mask(&h.MemberId, id.member) })},
	{"header.raft_term", "the number of elections in a restart depends on timing",
		"constant between restarts; does not fall if there are several members", exemptHeader(func(id identity, h *pb.ResponseHeader) { id.maskTerm(&h.RaftTerm) })},
	{"AlarmResponse.alarms", "memberID as above; etcd lists several alarms in random order",
		"the member's own id; the same set", exemptAlarms},
	{"members in the replies of the Cluster service", "ID as above, so that the order is random, too; URLs hold the ports",
		"the members' own ids and URLs, and those that the sequence added", exemptMembers},
	{"HashResponse.hash", "covers the backend's own layout and its private records",
		"none", exemptHash},
	{"StatusResponse.leader, raftTerm", "as the header's fields",
		"the id of a member, and the own term", exemptStatusIdentity},
	{"StatusResponse.raftIndex, raftAppliedIndex", "count the consensus log's own entries too",
		"positive, and applied is not above committed", exemptStatusIndex},
	{"StatusResponse.dbSize, dbSizeInUse", "properties of the storage engine",
		"positive", exemptStatusSize},
	{"StatusResponse.storageVersion", "etcd reports nothing or 3.5.0 until a periodic background task sets it",
		"empty, 3.5.0 or 3.7.0", exemptStatusStorage},
	{"StatusResponse.errors", "holds alarms: member id and order as above; protobuf varies the blanks in a message's text by binary",
		"the same set of words", exemptStatusErrors},
	{"LeaseGrantResponse.ID, LeaseLeasesResponse.leases", "ids of the server's choice are random; leases that may expire at the same moment have no order",
		"large ids; the same order of all others", exemptLeaseIDs},
	{"LeaseTimeToLiveResponse.TTL, keys", "the remaining time depends on timing, and a restart resets it; etcd lists keys in random order",
		"positive, not above the granted time, and less than an hour below it; the same set", exemptTimeToLive},
	{"AuthenticateResponse.token", "a simple one is random; a signed one has the time at which it expires",
		"the form of a simple token; the same method, user and revision in a signed one, and the time", exemptToken},
	{"AuthRoleGetResponse.perm", "etcd sorts more than 12 permissions by key with an unstable algorithm, whose order may change with the version of Go",
		"above 12, the same set", exemptPermissions},
	{"WatchResponse", "the grouping of events into responses, and the times of progress notifications, depend on timing",
		"for each watcher the same events in the same order, and the same end; each response whole revisions, unless it is a fragment, and none above its header", func(identity, proto.Message) {}},
}

// normalise returns the reply with exempt values replaced.
func normalise(id identity, r Reply) Reply {
	if r.Message == nil {
		return r
	}
	r.Message = proto.Clone(r.Message)
	for _, e := range Exemptions {
		e.apply(id, r.Message)
	}
	return r
}

// same reports whether two normalised replies agree.
func same(a, b Reply) bool {
	return a.Code == b.Code && a.Error == b.Error && a.Irregular == b.Irregular && proto.Equal(a.Message, b.Message) &&
		slices.EqualFunc(a.Messages, b.Messages, proto.Equal)
}

// mask replaces the value if it is the side's own.
func mask(field *uint64, own uint64) {
	if *field == own {
		*field = placeholder
	}
}

func exemptHeader(apply func(identity, *pb.ResponseHeader)) func(identity, proto.Message) {
	return func(id identity, m proto.Message) {
		if h := headerOf(m); h != nil {
			apply(id, h)
		}
	}
}

// headerOf returns the header of the reply; nil if it has none. Headers of the replies
// inside a Txn have only a revision and are compared as they are.
func headerOf(m proto.Message) *pb.ResponseHeader {
	if m, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		return m.GetHeader()
	}
	return nil
}

func exemptAlarms(id identity, m proto.Message) {
	r, ok := m.(*pb.AlarmResponse)
	if !ok {
		return
	}
	for _, a := range r.Alarms {
		a.MemberID = id.mask(a.MemberID)
	}
	slices.SortFunc(r.Alarms, func(a, b *pb.AlarmMember) int {
		return cmp.Or(cmp.Compare(a.MemberID, b.MemberID), cmp.Compare(a.Alarm, b.Alarm))
	})
}

func exemptMembers(id identity, m proto.Message) {
	r, ok := m.(interface{ GetMembers() []*pb.Member })
	if !ok {
		return
	}
	if added, ok := m.(*pb.MemberAddResponse); ok {
		exemptMember(id, added.Member)
	}
	for _, member := range r.GetMembers() {
		exemptMember(id, member)
	}
	slices.SortFunc(r.GetMembers(), func(a, b *pb.Member) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.PeerURLs, b.PeerURLs))
	})
}

func exemptMember(id identity, member *pb.Member) {
	if member == nil {
		return
	}
	member.ID = id.mask(member.ID)
	if id.all == nil {
		maskURL(member.PeerURLs, id.peerURL, "own")
		maskURL(member.ClientURLs, id.clientURL, "own")
		return
	}
	for i, m := range id.all.members {
		maskURL(member.PeerURLs, m.peerURL, ownURL(i))
		maskURL(member.ClientURLs, m.clientURL, ownURL(i))
	}
}

func maskURL(urls []string, own, symbol string) {
	for i, u := range urls {
		if u == own {
			urls[i] = symbol
		}
	}
}

func exemptHash(_ identity, m proto.Message) {
	if r, ok := m.(*pb.HashResponse); ok {
		r.Hash = placeholder
	}
}

func exemptStatusIdentity(id identity, m proto.Message) {
	if r, ok := m.(*pb.StatusResponse); ok {
		if id.mask(r.Leader) != r.Leader {
			r.Leader = placeholder // any of the members
		}
		id.maskTerm(&r.RaftTerm)
	}
}

func exemptStatusIndex(_ identity, m proto.Message) {
	r, ok := m.(*pb.StatusResponse)
	if ok && r.RaftAppliedIndex > 0 && r.RaftAppliedIndex <= r.RaftIndex {
		r.RaftIndex, r.RaftAppliedIndex = placeholder, placeholder
	}
}

func exemptStatusSize(_ identity, m proto.Message) {
	r, ok := m.(*pb.StatusResponse)
	if ok && r.DbSize > 0 && r.DbSizeInUse > 0 {
		r.DbSize, r.DbSizeInUse = placeholder, placeholder
	}
}

func exemptStatusStorage(_ identity, m proto.Message) {
	r, ok := m.(*pb.StatusResponse)
	if !ok {
		return
	}
	switch r.StorageVersion {
	case "", "3.5.0", "3.7.0":
		r.StorageVersion = "any"
	}
}

func exemptStatusErrors(id identity, m proto.Message) {
	r, ok := m.(*pb.StatusResponse)
	if !ok {
		return
	}
	for i, text := range r.Errors {
		words := strings.Fields(text)
		for j, word := range words {
			for _, own := range id.everyone() {
				if word == memberWord(own) {
					words[j] = memberWord(id.mask(own))
				}
			}
		}
		r.Errors[i] = strings.Join(words, " ")
	}
	slices.Sort(r.Errors)
}

// everyone lists the ids of the side's members.
func (id identity) everyone() []uint64 {
	if id.all == nil {
		return []uint64{id.member}
	}
	var list []uint64
	for _, m := range id.all.members {
		list = append(list, m.member)
	}
	return list
}

// memberWord returns the part of an alarm's text that names the member.
func memberWord(id uint64) string {
	text := (&pb.AlarmMember{MemberID: id}).String()
	return strings.TrimSpace(text)
}
