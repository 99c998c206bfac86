package main

import "syscall"

// ownGroup starts a child in a process group of its own, so that it does not see the terminal's Ctrl-C. Where this program
// goes down without its clean-ups the kernel asks the child to end.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
