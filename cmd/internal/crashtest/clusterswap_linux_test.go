package crashtest

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
)

var swapCount = flag.Int("swaps", 3, "changes of the TLS files in TestClusterSwap")

const (
	// swapStrict is the longest time until changed files are used. Without -fault-strict it is
	// swapLoose.
	swapStrict, swapLoose = 5 * time.Second, 30 * time.Second
	// swapPoll is the pause between two attempts to find out whether they are.
	swapPoll = 50 * time.Millisecond
	// swapHalf is for how long a file is half-written.
	swapHalf = 300 * time.Millisecond
	// swapPrefix is the prefix of the keys, and swapTTL the TTL of leases in seconds.
	swapPrefix = "swap/"
	swapTTL    = 60
	// renewPause is the pause between two renewals of a lease.
	renewPause = 20 * time.Millisecond
)

// swapLoad is clients of all members whose certificates stay valid: no call of theirs may fail,
// and no stream may end.
type swapLoad struct {
	*cluster
	token   string
	good    *swapClient
	ctx     context.Context // of puts and renewals
	stop    context.CancelFunc
	ended   sync.WaitGroup
	puts    atomic.Int64
	renewed []atomic.Int64 // of each member
	revoked []*certstest.Pair
	leaves  *certstest.Authority // is trusted, until the next change
}

// swapClient is a client with a connection to each member, and a watch on each.
type swapClient struct {
	name   string
	conns  []*grpc.ClientConn
	events []atomic.Int64
	ended  []chan error // of the watches
}

// TestClusterSwap: certificates, authorities and revocation lists of a cluster, of the ports for
// clients and for peers, change under load, again and again; every other time a file is
// half-written at first. New handshakes use what is new within swapStrict, and until then a
// client whose certificate was revoked, and one whose authority has left, are out on every
// member. For the others no put fails and no watch and no renewal of a lease ends.
func TestClusterSwap(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newSecured(t, false)
	l := &swapLoad{leaves: certstest.NewAuthority(t, "authority that leaves", nil)}
	s.clients.trust(s.clients.ca, l.leaves)
	l.cluster = startClusterWith(t, Build(t, false), 3, nil, nil, s)
	before := l.terms()
	l.begin()
	var worst time.Duration
	for i := range *swapCount {
		worst = max(worst, l.swap(i))
	}
	l.finish()
	if after := l.terms(); after != before && *faultStrict {
		t.Errorf("got terms %s, want %s: the members had no reason to elect a leader", after, before)
	}
	t.Logf("%d swaps, each in use after at most %v; %d puts", *swapCount, worst, l.puts.Load())
}

// terms returns raft's terms, which are others if a leader was elected.
func (l *swapLoad) terms() (terms string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), readyTimeout)
	defer cancel()
	for _, m := range l.members {
		status, err := m.client.Status(ctx, m.cfg.Client)
		if err != nil {
			l.Fatal(err)
		}
		terms += fmt.Sprintf("%s %d; ", m.name, status.RaftTerm)
	}
	return terms
}

// begin starts the clients.
func (l *swapLoad) begin() {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), readyTimeout)
	defer cancel()
	pair := l.secured.clients.issue("good")
	cc := mustConnect(l.members[0].cfg.Client, credentials.NewTLS(l.secured.clients.client(pair)))
	defer func() { _ = cc.Close() }() // nothing is pending
	resp, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: writerUser, Password: passwordOf(writerUser)})
	if err != nil {
		l.Fatal(err)
	}
	l.token = resp.Token
	if l.good, err = l.enter("good", pair); err != nil {
		l.Fatal(err)
	}
	l.ctx, l.stop = context.WithCancel(l.Context())
	l.Cleanup(func() { l.stop(); l.ended.Wait() })
	l.renewed = make([]atomic.Int64, len(l.members))
	for i, cc := range l.good.conns {
		l.ended.Go(func() { l.put(i, cc) }) // ends with l.ctx
		l.ended.Go(func() {
			if err := l.renew(i, cc); l.ctx.Err() == nil {
				l.Errorf("renewals on %s: %v", l.members[i].name, err)
			}
		})
	}
}

func (l *swapLoad) put(i int, cc *grpc.ClientConn) {
	for l.ctx.Err() == nil {
		// A call that is cancelled may be executed: the last one must not be.
		_, err := pb.NewKVClient(cc).Put(withToken(l.Context(), l.token), &pb.PutRequest{Key: fmt.Append(nil, swapPrefix, i)})
		if err != nil {
			l.Errorf("put on %s: %v", l.members[i].name, err)
			return
		}
		l.puts.Add(1)
	}
}

// renew renews a lease on one stream until the load ends.
func (l *swapLoad) renew(i int, cc *grpc.ClientConn) error {
	leases, ctx := pb.NewLeaseClient(cc), withToken(l.ctx, l.token)
	granted, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: swapTTL})
	if err != nil {
		return err
	}
	stream, err := leases.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	for {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: granted.ID}); err != nil {
			return err
		}
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if resp.TTL != swapTTL {
			return fmt.Errorf("got a TTL of %d, want %d", resp.TTL, swapTTL)
		}
		l.renewed[i].Add(1)
		<-time.After(renewPause)
	}
}

