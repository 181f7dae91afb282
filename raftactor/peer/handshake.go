package peer

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// Versions of the protocol that this member speaks.
const (
	protocolMin = 1
	protocolMax = 1
)

// refusal is the reason why a member does not talk to another one.
type refusal struct {
	reason peerpb.RefusalReason
	text   string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

// GRPCStatus is what gRPC sends to the refused member.
func (r *refusal) GRPCStatus() *status.Status {
	s := status.New(codes.FailedPrecondition, r.text)
	detailed, err := s.WithDetails(&peerpb.Refusal{Reason: r.reason})
	if err != nil {
		return s // the text still says why
	}
	return detailed
}

func refuse(reason peerpb.RefusalReason, format string, args ...any) error {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

// refusalOf returns the refusal in an error that a stream returned.
func refusalOf(err error) (*refusal, bool) {
	var r *refusal
	if errors.As(err, &r) {
		return r, true
	}
	s, ok := status.FromError(err)
	if !ok {
		return nil, false
	}
	for _, d := range s.Details() {
		if d, ok := d.(*peerpb.Refusal); ok {
			return &refusal{d.Reason, s.Message()}, true
		}
	}
	return nil, false
}

// hello is the first frame of a stream to a member.
func (t *Transport) hello(to uint64) *peerpb.Hello {
	h := &peerpb.Hello{
		ClusterId: t.cfg.ClusterID, From: t.cfg.ID, To: to,
		ProtocolMin: protocolMin, ProtocolMax: protocolMax, ServerVersion: t.cfg.ServerVersion,
		DataId: t.cfg.DataID, Bootstrap: t.cfg.Bootstrap,
	}
	set := t.members.Load()
	h.ToDataId = set.byID[to].DataID
	h.PeerUrls = set.byID[t.cfg.ID].PeerURLs
	return h
}

// check returns an error that says why this member does not talk to the sender of h. from is the
// member that it has to be; 0 if any.
func (t *Transport) check(h *peerpb.Hello, from uint64) error {
	set := t.members.Load()
	switch {
	case h == nil:
		return refuse(peerpb.RefusalReason_BAD_HELLO, "the first frame is no hello")
	case h.ClusterId != t.cfg.ClusterID:
		return refuse(peerpb.RefusalReason_WRONG_CLUSTER, "member %x is of cluster %x, and member %x of cluster %x",
			h.From, h.ClusterId, t.cfg.ID, t.cfg.ClusterID)
	case h.From == 0 || h.From >= math.MaxUint64-1 || h.From == t.cfg.ID:
		return refuse(peerpb.RefusalReason_BAD_HELLO, "%x is not the id of another member", h.From)
	case h.To != t.cfg.ID, from != 0 && h.From != from:
		return refuse(peerpb.RefusalReason_WRONG_MEMBER, "member %x expects member %x, and this is member %x: a peer URL belongs to another member",
			h.From, h.To, t.cfg.ID)
	case set.removed[h.From]:
		return refuse(peerpb.RefusalReason_REMOVED, "member %x was removed from cluster %x", h.From, t.cfg.ClusterID)
	case h.ProtocolMax < protocolMin || h.ProtocolMin > protocolMax:
		return refuse(peerpb.RefusalReason_NO_COMMON_PROTOCOL, "member %x (version %s) speaks versions %d to %d of the peer protocol, and member %x (version %s) %d to %d",
			h.From, h.ServerVersion, h.ProtocolMin, h.ProtocolMax, t.cfg.ID, t.cfg.ServerVersion, protocolMin, protocolMax)
	case h.Bootstrap != 0 && t.cfg.Bootstrap != 0 && h.Bootstrap != t.cfg.Bootstrap:
		return refuse(peerpb.RefusalReason_OTHER_BOOTSTRAP, "members %x and %x were bootstrapped with different --initial-cluster",
			h.From, t.cfg.ID)
	}
	known := set.byID[h.From].DataID
	switch DataReplaced(h, known, t.cfg.DataID) {
	case 0:
	case h.From:
		return refuse(peerpb.RefusalReason_DATA_REPLACED, "the data directory of member %x was replaced: it has data id %x instead of %x; remove the member and add it again",
			h.From, h.DataId, known)
	default:
		err := refuse(peerpb.RefusalReason_DATA_REPLACED, "the data directory of member %x was replaced: it has data id %x instead of %x; remove the member and add it again",
			t.cfg.ID, t.cfg.DataID, h.ToDataId)
		if t.cfg.Replaced != nil && t.replaced.CompareAndSwap(false, true) {
			t.cfg.Replaced(err.Error())
		}
		return err
	}
	return nil
}

// DataReplaced returns the member whose data directory was replaced, as a hello shows it to the
// member that receives it: the sender, or this member itself; 0 if none was. known is the data id
// that the sender should have, and own that of this member; 0 means unknown.
func DataReplaced(h *peerpb.Hello, known, own uint64) uint64 {
	switch {
	case actors.Planted("bootstrap on a wiped directory"):
		return 0
	case known != 0 && h.DataId != 0 && known != h.DataId:
		return h.From
	case h.ToDataId != 0 && own != 0 && h.ToDataId != own:
		return h.To
	}
	return 0
}

// Limits of the log: the same trouble repeats with every attempt to connect.
const (
	// troublePeriod is the time after which the same trouble is logged again.
	troublePeriod = time.Minute
	// troublesMax bounds the troubles that are remembered. Text from the network is among
	// them, so a peer could make them up.
	troublesMax = 256
)

// troubles says which troubles were logged lately. The zero value is ready to use.
type troubles struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// due reports whether a trouble is to be logged, and remembers it.
func (t *troubles) due(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if last, ok := t.last[key]; ok && now.Sub(last) < troublePeriod {
		return false
	}
	if len(t.last) >= troublesMax {
		for k, last := range t.last {
			if now.Sub(last) >= troublePeriod {
				delete(t.last, k)
			}
		}
		if len(t.last) >= troublesMax {
			return false
		}
	}
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	t.last[key] = now
	return true
}
