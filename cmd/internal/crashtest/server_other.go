//go:build !linux

package crashtest

import "syscall"

// attributes does nothing: a child may outlive a test that is killed.
func attributes() *syscall.SysProcAttr { return nil }
