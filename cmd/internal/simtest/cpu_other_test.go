//go:build !linux

package simtest

import "time"

var processBegan = time.Now()

// processorTime stands in for the processor time of the process: a simulation keeps one
// processor busy.
func processorTime() time.Duration { return time.Since(processBegan) }
