//go:build !linux

package e2e

import "syscall"

// diesWithUs has no counterpart here: a test process that goes down without its clean-ups leaves its children.
func diesWithUs() *syscall.SysProcAttr { return nil }
