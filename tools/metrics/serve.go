// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
)

// Registry holds the collector, and nothing of the process.
func (c *Collector) Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	return r
}

// Write prints what a scrape would get.
func (c *Collector) Write(w io.Writer) error {
	families, err := c.Registry().Gather()
	if err != nil {
		return fmt.Errorf("collect metrics: %w", err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	return nil
}

// WriteFile is for node_exporter's textfile collector: aside, then renamed.
func (c *Collector) WriteFile(path string) error {
	if !strings.HasSuffix(path, ".prom") {
		return fmt.Errorf("write metrics to %s: node_exporter reads files that end in .prom", path)
	}
	return prometheus.WriteToTextfile(path, c.Registry())
}

// retry is how long a server waits before it tries again to listen.
const retry = 10 * time.Second

// Serve answers on an address until ctx ends: "HOST:PORT", or "unix:PATH". An
// address that is taken does not stop the data path: it is logged, and tried again.
func (c *Collector) Serve(ctx context.Context, address string, log *slog.Logger) {
	for told := ""; ; {
		err := c.serve(ctx, address, log)
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			log.Warn("metrics are not served, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

func (c *Collector) serve(ctx context.Context, address string, log *slog.Logger) error {
	l, err := listen(ctx, address)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	log.Info("metrics are served", "address", address)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.Registry(), promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 10 * time.Second}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", address, err)
	}
	return nil
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	}
	// What a killed daemon left is in the way; what still answers is not ours to remove.
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on %s: another process answers there", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}
