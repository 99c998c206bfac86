//go:build !linux

package main

import "syscall"

// ownGroup starts a child in a process group of its own. Nothing is measured here: measure wants Linux's /proc.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
