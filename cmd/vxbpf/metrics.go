// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/tools/metrics"
	"github.com/vxbpf/vxbpf/tools/observe"
)

func (a *app) metrics() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "metrics",
		Short: "Print metrics for Prometheus, or write them where node_exporter reads them",
		Long: `Prints what a scrape of the daemon's endpoint (key metrics of the config) would get, less the few metrics that only the
daemon has. It needs no daemon. With --textfile it writes a file for node_exporter's textfile collector, in one step:

  vxbpf metrics --textfile /var/lib/prometheus/node-exporter/vxbpf.prom

Alert rules and a Grafana dashboard are in tools/dashboards.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			o := observe.Options{Options: a.opt}
			// The collector says of what it cannot read only that; a person is told why.
			if _, err := observe.Read(o); err != nil && file == "" {
				return err
			}
			m := &metrics.Collector{Options: o, Version: version}
			if file != "" {
				if err := m.WriteFile(file); err != nil {
					return fmt.Errorf("write metrics: %w", err)
				}
				return nil
			}
			return m.Write(a.stdout)
		},
	}
	c.Flags().StringVar(&file, "textfile", "", "write to this file, which ends in .prom")
	return c
}

// serveMetrics answers at an address, and at another when one comes, until the returned function is called.
func (a *app) serveMetrics(ctx context.Context, address string, next <-chan string, d *loader.Daemon, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	m := &metrics.Collector{Options: observe.Options{Options: a.opt, Daemon: os.Getpid()}, Version: version, Stats: d.Stats()}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			this, end := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if address != "" && !a.opt.Once {
					m.Serve(this, address, log)
				}
			}()
			for same := true; same; {
				select {
				case <-ctx.Done():
					same = false
				case other := <-next:
					same = other == address
					address = other
				}
			}
			end()
			<-ended
		}
	}()
	return func() { cancel(); <-done }
}
