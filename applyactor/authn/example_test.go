package authn_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/applyactor/authn"
)

// A password is hashed and checked by a worker; the log assigns a token.
func Example() {
	system := actors.NewSystem(zerolog.Nop())
	edge, err := actors.StartEdge(system, actors.EdgeConfig{})
	if err != nil {
		panic(err)
	}
	passwords := authn.NewPasswords(authn.PasswordsConfig{Cost: 4})
	for _, worker := range passwords.Children() {
		if _, err := edge.Spawn(worker); err != nil {
			panic(err)
		}
	}
	ctx := context.Background()
	hash, err := passwords.Hash(ctx, "secret")
	fmt.Println("hashed:", err)
	fmt.Println("right:", passwords.Check(ctx, "ann", hash, "secret"))
	fmt.Println("wrong:", errors.Is(passwords.Check(ctx, "ann", hash, "guess"), authn.ErrWrong))

	tokens := authn.NewTokens(time.Minute)
	tokens.Begin(0)
	tokens.Apply(5, []apply.Token{{Assigned: "abc.5", User: "ann"}})
	fmt.Println(tokens.Use("abc.5"))
	tokens.Apply(6, []apply.Token{{User: "ann"}})
	fmt.Println(tokens.Use("abc.5"))
	_ = edge.Stop(ctx)
	// Output:
	// hashed: <nil>
	// right: <nil>
	// wrong: true
	// ann true
	//  false
}
