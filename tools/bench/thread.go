// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// Endpoint is where one end of a workload runs: a namespace and the address
// under which the other end finds it.
type Endpoint struct {
	NS   testenv.NS
	Addr [4]byte // IPv4
}

// crew is the threads of one round. Each runs on an OS thread of its own inside
// a namespace, pinned to one CPU, and makes raw system calls there, so that
// Go's scheduler has no part in what is measured.
type crew struct {
	start chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex
	tids  map[int]bool
	ended time.Duration // CPU time of the threads that are gone
	errs  []error
}

func newCrew() *crew { return &crew{start: make(chan struct{}), tids: map[int]bool{}} }

// add starts a thread and returns when it stands at the line; fn begins after
// crew.goAhead. The kernel starts the thread's sockets wherever they were made:
// only softirq work and CPU follow the thread.
func (c *crew) add(ns testenv.NS, cpu int, fn func() error) error {
	ready := make(chan error, 1)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		stood := false
		err := ns.Do(func() error {
			return pinned(cpu, func() error {
				tid := unix.Gettid()
				c.mu.Lock()
				c.tids[tid] = true
				c.mu.Unlock()
				stood = true
				ready <- nil
				<-c.start
				err := fn()
				c.mu.Lock()
				delete(c.tids, tid)
				c.ended += clock(unix.CLOCK_THREAD_CPUTIME_ID)
				c.mu.Unlock()
				return err
			})
		})
		if !stood {
			ready <- err
			return
		}
		if err != nil {
			c.mu.Lock()
			c.errs = append(c.errs, err)
			c.mu.Unlock()
		}
	}()
	return <-ready
}

func (c *crew) goAhead() { close(c.start) }

// wait returns when all threads have ended.
func (c *crew) wait() error {
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.errs...)
}

// cpu is the CPU time of all threads so far, and that of the kernel's softirq
// threads, which take over under load. Softirq work that a thread of ours runs
// on the way is in its own time. The clocks exclude stolen time where the
// kernel knows it.
func (c *crew) cpu() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.ended
	for tid := range c.tids {
		sum += clock(int32(^tid<<3 | 6)) // CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED
	}
	return sum
}

// pinned runs fn with the calling thread bound to one CPU, and sets it free again.
func pinned(cpu int, fn func() error) error {
	var was, want unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return fmt.Errorf("read CPU affinity: %w", err)
	}
	want.Set(cpu)
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return fmt.Errorf("pin thread to CPU %d: %w", cpu, err)
	}
	err := fn()
	return errors.Join(err, unix.SchedSetaffinity(0, &was))
}

// allowedCPUs lists the CPUs that this process may use.
func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	var out []int
	for i := 0; len(out) < set.Count(); i++ {
		if set.IsSet(i) {
			out = append(out, i)
		}
	}
	return out, nil
}

func clock(id int32) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(id, &ts) != nil {
		return 0 // the thread ended at this moment
	}
	return time.Duration(ts.Nano())
}

// ksoftirqd finds the kernel's softirq threads once.
var ksoftirqd = sync.OnceValue(func() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range names {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.HasPrefix(b, []byte("ksoftirqd/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
})

func ksoftirqdTime() (sum time.Duration) {
	for _, pid := range ksoftirqd() {
		sum += clock(int32(^pid<<3 | 2)) // CPUCLOCK_SCHED
	}
	return sum
}

// cpuMark is a moment in the life of a crew.
type cpuMark struct {
	at              time.Time
	threads, softd  time.Duration
	system, softirq time.Duration // of the whole machine, /proc/stat
}

func (c *crew) mark() cpuMark {
	m := cpuMark{threads: c.cpu(), softd: ksoftirqdTime()}
	m.system, m.softirq = procStat()
	m.at = time.Now()
	return m
}

// since is the CPU that was used from then to m.
func (m cpuMark) since(then cpuMark) CPU {
	return CPU{
		Seconds:   (m.threads - then.threads + m.softd - then.softd).Seconds(),
		Ksoftirqd: (m.softd - then.softd).Seconds(),
		System:    (m.system - then.system).Seconds(),
		Softirq:   (m.softirq - then.softirq).Seconds(),
	}
}

// procStat reads the system and softirq time of all CPUs. Its unit is 10 ms
// (USER_HZ is 100 on all architectures that we build for).
func procStat() (system, softirq time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 8 {
		return 0, 0
	}
	tick := func(s string) time.Duration {
		n, _ := strconv.ParseInt(s, 10, 64)
		return time.Duration(n) * 10 * time.Millisecond
	}
	return tick(f[3]), tick(f[7])
}
