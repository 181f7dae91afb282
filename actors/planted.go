//go:build planted

package actors

// planted is the bug that is switched on; empty for none.
var planted string

// Plant switches on one bug, and all others off.
func Plant(name string) { planted = name }

// Planted reports whether a bug is switched on.
func Planted(name string) bool { return planted == name }
