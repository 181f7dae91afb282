package core

import (
	"context"
	"strconv"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
)

// HandOver transfers the leadership to another member, if this one leads and another is
// connected. It does not take longer than an election would.
func (h *Host) HandOver(ctx context.Context) {
	if !h.Raft.Status().IsLeader || h.Raft.Alone() {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer actors.AfterFunc(h.cfg.Election, cancel).Stop()
	to := h.successor(ctx)
	if to == 0 {
		return
	}
	code, err := h.Requests.TransferLeadership(ctx, to)
	log := h.cfg.Logger.With().Str("to", strconv.FormatUint(to, 16)).Logger()
	switch {
	case err != nil: // such as when all members are stopped at the same time
		log.Warn().Err(err).Msg("failed to hand over the leadership")
	case code != raftmsg.Code_OK:
		log.Warn().Stringer("result", code).Msg("failed to hand over the leadership")
	default:
		actors.Seen("handover: the leadership was handed over")
		log.Info().Msg("handed over the leadership")
	}
}

// successor returns the voter whose log is the longest of those that are connected; 0 if
// there is none.
func (h *Host) successor(ctx context.Context) (best uint64) {
	progress, err := h.Requests.Progress(ctx)
	if err != nil {
		return 0
	}
	most := uint64(0)
	for _, p := range progress {
		if p.ID != h.cfg.Identity.MemberID && !p.IsLearner && h.connectedFor(p.ID, 0) && (best == 0 || p.Match > most) {
			best, most = p.ID, p.Match
		}
	}
	return best
}

// stalled reports whether an append or an apply has been waiting for longer than
// raftactor.StallMax.
func (h *Host) stalled() bool {
	appends, applies := h.Raft.Waiting()
	limit := actors.Now() - int64(raftactor.StallMax)
	return appends != 0 && appends < limit || applies != 0 && applies < limit
}

// HandOverLoop transfers the leadership to another member while this one is stalled. The
// transfer needs neither its disk nor its apply: the other member has the entries already, and
// the other voters elect it.
func (h *Host) HandOverLoop(uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeHandOver, Every: h.cfg.Heartbeat, Faults: h.cfg.Faults,
		Due: func() bool { return h.stalled() && h.Raft.Status().IsLeader },
		Do:  func(ctx context.Context, _ actors.Tick) { h.HandOver(ctx) },
	}), nil
}
