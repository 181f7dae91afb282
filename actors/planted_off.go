//go:build !planted

package actors

// Planted reports whether a bug is switched on. The build with the tag planted has bugs on
// purpose, one at a time, to show that the simulation of clusters finds each. In all others it
// is false, and the compiler removes what depends on it.
func Planted(string) bool { return false }
