package grpcgw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/applyactor/apply"
)

// The plain HTTP of the peer port, which has etcd's paths and formats. A member that joins
// asks for the members; a member that is asked to promote a learner passes that on to the
// leader.

const (
	pathMembers = "/members"
	pathPromote = "/members/promote/"
	// HeaderClusterID has the id of the cluster in hexadecimal, in each answer about members.
	HeaderClusterID = "X-Etcd-Cluster-ID"
	// PeerAnswerBytesMax bounds the answer of a peer. A member takes a few hundred bytes.
	PeerAnswerBytesMax = 1 << 20
)

// PeerMember is a member as the HTTP of the peer port formats it.
type PeerMember struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

func peerMembers(members []*pb.Member) []PeerMember {
	list := make([]PeerMember, len(members))
	for i, m := range members {
		list[i] = PeerMember{m.ID, m.PeerURLs, m.IsLearner, m.Name, m.ClientURLs}
	}
	return list
}

// PeerConfig configures the HTTP of the peer port.
type PeerConfig struct {
	Member   Member
	Reconfig *Reconfig // nil refuses promotions
	Logger   zerolog.Logger
}

// NewPeerHandler returns the plain HTTP of the peer port: /members, /members/promote/<id>,
// /members/hashkv, /downgrade/enabled and /version. The last is that of the client port too.
func NewPeerHandler(cfg PeerConfig) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(pathMembers, get(cfg.serveMembers))
	mux.HandleFunc(pathPromote, cfg.servePromote)
	mux.HandleFunc("/version", get(versionHandler(cfg.Member)))
	mux.HandleFunc(pathHashKV, get(cfg.hashHandler()))
	mux.HandleFunc(pathDowngrade, get(cfg.serveDowngrade))
	return mux
}

// serveMembers lists the members that this member knows, which need not be the latest.
func (cfg *PeerConfig) serveMembers(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(HeaderClusterID, hexID(cfg.Member.Identity().ClusterID))
	view := cfg.Member.Keyspace().View()
	if view == nil {
		http.Error(w, errNotReady.Error(), http.StatusServiceUnavailable)
		return
	}
	serveJSONLine(w, peerMembers(apply.MemberList(view.Cluster.GetMembers())))
}

// serveJSONLine answers with v and an end of line, as etcd does here. It must be possible to
// encode v.
func serveJSONLine(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has gone
}

// servePromote promotes a learner if this member is the leader.
func (cfg *PeerConfig) servePromote(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set(HeaderClusterID, hexID(cfg.Member.Identity().ClusterID))
	text := strings.TrimPrefix(r.URL.Path, pathPromote)
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", text), http.StatusNotFound)
		return
	}
	if cfg.Member.Keyspace().View() == nil {
		http.Error(w, errNotReady.Error(), http.StatusServiceUnavailable)
		return
	}
	var members []*pb.Member
	if err = errNoReconfig; cfg.Reconfig != nil {
		members, err = cfg.Reconfig.promoteHere(r.Context(), id)
	}
	if err == nil {
		serveJSONLine(w, peerMembers(members))
		return
	}
	cfg.Logger.Warn().Str("member-id", hexID(id)).Err(err).Msg("failed to promote a member")
	switch {
	case errors.Is(err, rpctypes.ErrGRPCMemberNotFound):
		http.Error(w, "membership: ID not found", http.StatusNotFound)
	case errors.Is(err, rpctypes.ErrGRPCMemberNotLearner):
		http.Error(w, textNotLearner, http.StatusPreconditionFailed)
	case final(err):
		http.Error(w, status.Convert(err).Message(), http.StatusPreconditionFailed)
	default: // the caller tries again
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"message":"Internal Server Error"}`)
	}
}

const textNotLearner = "membership: can only promote a learner member"

// errPromote: a peer did not promote a learner, and another attempt may succeed.
var errPromote = errors.New("grpcgw: promotion not answered")

// promoteOnLeader sends a promotion to the peer URLs of the leader, until one answers. If the
// error is none of finalErrors, the promotion may be tried again.
func (r *Reconfig) promoteOnLeader(ctx context.Context, id uint64) (members []*pb.Member, err error) {
	leader := r.find(r.cfg.Member.Raft().Leader)
	if leader == nil {
		return nil, rpctypes.ErrGRPCNoLeader
	}
	err = errPromote
	for _, u := range leader.PeerUrls {
		if members, err = r.promoteAt(ctx, u, id); err == nil || final(err) {
			break
		}
		r.cfg.Logger.Warn().Str("url", u).Err(err).Msg("failed to pass a promotion on to the leader")
	}
	return members, err
}

func (r *Reconfig) promoteAt(ctx context.Context, url string, id uint64) ([]*pb.Member, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+pathPromote+strconv.FormatUint(id, 10), nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.cfg.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, PeerAnswerBytesMax))
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return decodePeerMembers(body)
	case http.StatusNotFound:
		return nil, rpctypes.ErrGRPCMemberNotFound
	case http.StatusPreconditionFailed:
		text := strings.TrimSpace(string(body))
		if text == textNotLearner {
			return nil, rpctypes.ErrGRPCMemberNotLearner
		}
		for _, err := range finalErrors {
			if status.Convert(err).Message() == text {
				return nil, err
			}
		}
	}
	return nil, fmt.Errorf("%w: status %d: %.200q", errPromote, resp.StatusCode, body)
}

func decodePeerMembers(body []byte) ([]*pb.Member, error) {
	var list []PeerMember
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	members := make([]*pb.Member, len(list))
	for i, m := range list {
		members[i] = &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner}
	}
	return members, nil
}
