// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math/bits"
	"time"
)

// Histogram of durations, log-linear: 32 steps per power of two, so a value
// read back is at most 3 % too high. Adding costs a few nanoseconds and no allocation.
type histogram struct {
	n      uint64
	bucket [histSteps * 40]uint32
}

const (
	histBits  = 5
	histSteps = 1 << histBits
)

func histIndex(ns uint64) int {
	if ns < histSteps {
		return int(ns)
	}
	shift := bits.Len64(ns) - histBits - 1
	return min(shift*histSteps+int(ns>>shift), histSteps*40-1)
}

// histUpper is the largest value of a bucket.
func histUpper(i int) uint64 {
	if i < histSteps {
		return uint64(i)
	}
	shift := i/histSteps - 1
	return uint64(i%histSteps+histSteps+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	h.bucket[histIndex(uint64(max(d, 0)))]++
	h.n++
}

// quantile in microseconds; 0 of an empty histogram.
func (h *histogram) quantile(q float64) float64 {
	want := uint64(q * float64(h.n))
	var sum uint64
	for i, n := range h.bucket {
		sum += uint64(n)
		if n > 0 && sum > want {
			return float64(histUpper(i)) / 1e3
		}
	}
	for i := len(h.bucket) - 1; i >= 0; i-- {
		if h.bucket[i] > 0 {
			return float64(histUpper(i)) / 1e3
		}
	}
	return 0
}

// cdfQuantiles are where the distribution is kept: enough to draw it.
var cdfQuantiles = []float64{0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999}

func (h *histogram) latency() *Latency {
	l := &Latency{P50: h.quantile(0.5), P99: h.quantile(0.99), P999: h.quantile(0.999)}
	for _, q := range cdfQuantiles {
		l.CDF = append(l.CDF, [2]float64{q, h.quantile(q)})
	}
	return l
}
