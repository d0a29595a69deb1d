package engine

import (
	"maps"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counts are counters by name. Some names come from outside (the code's own words for what failed, topics it chose): there are at
// most countsMax, and what comes after counts as one. The zero value is ready.
type counts struct {
	mu sync.Mutex
	n  map[string]int64 // guarded by mu
}

const (
	countsMax  = 1000
	countsRest = "other"
)

func (c *counts) add(more map[string]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range more {
		if n == 0 {
			continue
		}
		if c.n == nil {
			c.n = map[string]int64{}
		}
		name = strings.ToValidUTF8(name, "\uFFFD") // or it is no label, which would end all series
		if _, ok := c.n[name]; !ok && len(c.n) >= countsMax {
			name = countsRest
		}
		c.n[name] += n
	}
}

// all is the counters of now.
func (c *counts) all() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// addTo sums the counters up into others.
func (c *counts) addTo(sum map[string]int64) {
	for name, n := range c.all() {
		sum[name] += n
	}
}

// distribution is the counters of a histogram. The zero value is ready.
type distribution struct {
	counts [boundsLen + 1]atomic.Uint64
	micros atomic.Int64 // millionths of the unit
}

const boundsLen = 16

// observe counts n values of v.
func (d *distribution) observe(bounds *[boundsLen]float64, v float64, n int) {
	i := 0
	for i < boundsLen && v > bounds[i] {
		i++
	}
	d.counts[i].Add(uint64(n))
	d.micros.Add(int64(math.Round(v*1e6)) * int64(n))
}

func (d *distribution) metric(bounds *[boundsLen]float64, desc *prometheus.Desc, labels ...string) prometheus.Metric {
	buckets := make(map[float64]uint64, boundsLen)
	var n uint64
	for i, b := range bounds {
		n += d.counts[i].Load()
		buckets[b] = n
	}
	n += d.counts[boundsLen].Load()
	return prometheus.MustNewConstHistogram(desc, n, float64(d.micros.Load())/1e6, buckets, labels...)
}

// durations is a histogram of times, in milliseconds.
type durations struct{ d distribution }

var durationBounds = [boundsLen]float64{.25, .5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000}

func (d *durations) observe(t time.Duration) { d.observeEach(t, 1) }

// observeEach counts n that took the same time.
func (d *durations) observeEach(t time.Duration, n int) {
	if n > 0 {
		d.d.observe(&durationBounds, float64(t)/float64(time.Millisecond), n)
	}
}

// count is how many were observed.
func (d *durations) count() (n uint64) {
	for i := range d.d.counts {
		n += d.d.counts[i].Load()
	}
	return n
}

func (d *durations) metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	return d.d.metric(&durationBounds, desc, labels...)
}

// sizes is a histogram of numbers of records.
type sizes struct{ d distribution }

var sizeBounds = [boundsLen]float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000}

func (s *sizes) observe(n int) { s.d.observe(&sizeBounds, float64(n), 1) }

func (s *sizes) metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	return s.d.metric(&sizeBounds, desc, labels...)
}
