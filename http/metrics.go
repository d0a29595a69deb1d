package http

import (
	"bytes"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/valyala/fasthttp"
)

// stats are the server's own series. Their names are the original's; the buckets fit their unit.
type stats struct {
	codes   *prometheus.CounterVec
	latency prometheus.Histogram
	panics  prometheus.Counter
}

func newStats(to prometheus.Registerer) *stats {
	s := &stats{
		codes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kaspr_http_status_codes_total", Help: "Answers by status code.",
		}, []string{"status_code"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kaspr_http_latency", Help: "Time to make an answer, in milliseconds.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000},
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kaspr_http_panics_total", Help: "Requests answered with 500 because of a bug of the engine's own.",
		}),
	}
	to.MustRegister(s.codes, s.latency, s.panics)
	return s
}

func (s *stats) add(code int, took time.Duration) {
	s.codes.WithLabelValues(strconv.Itoa(code)).Inc()
	s.latency.Observe(float64(took) / float64(time.Millisecond))
}

// metrics answers in the text format 0.0.4.
func (s *Server) metrics(ctx *fasthttp.RequestCtx) {
	families, err := s.opts.Registry.Gather()
	if err != nil { // some series are missing, or wrong; the others are right
		s.opts.Log.Error("gather metrics", "err", err)
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			s.opts.Log.Error("write metrics", "family", f.GetName(), "err", err)
			fail(ctx, fasthttp.StatusInternalServerError, "metrics cannot be written")
			return
		}
	}
	ctx.SetContentType(string(format))
	ctx.SetBody(text.Bytes())
}
