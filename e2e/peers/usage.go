package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on every architecture that this is for.
const tick = time.Second / 100

// processStat is what is wanted of /proc/PID/stat.
type processStat struct {
	pid, parent int
	cpu         time.Duration // its own, user and system, and that of children that ended and were waited for
}

// parseStat reads a line of /proc/PID/stat (proc(5)). The second field is the command's name in parentheses, which may
// itself hold spaces and parentheses.
func parseStat(line string) (processStat, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return processStat{}, fmt.Errorf("%q has no name in parentheses", line)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return processStat{}, fmt.Errorf("process number: %w", err)
	}
	fields := strings.Fields(line[end+1:]) // from field 3, the state
	if len(fields) < 15 {
		return processStat{}, fmt.Errorf("%q has too few fields", line)
	}
	s := processStat{pid: pid}
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return s, fmt.Errorf("parent: %w", err)
	}
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		ticks, err := strconv.ParseInt(field, 10, 32)
		if err != nil {
			return s, fmt.Errorf("CPU time: %w", err)
		}
		s.cpu += time.Duration(ticks) * tick
	}
	return s, nil
}

// tree gives root and all that descend from it; nothing where root is not there.
func tree(all []processStat, root int) []processStat {
	children := map[int][]processStat{}
	var found []processStat
	for _, s := range all {
		if s.pid == root {
			found = append(found, s)
		} else {
			children[s.parent] = append(children[s.parent], s)
		}
	}
	for i := 0; i < len(found); i++ {
		below := children[found[i].pid]
		delete(children, found[i].pid) // numbers that were reused while they were read must not make a ring
		found = append(found, below...)
	}
	return found
}

// treeOf reads the process tree of root.
func treeOf(root int) ([]processStat, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []processStat
	for _, file := range files {
		line, err := os.ReadFile(file)
		if hasEnded(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := parseStat(string(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, s)
	}
	found := tree(all, root)
	if len(found) == 0 {
		return nil, fmt.Errorf("process %d is not there", root)
	}
	return found, nil
}

// hasEnded says that a file of /proc could not be read since its process ended meanwhile.
func hasEnded(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }

// cpuOf gives the CPU time that a process tree has used, in steps of 10 ms for each process.
func cpuOf(root int) (time.Duration, error) {
	found, err := treeOf(root)
	var sum time.Duration
	for _, s := range found {
		sum += s.cpu
	}
	return sum, err
}

// machineCPU gives the CPU time that all of the machine has used since it started.
func machineCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachineCPU(string(text))
}

// parseMachineCPU reads the first line of /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq. Idle and
// iowait are no use of the CPU.
func parseMachineCPU(text string) (sum time.Duration, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, field := range fields[1:8] {
		ticks, err := strconv.ParseInt(field, 10, 48)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			sum += time.Duration(ticks) * tick
		}
	}
	return sum, nil
}

// processorName is what /proc/cpuinfo calls the first core; empty where it has no name, as on most ARM machines.
func processorName() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return parseProcessorName(string(text))
}

func parseProcessorName(text string) string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return ""
}

// memoryOf gives the proportional set size of a process tree in bytes: what it shares is counted once.
func memoryOf(root int) (int64, error) {
	found, err := treeOf(root)
	var sum int64
	for _, s := range found {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.pid))
		if hasEnded(err) && s.pid != root {
			continue
		}
		if err != nil {
			return 0, err
		}
		pss, err := parsePSS(string(text))
		if err != nil {
			return 0, fmt.Errorf("smaps_rollup of process %d: %w", s.pid, err)
		}
		sum += pss
	}
	return sum, err
}

// parsePSS reads the line "Pss: 1234 kB" of /proc/PID/smaps_rollup.
func parsePSS(text string) (int64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 32)
			return kilobytes << 10, err
		}
	}
	return 0, errors.New("there is no line Pss")
}
