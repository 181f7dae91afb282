package crashtest

import "syscall"

// attributes makes the child die with this process, even if that is killed, and does not
// send it the terminal's signals.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
