package e2e

import "syscall"

// diesWithUs has the kernel kill a child when the test process goes down without its clean-ups, as at a -timeout.
func diesWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
