package monitor

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/peerpb"
)

const (
	cluster = 0xc1
	member  = 0xa1
)

// served is a service on a connection in memory.
type served struct {
	*fakeKeyspace
	service *Service
	conn    *grpc.ClientConn
	client  *Client
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{fakeKeyspace: &fakeKeyspace{current: 10, compacted: 4, hashes: map[int64]mvcc.HashKV{
		9: {Hash: 90, HashRevision: 9, CompactRevision: 4},
		4: {Hash: 40, HashRevision: 4, CompactRevision: -1, OfCompaction: true},
	}}}
	s.service = NewService(ServiceConfig{
		ClusterID: cluster, MemberID: member, Keyspace: s.fakeKeyspace,
		Status: func() *peerpb.MemberStatus {
			return &peerpb.MemberStatus{ServerVersion: "3.7.3", Term: 7, Leader: member, Committed: 20, Applied: 19,
				Revision: 10, CompactRevision: 4, Role: peerpb.MemberRole_MEMBER_ROLE_LEADER}
		},
		Pacer: func(ctx context.Context) func() error { return ctx.Err },
	})
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	peerpb.RegisterMonitorServer(server, s.service)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }() // ends with Stop
	conn, err := grpc.NewClient("passthrough:member", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("got error %v of the server, want none", err)
		}
	})
	s.conn = conn
	s.client = NewClient(cluster, func(uint64) (grpc.ClientConnInterface, bool) { return conn, true })
	return s
}

func TestStatusRPC(t *testing.T) {
	s := serve(t)
	got, err := s.client.Status(context.Background(), member)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.service.cfg.Status(); got.String() != want.String() {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := s.client.Status(context.Background(), 0xa2); !errors.Is(err, ErrOtherMember) {
		t.Errorf("got error %v for another member, want %v", err, ErrOtherMember)
	}
	stranger := NewClient(0xc2, s.client.conn)
	if _, err := stranger.Status(context.Background(), member); !errors.Is(err, ErrOtherMember) {
		t.Errorf("got error %v for another cluster, want %v", err, ErrOtherMember)
	}
	lost := NewClient(cluster, func(uint64) (grpc.ClientConnInterface, bool) { return nil, false })
	if _, err := lost.Status(context.Background(), member); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got error %v without a connection, want %v", err, ErrUnreachable)
	}
}

func TestHashRPC(t *testing.T) {
	s := serve(t)
	s.errs = map[int64]error{5: &mvcc.CorruptError{Err: errAny}, 6: mvcc.ErrClosed, 7: errAny}
	for _, c := range []struct {
		rev  int64
		want mvcc.HashKV
		err  error
	}{
		{rev: 9, want: mvcc.HashKV{Hash: 90, HashRevision: 9, CompactRevision: 4, Revision: 10}},
		{rev: 4, want: mvcc.HashKV{Hash: 40, HashRevision: 4, CompactRevision: -1, Revision: 10, OfCompaction: true}},
		{rev: 3, want: mvcc.HashKV{Revision: 10}, err: mvcc.ErrCompacted},
		{rev: 11, want: mvcc.HashKV{Revision: 10}, err: mvcc.ErrFutureRevision},
		{rev: 5, want: mvcc.HashKV{Revision: 10}, err: ErrCorrupt},
		{rev: 6, want: mvcc.HashKV{Revision: 10}, err: mvcc.ErrClosed},
	} {
		got, err := s.client.HashKV(context.Background(), member, c.rev)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("revision %d: got %+v and error %v, want %+v and %v", c.rev, got, err, c.want, c.err)
		}
	}
	for rev, want := range map[int64]codes.Code{7: codes.Unknown, 0: codes.InvalidArgument, -1: codes.InvalidArgument} {
		if _, err := s.client.HashKV(context.Background(), member, rev); status.Code(err) != want {
			t.Errorf("revision %d: got error %v, want code %v", rev, err, want)
		}
	}
	if _, err := s.client.HashKV(context.Background(), 0xa2, 9); !errors.Is(err, ErrOtherMember) {
		t.Errorf("got error %v for another member, want %v", err, ErrOtherMember)
	}
	lost := NewClient(cluster, func(uint64) (grpc.ClientConnInterface, bool) { return nil, false })
	if _, err := lost.HashKV(context.Background(), member, 9); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got error %v without a connection, want %v", err, ErrUnreachable)
	}
	s.current = 0 // before the first boot
	if _, err := s.client.HashKV(context.Background(), member, 9); !errors.Is(err, mvcc.ErrClosed) {
		t.Errorf("got error %v without a keyspace, want %v", err, mvcc.ErrClosed)
	}
}

// TestOneHashAtATime: a request waits for the one before it until its context ends, a bounded
// number waits, and a computation ends with its request.
func TestOneHashAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &fakeKeyspace{current: 10, hashes: map[int64]mvcc.HashKV{9: {HashRevision: 9}}}
		s := NewService(ServiceConfig{ClusterID: cluster, MemberID: member, Keyspace: k,
			Pacer: func(ctx context.Context) func() error {
				return func() error { <-ctx.Done(); return ctx.Err() }
			}})
		k.began = func(_ int64, pause func() error) error { return pause() }
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		call := func(ctx context.Context) error {
			_, err := s.HashKV(ctx, &peerpb.HashKVRequest{ClusterId: cluster, MemberId: member, Revision: 9})
			return err
		}
		errs := make(chan error, 1+hashesWaiting)
		for range 1 + hashesWaiting {
			go func() { errs <- call(ctx) }()
		}
		synctest.Wait()
		if got := len(k.asked); got != 1 {
			t.Errorf("got %d computations at a time, want 1", got)
		}
		if err := call(ctx); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got error %v of one request too many, want code %v", err, codes.ResourceExhausted)
		}
		for range 1 + hashesWaiting {
			if err := <-errs; status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("got error %v, want code %v", err, codes.DeadlineExceeded)
			}
		}
		k.began = nil
		if err := call(context.Background()); err != nil {
			t.Errorf("got error %v when all have ended, want none", err)
		}
	})
}
