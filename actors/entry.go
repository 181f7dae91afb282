package actors

import "fmt"

// EntryPanic is what a stage panics with when applying a raft entry failed in a
// way that applying it again would repeat: replay ends there.
type EntryPanic struct {
	Index uint64 // of the entry
	Cause any    // what was passed to panic at first
}

// Error implements error.
func (e *EntryPanic) Error() string { return fmt.Sprintf("entry %d: %v", e.Index, e.Cause) }

// Unwrap returns the cause if it is an error.
func (e *EntryPanic) Unwrap() error {
	err, _ := e.Cause.(error)
	return err
}

// GuardEntry turns a panic that passes by into an EntryPanic. It is deferred.
func GuardEntry(index uint64) {
	if r := recover(); r != nil {
		panic(&EntryPanic{Index: index, Cause: r})
	}
}
