package control

import (
	"errors"
	"fmt"
	"os"
)

// damagedSuffix is what the name of a damaged file gets. It holds a secret, or what is left of one.
const damagedSuffix = ".damaged"

// setAside keeps a damaged file of the data directory under another name, readable by its owner alone, for who wants to
// know what became of it; an earlier one goes. It says so in the log, also where the file cannot be kept: what is made in
// its place is no less good.
func (c *Control) setAside(path, reason string) {
	aside := path + damagedSuffix
	err := os.Chmod(path, 0o600)
	if err == nil {
		err = os.Rename(path, aside)
	}
	if err != nil {
		c.options.Logger.Warn("a file of the data directory was damaged and is made anew; what was in it cannot be kept", "file", path, "reason", reason, "error", err)
		return
	}
	c.options.Logger.Warn("a file of the data directory was damaged and is made anew; copies of it elsewhere are as good as they were",
		"file", path, "reason", reason, "kept", aside)
}

// damageOf says what is wrong with a context file that cannot be read. It quotes nothing: a parser's words may hold a
// piece of the key.
func damageOf(path string) string {
	info, err := os.Stat(path)
	var wrong *os.PathError
	switch {
	case errors.As(err, &wrong):
		return wrong.Err.Error()
	case !info.Mode().IsRegular():
		return "it is not a regular file"
	case info.Size() == 0:
		return "it is empty"
	}
	return fmt.Sprintf("its %d bytes are not a whole context", info.Size())
}
