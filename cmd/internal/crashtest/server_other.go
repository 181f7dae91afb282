//go:build !linux

package crashtest

import "syscall"

// attributes: elsewhere a child may outlive a test that is killed.
func attributes() *syscall.SysProcAttr { return nil }
