package grpcgw

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// leaderChecksMax is the number of consecutive checks without a leader after which the
// streams that require one are cancelled, as in etcd: to open a stream again costs more than
// to refuse a request. The checks are an election timeout apart.
const leaderChecksMax = 3

// leaderMonitor cancels the streams that require a leader while there is none. It has as many
// streams as connections and their MaxConcurrentStreams admit.
type leaderMonitor struct {
	mu      sync.Mutex
	streams map[*leaderStream]struct{}
}

// leaderStream is a stream that requires a leader.
type leaderStream struct {
	grpc.ServerStream
	ctx    context.Context // cancelled with the error of the stream as its cause
	cancel context.CancelCauseFunc
}

// Context implements grpc.ServerStream.
func (s *leaderStream) Context() context.Context { return s.ctx }

func newLeaderMonitor() *leaderMonitor {
	return &leaderMonitor{streams: make(map[*leaderStream]struct{})}
}

// run calls the handler of a stream. If the stream requires a leader, its context is
// cancelled while there is none, and the error is that there is no leader then.
func (m *leaderMonitor) run(ss grpc.ServerStream, requireLeader bool, handle func(grpc.ServerStream) error) error {
	if !requireLeader {
		return handle(ss)
	}
	s := &leaderStream{ServerStream: ss}
	s.ctx, s.cancel = context.WithCancelCause(ss.Context())
	defer s.cancel(nil)
	m.mu.Lock()
	m.streams[s] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.streams, s)
	}()
	err := handle(s)
	if cause := context.Cause(s.ctx); err != nil && cause == rpctypes.ErrGRPCNoLeader {
		return cause
	}
	return err
}

// watch checks at an interval whether there is a leader, until stop is closed.
func (m *leaderMonitor) watch(interval time.Duration, hasLeader func() bool, stop <-chan struct{}) {
	t := time.NewTicker(interval)
	defer t.Stop()
	missed := 0
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		if missed++; hasLeader() {
			missed = 0
		}
		if missed >= leaderChecksMax {
			m.cancelAll()
		}
	}
}

func (m *leaderMonitor) cancelAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.streams {
		s.cancel(rpctypes.ErrGRPCNoLeader)
	}
}
