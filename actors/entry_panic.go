package actors

import "fmt"

// EntryPanic is the value a stage panics with when applying a raft entry failed in a
// way that would recur whenever the entry is applied again: replay cannot pass it.
type EntryPanic struct {
	Index uint64 // of the entry
	Cause any    // the value passed to panic originally
}

// Error implements error.
func (e *EntryPanic) Error() string { return fmt.Sprintf("entry %d: %v", e.Index, e.Cause) }

// Unwrap returns the cause if it is an error.
func (e *EntryPanic) Unwrap() error {
	err, _ := e.Cause.(error)
	return err
}

// GuardEntry turns a panic into an EntryPanic. Callers defer it.
func GuardEntry(index uint64) {
	if r := recover(); r != nil {
		panic(&EntryPanic{Index: index, Cause: r})
	}
}