// enter connects a client to all members, and watches on each. Its connections close with the
// test.
func (l *swapLoad) enter(name string, p *certstest.Pair) (*swapClient, error) {
	n := len(l.members)
	c := &swapClient{name: name, events: make([]atomic.Int64, n)}
	for i, m := range l.members {
		cc := mustConnect(m.cfg.Client, credentials.NewTLS(l.secured.clients.client(p)))
		l.Cleanup(func() { _ = cc.Close() }) // nothing is pending
		c.conns, c.ended = append(c.conns, cc), append(c.ended, make(chan error, 1))
		stream, err := pb.NewWatchClient(cc).Watch(withToken(l.Context(), l.token))
		if err == nil {
			end := []byte(clientv3.GetPrefixRangeEnd(swapPrefix))
			err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(swapPrefix), RangeEnd: end}}})
		}
		if err == nil {
			_, err = stream.Recv() // the watcher is created
		}
		if err != nil {
			return nil, fmt.Errorf("%s on %s: %w", name, m.name, err)
		}
		go func() { // ends with the stream, at the latest with the test
			for {
				resp, err := stream.Recv()
				if err == nil && resp.Canceled {
					err = errors.New(resp.CancelReason)
				}
				if err != nil {
					c.ended[i] <- err
					return
				}
				c.events[i].Add(int64(len(resp.Events)))
			}
		}()
	}
	return c, nil
}

// out returns an error unless all streams of the client have ended, and no call succeeds.
func (l *swapLoad) out(c *swapClient) error {
	for i, m := range l.members {
		select {
		case err := <-c.ended[i]:
			c.ended[i] <- err // for the next look
		default:
			return fmt.Errorf("the watch of %s on %s goes on", c.name, m.name)
		}
		ctx, cancel := context.WithTimeout(withToken(l.Context(), l.token), strangerTimeout)
		_, err := pb.NewKVClient(c.conns[i]).Range(ctx, &pb.RangeRequest{Key: []byte(swapPrefix)})
		cancel()
		if err == nil {
			return fmt.Errorf("%s is served by %s", c.name, m.name)
		}
	}
	return nil
}

// useFiles returns an error unless new handshakes of all members have the certificates of the files.
func (l *swapLoad) useFiles() error {
	s := l.secured
	for _, m := range l.members {
		for addr, f := range map[string]*tlsFiles{m.cfg.Client: s.clients, m.cfg.Peer: s.peers} {
			cc, err := (&tls.Dialer{Config: f.client(f.pair)}).DialContext(l.Context(), "tcp", addr)
			if err != nil {
				return err
			}
			got := cc.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber
			_ = cc.Close() // only the handshake matters
			if want := f.pair.Cert.SerialNumber; got.Cmp(want) != 0 {
				return fmt.Errorf("%s, %s: got certificate %v, want %v", m.name, f.name, got, want)
			}
		}
	}
	return nil
}

// swap changes all files, and returns when they are in use, after how long.
func (l *swapLoad) swap(i int) time.Duration {
	l.Helper()
	clients, peers := l.secured.clients, l.secured.peers
	l.what = fmt.Sprintf("swap %d", i)
	victim := clients.issue(fmt.Sprintf("victim %d", i))
	revoked, err := l.enter("the client whose certificate is revoked", victim)
	if err != nil {
		l.Fatalf("%s: %v", l.what, err)
	}
	left, err := l.enter("the client whose authority leaves", l.leaves.Issue(l, certstest.Leaf{CN: "left"}))
	if err != nil {
		l.Fatalf("%s: %v", l.what, err)
	}
	l.leaves = certstest.NewAuthority(l, fmt.Sprintf("authority %d", i), nil)
	l.revoked = append(l.revoked, victim)
	if i%2 == 1 {
		l.halfWrite(clients.path("ca"))
		l.halfWrite(clients.path("crl"))
		l.halfWrite(peers.path("crt"))
		<-time.After(swapHalf)
	}
	began := time.Now()
	clients.renew()
	clients.trust(clients.ca, l.leaves)
	clients.revoke(l.revoked...)
	peers.renew()
	peers.trust(peers.ca)
	peers.revoke()
	next := l.leaves.Issue(l, certstest.Leaf{CN: "next"})
	for _, step := range []func() error{l.useFiles, func() error { return l.out(revoked) }, func() error { return l.out(left) },
		func() error { _, err := l.enter("the client of the new authority", next); return err }} {
		l.within(began, step)
	}
	return time.Since(began)
}

// halfWrite cuts a file, as one that is written in place is for a moment.
func (l *swapLoad) halfWrite(path string) {
	l.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()/2)
	}
	if err != nil {
		l.Fatal(err)
	}
}

// within repeats a step until it succeeds, or the files should be in use.
func (l *swapLoad) within(began time.Time, step func() error) {
	l.Helper()
	limit := swapLoose
	if *faultStrict {
		limit = swapStrict
	}
	for err := step(); err != nil; err = step() {
		if took := time.Since(began); took > limit {
			l.Fatalf("%s: after %v: %v", l.what, took, err)
		}
		<-time.After(swapPoll)
	}
}

// finish ends the load, and checks that the watches of the good client have all events.
func (l *swapLoad) finish() {
	l.Helper()
	l.stop()
	l.ended.Wait()
	for i, m := range l.members {
		for end := time.Now().Add(watcherTimeout); l.good.events[i].Load() < l.puts.Load(); <-time.After(swapPoll) {
			select {
			case err := <-l.good.ended[i]:
				l.Fatalf("the watch of the good client on %s ended after %d of %d events: %v", m.name, l.good.events[i].Load(), l.puts.Load(), err)
			default:
			}
			if time.Now().After(end) {
				l.Fatalf("the watch on %s has %d of %d events", m.name, l.good.events[i].Load(), l.puts.Load())
			}
		}
		if got := l.good.events[i].Load(); got != l.puts.Load() || got == 0 {
			l.Errorf("the watch on %s has %d events, want %d: those of all puts, and no other", m.name, got, l.puts.Load())
		}
		if l.renewed[i].Load() == 0 {
			l.Errorf("no lease was renewed on %s", m.name)
		}
	}
}
