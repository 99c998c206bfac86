package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// programs are the binaries under test. TestMain sets them before any test runs, and nobody else does.
var programs struct{ pyserve, pyservectl string }

func TestMain(m *testing.M) {
	// The test binary is also the backend that dies: see backendProcess.
	if name := os.Getenv(backendNameVariable); name != "" {
		os.Exit(serveAsBackend(name, os.Getenv(backendAddressVariable)))
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "pyserve-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code = m.Run()
	for _, name := range started.kill() {
		fmt.Fprintf(os.Stderr, "e2e: %s was still running after the tests; killed\n", name)
		code = 1
	}
	return code
}

func build(dir string) error {
	var err error
	if os.Getenv("PYSERVE_E2E_RACE") == "1" {
		// The detector needs cgo and a C compiler.
		if err = goBuild(dir, "-race"); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: without the race detector:", err)
		}
	}
	if programs.pyserve == "" {
		err = goBuild(dir)
	}
	return err
}

// goBuild builds both programs into dir.
func goBuild(dir string, flags ...string) error {
	args := append([]string{"build", "-o", dir + string(filepath.Separator)}, flags...)
	cmd := exec.Command("go", append(args, "./cmd/...")...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binaries: %w\n%s", err, out)
	}
	programs.pyserve = filepath.Join(dir, "pyserve")
	programs.pyservectl = filepath.Join(dir, "pyservectl")
	return nil
}
