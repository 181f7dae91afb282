package crashtest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/node"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// The real server checkpoints leases every five minutes, and its clock does not leap. To
// avoid the wait, this executable can run a member that checkpoints them all the time,
// with a lease clock that leaps by days.

const (
	// asMember in the environment makes this executable run such a member.
	asMember = "TROUPE_TEST_MEMBER"
	// memberCheckpoint is its checkpoint interval.
	memberCheckpoint = 400 * time.Millisecond
)

func TestMain(m *testing.M) {
	if os.Getenv(asMember) != "" {
		if err := runMember(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if faults := os.Getenv(asFaulty); faults != "" {
		if err := runFaulty(os.Args[1:], faultFile(faults)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if err := removeBuilds(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// leapingMember returns the configuration to run it.
func leapingMember(cfg Config) Config {
	cfg.Binary, cfg.Args = os.Args[0], nil
	cfg.Env = append(cfg.Env, asMember+"=1")
	return cfg
}

// runMember runs the member until it ends, with the flags that Start sets.
func runMember(args []string) error {
	flags := flag.NewFlagSet("member", flag.ContinueOnError)
	dir := flags.String("data-dir", "", "")
	client := flags.String("listen-client-urls", "", "")
	peer := flags.String("initial-advertise-peer-urls", "", "")
	for _, other := range []string{"advertise-client-urls", "listen-peer-urls", "initial-cluster"} {
		flags.String(other, "", "")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	n, err := startLeaping(*dir, *client, *peer, os.Stderr)
	if err != nil {
		return err
	}
	select {
	case err := <-n.Done():
		return err
	case <-signals:
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return n.Stop(ctx)
	}
}

func startLeaping(dir, client, peer string, log io.Writer) (*node.Node, error) {
	u, err := url.Parse(client)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	logger := zerolog.New(log).With().Timestamp().Logger()
	var leap atomic.Int64
	go leapOn(&leap) // ends with the process
	return node.New(context.Background(), node.Config{
		// As by default in the real server, which runs on this data too.
		Name: "default", PeerURLs: []string{peer}, ClusterID: 0xc1, MemberID: 0xa1,
		Members:    []*applymsg.Member{{Id: 0xa1, Name: "default", PeerUrls: []string{peer}}},
		ClientURLs: []string{client}, DataDir: dir,
		Heartbeat: leaseHeartbeat, Election: leaseExtend, PreVote: true,
		Mailboxes: node.DefaultMailboxes(),
		Listeners: []net.Listener{l}, Gateway: grpcgw.DefaultConfig(), Logger: logger,
		LeaseCheckpoint: memberCheckpoint,
		LeaseClock:      func() int64 { return actors.Now() + leap.Load() },
		Exit:            func(reason error) { logger.Fatal().Err(reason).Msg("the member cannot go on") },
	})
}

// leapOn makes a clock leap by a day repeatedly.
func leapOn(leap *atomic.Int64) {
	for {
		<-time.After(time.Duration(100+rand.IntN(900)) * time.Millisecond)
		leapOnce(leap)
	}
}

func leapOnce(leap *atomic.Int64) { leap.Add(int64(24*time.Hour) * (1 - 2*rand.Int64N(2))) }
