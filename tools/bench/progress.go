// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// bar shows what is running and how long the rest will take: one line redrawn
// on a terminal, a line per workload elsewhere.
type bar struct {
	w        io.Writer
	terminal bool
	mu       sync.Mutex
	n, total int
	start    time.Time
	last     string
}

func newBar(w io.Writer, terminal bool, total int) *bar {
	return &bar{w: w, terminal: terminal, total: total, start: time.Now()}
}

// left is how many rounds are to come, the current one included.
func (b *bar) left() int { return b.total - b.n + 1 }

func (b *bar) say(what string) { b.show(what, false) }

// step begins the next round.
func (b *bar) step(what string) {
	b.n++
	if what != "" {
		b.show(what, true)
	}
}

func (b *bar) show(what string, counts bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := ""
	if b.n > 5 {
		rest := time.Since(b.start) / time.Duration(b.n-1) * time.Duration(b.total-b.n+1)
		left = fmt.Sprintf(", %s left", rest.Round(time.Second))
	}
	if !b.terminal {
		// The datapath is the last word or two: one line per workload and profile.
		f := strings.Fields(what)
		if counts && len(f) > 2 {
			what = strings.Join(f[:2], " ")
		}
		if what != b.last {
			b.last = what
			fmt.Fprintf(b.w, "[%d/%d%s] %s\n", b.n, b.total, left, what)
		}
		return
	}
	const width = 24
	full := 0
	if b.total > 0 {
		full = min(width, width*b.n/b.total)
	}
	fmt.Fprintf(b.w, "\r\x1b[K[%s%s] %d/%d%s  %s", strings.Repeat("=", full), strings.Repeat(" ", width-full), b.n, b.total, left, what)
}

func (b *bar) done() {
	if b.terminal {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}
