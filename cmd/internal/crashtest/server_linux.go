package crashtest

import "syscall"

// attributes makes the child die with us, also if we are killed, and keeps the
// terminal's signals away from it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
