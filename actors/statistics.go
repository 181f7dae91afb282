//go:build !nostatistics

package actors

// statistics is whether mailboxes, gates and timelines measure. A build with the tag
// nostatistics, in which nothing is measured, exists to tell what that costs.
const statistics = true
