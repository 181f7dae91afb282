package leaseactor_test

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Example drives the lease actor of a leader: mvccactor posts a grant, a client renews
// the lease, and when it expires the actor proposes to revoke it.
func Example() {
	published := mvcc.NewPublished()
	mvcc.NewStore(mvcc.Config{Published: published}).Publish(mvcc.Applied{})
	proposed := make(chan *applymsg.Request, 1)
	system := actors.NewSystem(zerolog.Nop())
	ref, err := actors.Spawn(system.Root, leaseactor.New(leaseactor.Config{
		Limit: actors.Limit{Requests: 100, Bytes: 1 << 20}, MinTTL: 1,
		Term: func() uint64 { return 1 }, View: published.View, Metrics: leaseactor.NewMetrics(nil),
		Propose: func(req *applymsg.Request, _ func(raftmsg.Code)) raftmsg.Code {
			proposed <- req
			return raftmsg.Code_OK
		},
	}))
	if err != nil {
		panic(err)
	}

	ref.MustPost(leaseactor.ChangesLane, &leasemsg.Changed{Index: 1, Changes: []*leasemsg.Change{
		{Kind: leasemsg.Kind_GRANTED, Id: 7, Ttl: 1},
	}}, actors.Cost{Requests: 1})
	client := leaseactor.NewClient(leaseactor.ClientConfig{
		Timeout: time.Second, Alone: func() bool { return true },
	})
	client.Connect(ref.Mailbox)
	ttl, code, err := client.Renew(context.Background(), 7)
	fmt.Println("renewed:", ttl, code, err)
	fmt.Println("revoke:", (<-proposed).GetLeaseRevoke().Ids)
	fmt.Println("stopped:", system.Root.StopFuture(ref.PID).Wait())
	// Output:
	// renewed: 1 OK <nil>
	// revoke: [7]
	// stopped: <nil>
}
