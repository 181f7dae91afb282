//go:build nostatistics

package actors

const statistics = false
