package grpcgw

import (
	"encoding/json"
	"io"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
)

const (
	pathHashKV    = "/members/hashkv"
	pathDowngrade = "/downgrade/enabled"
	// hashRequestBytesMax bounds a request for a hash, which takes some thirty bytes.
	hashRequestBytesMax = 64 << 10
)

// hashHandler serves HashKV as etcd does on the peer port. Members of Troupe do not use it
// among themselves. It computes one hash at a time; further requests wait.
func (cfg *PeerConfig) hashHandler() http.HandlerFunc {
	turn := make(chan struct{}, 1)
	return func(w http.ResponseWriter, r *http.Request) {
		own := hexID(cfg.Member.Identity().ClusterID)
		if id := r.Header.Get(HeaderClusterID); id != "" && id != own {
			http.Error(w, "cluster ID mismatch", http.StatusPreconditionFailed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, hashRequestBytesMax))
		if err != nil {
			http.Error(w, "error reading body", http.StatusBadRequest)
			return
		}
		req := new(pb.HashKVRequest)
		if err := json.Unmarshal(body, req); err != nil {
			http.Error(w, "error unmarshalling request", http.StatusBadRequest)
			return
		}
		if cfg.Member.Keyspace().View() == nil {
			http.Error(w, errNotReady.Error(), http.StatusServiceUnavailable)
			return
		}
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-r.Context().Done():
			return // the client has gone
		}
		h, err := cfg.Member.Keyspace().HashKV(req.Revision, r.Context().Err)
		if err != nil {
			cfg.Logger.Warn().Int64("requested-revision", req.Revision).Err(err).Msg("failed to get hashKV")
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set(HeaderClusterID, own)
		writeJSON(w, &pb.HashKVResponse{Header: &pb.ResponseHeader{Revision: h.Revision}, Hash: h.Hash,
			CompactRevision: h.CompactRevision, HashRevision: h.HashRevision})
	}
}

// serveDowngrade says whether a downgrade of the cluster is under way. There is none: its
// version never falls.
func (cfg *PeerConfig) serveDowngrade(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(HeaderClusterID, hexID(cfg.Member.Identity().ClusterID))
	code, err := cfg.Member.Requests().ReadIndex(r.Context())
	if err == nil {
		err = codeError(code)
	}
	if err != nil {
		http.Error(w, "failed linearized read: "+status.Convert(err).Message(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, "false") // fails only if the client has gone
}
