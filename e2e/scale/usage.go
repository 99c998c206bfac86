package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on every architecture that this is for.
const tick = time.Second / 100

// cpu gives the CPU time that the process has used, user and system, in steps of 10 ms.
func (p *process) cpu() (time.Duration, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of %s: %w", p.name, err)
	}
	return parseCPU(string(line))
}

// parseCPU reads a line of /proc/PID/stat (proc(5)). The second field is the command's name in parentheses, which may
// itself hold spaces and parentheses.
func parseCPU(line string) (time.Duration, error) {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:]) // from field 3, the state
	if len(fields) < 13 {
		return 0, fmt.Errorf("%q has too few fields", line)
	}
	var sum time.Duration
	for _, field := range fields[11:13] { // utime, stime
		ticks, err := strconv.ParseInt(field, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("CPU time: %w", err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum, nil
}

// peak gives the most memory that the process has held so far, in bytes of its resident set.
func (p *process) peak() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of %s: %w", p.name, err)
	}
	return parsePeak(string(text))
}

func parsePeak(status string) (int64, error) {
	_, rest, found := strings.Cut(status, "\nVmHWM:")
	fields := strings.Fields(rest)
	if !found || len(fields) < 2 || fields[1] != "kB" {
		return 0, fmt.Errorf("%.200q tells no VmHWM in kB", status)
	}
	kilobytes, err := strconv.ParseInt(fields[0], 10, 63)
	return kilobytes << 10, err
}

// machineBusy gives the CPU time that all of the machine has used since it started.
func machineBusy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(text))
}

func parseBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%q does not tell the machine's CPU time", line)
	}
	var sum time.Duration
	for i, field := range fields[1:8] { // user, nice, system, idle, iowait, irq, softirq
		ticks, err := strconv.ParseInt(field, 10, 63)
		if err != nil {
			return 0, fmt.Errorf("%q: %w", line, err)
		}
		if i != 3 && i != 4 {
			sum += time.Duration(ticks) * tick
		}
	}
	return sum, nil
}

// othersSince gives the share of the cores that programs of others have used since this one began. What it started has
// ended.
func othersSince(before time.Duration, began time.Time) (float64, error) {
	after, err := machineBusy()
	if err != nil {
		return 0, err
	}
	var own time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			return 0, fmt.Errorf("read the CPU time of this program: %w", err)
		}
		own += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return max(0, (after-before-own).Seconds()/(time.Since(began).Seconds()*float64(runtime.NumCPU()))), nil
}

// processorName is what the processor calls itself; empty where it is not said.
func processorName() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(text), "model name")
	line, _, _ := strings.Cut(after, "\n")
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), ":"))
}
