// Package tidy checks what the compiler does not: that imports go down the ranks
// of ARCHITECTURE.md, that cores are pure, that each actor package handles and
// sends what its doc.go says, and that the parts of protoactor-go that lose
// messages are not used. It is a test of the source tree; run it with
//
//	go test ./cmd/internal/tidy
//
// The checks read syntax, not types: they are fast, need no build, and can be
// fooled by someone who wants to. Exceptions stand in exceptions.go, each with
// its reason, and one that is no longer needed is an error too.
package tidy
