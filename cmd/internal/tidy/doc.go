// Package tidy checks conventions that the compiler does not: imports go down the
// ranks of ARCHITECTURE.md, cores are pure, each actor package handles and sends the
// messages that its doc.go lists, nothing uses the parts of protoactor-go that lose
// messages, and the files and functions that ARCHITECTURE.md names exist. It is a test
// of the source tree; run it with
//
//	go test ./cmd/internal/tidy
//
// The checks read syntax, not types: they are fast, need no build, and can be fooled
// on purpose. Exceptions are listed in exceptions.go, each with its reason; one that
// is no longer needed is an error too.
package tidy
