package actors_test

import (
	"fmt"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
)

// greeter is a stage: it owns its state and handles batches.
type greeter struct{ greeted chan string }

func (g *greeter) Receive(ctx actor.Context) {
	switch b := ctx.Message().(type) {
	case *actors.Batch:
		for ; b.Done < len(b.Msgs); b.Done++ {
			g.greeted <- fmt.Sprint("hello, ", b.Msgs[b.Done])
		}
	}
}

func Example() {
	g := &greeter{greeted: make(chan string)}
	box := actors.NewMailbox(actors.MailboxConfig{
		Name: "edge/greeter", Class: actors.Refuse, Limit: actors.Limit{Requests: 100, Bytes: 1 << 20},
	})
	ref, err := actors.Spawn(actors.NewSystem(zerolog.Nop()).Root, actors.Stage{Name: "edge/greeter", Actor: g, Mailbox: box})
	if err != nil {
		panic(err)
	}
	if err := ref.TryPost(0, "world", actors.Cost{Requests: 1, Bytes: 5}); err != nil {
		fmt.Println("the client must back off:", err)
	}
	fmt.Println(<-g.greeted)
	// Output: hello, world
}
