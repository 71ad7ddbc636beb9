// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes what the figures belong to; what cannot be read stays empty.
func machine(cpus int) Machine {
	m := Machine{Arch: runtime.GOARCH, CPUs: cpus}
	m.Hostname, _ = os.Hostname()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = string(bytes.TrimRight(u.Release[:], "\x00"))
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.Memory = uint64(si.Totalram) * uint64(si.Unit) //nolint:unconvert // 32 bits on a 32-bit machine
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(k) {
		case "model name":
			m.CPU = strings.TrimSpace(v)
		case "flags":
			m.Hypervisor = strings.Contains(" "+v+" ", " hypervisor ")
		}
	}
	b, _ = os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	m.Clocksource = strings.TrimSpace(string(b))
	return m
}

// circumstances are settings of the machine that colour the figures.
func circumstances() (out []string) {
	b, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled")
	if err == nil && strings.TrimSpace(string(b)) != "0" {
		out = append(out, "kernel.bpf_stats_enabled is on: each run of a BPF program costs about 20 ns more than it needs to")
	}
	b, err = os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 0 {
		out = append(out, "load average before the run: "+f[0])
	}
	return out
}
