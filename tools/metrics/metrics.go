// SPDX-License-Identifier: Apache-2.0

// Package metrics shows a data path to Prometheus: a collector that looks anew
// at each scrape, and the ways to hand out what it found. Names and labels are
// interface: they are added, never renamed. The number of series is bounded by
// the config, maxVTEPs and maxPorts.
package metrics

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// maxVTEPs have series of their own: the busiest. The others are one, vtep="other".
const maxVTEPs = 256

// maxPorts have series of their own, in the order of networks and names, so that a series does not come and go with the
// traffic. The others are one for each network, port="other".
const maxPorts = 512

// Collector is one data path.
type Collector struct {
	Options observe.Options
	Version string
	// Stats are the daemon's, where it is this process; nil elsewhere.
	Stats *loader.Stats

	limit int // of VTEPs, and of ports; 0: maxVTEPs, maxPorts
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vxbpf_"+name, help, labels, nil)
}

var (
	descBuild  = desc("build_info", "Version of vxbpf that answers; always 1.", "version")
	descUp     = desc("up", "Whether the data path could be read.")
	descDaemon = desc("daemon_up", "Whether a daemon follows the kernel.")
	descLoaded = desc("loaded_timestamp_seconds", "When the config was loaded, in seconds since 1970.")
	descLease  = desc("lease_seconds", "How long the daemon still vouches for next hops and static entries; +Inf after load --once.")
	descSpent  = desc("scrape_duration_seconds", "How long it took to read the data path.")

	descNetwork   = desc("network_info", "A network of the config; always 1. wanted is as configured, datapath as it is.", "network", "vni", "bridge", "link", "wanted", "datapath")
	descFast      = desc("network_fast", "Whether packets of the network may take the fast path now.", "network")
	descDegraded  = desc("network_degraded", "Whether the network was to run on BPF, and BPF carries nothing of it.", "network")
	descPackets   = desc("network_packets_total", "Packets between ports and VTEPs, by direction (sent, received) and path (fast, slow). A GSO packet counts its segments.", "network", "direction", "path")
	descBytes     = desc("network_bytes_total", "The same in bytes of inner frames.", "network", "direction", "path")
	descReasons   = desc("reason_packets_total", "Packets by hook (encap, decap, deliver) and what became of them there.", "network", "hook", "reason")
	descPorts     = desc("network_ports", "Bridge ports by whether their packets may take the fast path.", "network", "path")
	descPPackets  = desc("port_packets_total", "Packets that whoever is behind a bridge port sent and received, as the kernel counts them, traffic inside the host included.", "network", "port", "direction")
	descPBytes    = desc("port_bytes_total", "The same in bytes of frames.", "network", "port", "direction")
	descFDB       = desc("fdb_entries", "MAC addresses that the data path knows: local, or remote behind VTEPs.", "network", "where")
	descFDBUsed   = desc("fdb_map_entries", "Entries in the FDB map, those yet to be confirmed among them.")
	descFDBSize   = desc("fdb_map_capacity_entries", "Entries that the FDB map has room for.")
	descVPackets  = desc("vtep_packets_total", "Packets to and from known MAC addresses behind a VTEP, over all networks, since one was last known there.", "vtep", "direction", "path")
	descVBytes    = desc("vtep_bytes_total", "The same in bytes of inner frames.", "vtep", "direction", "path")
	descVUp       = desc("vtep_up", "Whether there is a way to the VTEP, as far as this host's routes say.", "vtep")
	descVEntries  = desc("vtep_fdb_entries", "MAC addresses behind the VTEP, over all networks.", "vtep")
	descVMTU      = desc("vtep_path_mtu_bytes", "MTU of the path to the VTEP, outer IP header included.", "vtep")
	descAttached  = desc("attachments", "Programs at their hooks, by state: attached; missing: somebody took it off; stale: its device is gone.", "program", "state")
	descRunTime   = desc("program_run_seconds_total", "Time that a program ran; counts while sysctl kernel.bpf_stats_enabled is 1.", "program")
	descRuns      = desc("program_runs_total", "How often a program ran; counts while sysctl kernel.bpf_stats_enabled is 1.", "program")
	descRepairs   = desc("repairs_total", "What others changed of what the config says, by what became of it: repaired, or reported because it is not vxbpf's to put back.", "outcome")
	descRollback  = desc("rolled_back", "Whether the config in force came back by itself, because the one after it was not confirmed.")
	descFDBEvents = desc("fdb_events_total", "Changes of the kernel's forwarding tables that the daemon followed: changed (made, moved) or gone.", "event")
	descOverruns  = desc("netlink_overruns_total", "Times that netlink events were lost and everything was read again.")
	descResyncs   = desc("netlink_resyncs_total", "Full reads of the kernel's tables, the regular ones among them.")
)

var descs = []*prometheus.Desc{descBuild, descUp, descDaemon, descLoaded, descLease, descSpent, descNetwork, descFast, descDegraded, descPackets,
	descBytes, descReasons, descPorts, descPPackets, descPBytes, descFDB, descFDBUsed, descFDBSize, descVPackets, descVBytes, descVUp, descVEntries, descVMTU,
	descAttached, descRunTime, descRuns, descRepairs, descRollback, descFDBEvents, descOverruns, descResyncs}

// Describe lists all metrics that there can be.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

type sink chan<- prometheus.Metric

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) count(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect looks at the data path. What cannot be read is vxbpf_up 0, and nothing else of it is shown.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	out := sink(ch)
	start := time.Now()
	out.gauge(descBuild, 1, c.Version)
	o := c.Options
	o.Traffic = true
	s, err := observe.Read(o)
	out.gauge(descUp, number(err == nil))
	if err != nil {
		return
	}
	out.gauge(descDaemon, number(s.Daemon != 0))
	out.gauge(descLoaded, float64(s.State.Since.Unix()))
	if s.Lease == maps.Forever {
		out.gauge(descLease, inf)
	} else {
		out.gauge(descLease, s.Lease.Seconds())
	}
	out.count(descRepairs, float64(s.State.Repairs.Repaired), "repaired")
	out.count(descRepairs, float64(s.State.Repairs.Reported), "reported")
	out.gauge(descRollback, number(s.State.RolledBack != nil))
	degraded := s.State.Degraded()
	for _, n := range s.Networks {
		c.network(out, s, n, slices.Contains(degraded, n.Name))
	}
	c.ports(out, s)
	used, size := s.FDBEntries()
	out.gauge(descFDBUsed, float64(used))
	out.gauge(descFDBSize, float64(size))
	for _, v := range c.vteps(s) {
		v.send(out)
	}
	c.programs(out, s)
	if c.Stats != nil {
		out.count(descFDBEvents, float64(c.Stats.FDBChanged.Load()), "changed")
		out.count(descFDBEvents, float64(c.Stats.FDBGone.Load()), "gone")
		out.count(descOverruns, float64(c.Stats.Overruns.Load()))
		out.count(descResyncs, float64(c.Stats.Resyncs.Load()))
	}
	out.gauge(descSpent, time.Since(start).Seconds())
}

func (s sink) share(packets, bytes *prometheus.Desc, name, direction string, x observe.Share) {
	s.count(packets, float64(x.Fast), name, direction, "fast")
	s.count(packets, float64(x.Total-x.Fast), name, direction, "slow")
	s.count(bytes, float64(x.FastBytes), name, direction, "fast")
	s.count(bytes, float64(x.Bytes-x.FastBytes), name, direction, "slow")
}

func (c *Collector) network(out sink, s *observe.Snapshot, n observe.Network, degraded bool) {
	out.gauge(descNetwork, 1, n.Name, n.VNI.String(), n.Bridge, n.Link, string(n.Wanted), string(n.Datapath))
	out.gauge(descFast, number(n.Fast()), n.Name)
	out.gauge(descDegraded, number(degraded), n.Name)
	reasons := s.Counts[n.Name]
	if reasons == nil {
		reasons = s.Guarded[n.Name]
	}
	for h, byReason := range reasons {
		for r, count := range byReason {
			out.count(descReasons, float64(count.Packets), n.Name, h.String(), r.String())
		}
	}
	if s.Counts[n.Name] == nil {
		return // on kernel VXLAN: nobody counts
	}
	out.share(descPackets, descBytes, n.Name, "sent", n.Sent)
	out.share(descPackets, descBytes, n.Name, "received", n.Received)
	fast, slow := 0, 0
	for _, p := range s.Ports {
		switch {
		case p.Network != n.Name || p.Role != "port":
		case p.Fast:
			fast++
		default:
			slow++
		}
	}
	out.gauge(descPorts, float64(fast), n.Name, "fast")
	out.gauge(descPorts, float64(slow), n.Name, "slow")
	out.gauge(descFDB, float64(n.FDBLocal), n.Name, "local")
	out.gauge(descFDB, float64(n.FDBRemote), n.Name, "remote")
}

func (c *Collector) ports(out sink, s *observe.Snapshot) {
	type key struct{ network, port string }
	sum := map[key]observe.PortTraffic{}
	var order []key
	left := cmp.Or(c.limit, maxPorts)
	for _, p := range s.Ports {
		if p.Traffic == nil {
			continue
		}
		k := key{p.Network, p.Name}
		if left--; left < 0 {
			k.port = "other"
		}
		t, ok := sum[k]
		if !ok {
			order = append(order, k)
		}
		t.Sent.Packets, t.Sent.Bytes = t.Sent.Packets+p.Traffic.Sent.Packets, t.Sent.Bytes+p.Traffic.Sent.Bytes
		t.Received.Packets, t.Received.Bytes = t.Received.Packets+p.Traffic.Received.Packets, t.Received.Bytes+p.Traffic.Received.Bytes
		sum[k] = t
	}
	for _, k := range order {
		for direction, n := range map[string]maps.Count{"sent": sum[k].Sent, "received": sum[k].Received} {
			out.count(descPPackets, float64(n.Packets), k.network, k.port, direction)
			out.count(descPBytes, float64(n.Bytes), k.network, k.port, direction)
		}
	}
}

// vtep is one remote address: several outer headers may lead there.
type vtep struct {
	name           string
	sent, received observe.Share
	up             bool
	macs, mtu      int
}

func (v *vtep) add(o vtep) {
	v.sent, v.received = plus(v.sent, o.sent), plus(v.received, o.received)
	v.macs += o.macs
	v.up = v.up && o.up
	if v.mtu == 0 || o.mtu != 0 && o.mtu < v.mtu {
		v.mtu = o.mtu
	}
}

func plus(a, b observe.Share) observe.Share {
	return observe.Share{Fast: a.Fast + b.Fast, Total: a.Total + b.Total, FastBytes: a.FastBytes + b.FastBytes, Bytes: a.Bytes + b.Bytes}
}

func (v *vtep) send(out sink) {
	out.share(descVPackets, descVBytes, v.name, "sent", v.sent)
	out.share(descVPackets, descVBytes, v.name, "received", v.received)
	out.gauge(descVUp, number(v.up), v.name)
	out.gauge(descVEntries, float64(v.macs), v.name)
	if v.mtu > 0 {
		out.gauge(descVMTU, float64(v.mtu), v.name)
	}
}

// vteps are those with a place in the maps, by address.
func (c *Collector) vteps(s *observe.Snapshot) []vtep {
	byName := map[string]*vtep{}
	for i := range s.VTEPs {
		x := &s.VTEPs[i]
		if x.Index == 0 {
			continue
		}
		v := vtep{name: x.Remote.String(), sent: x.Sent(), received: x.Received(), up: x.State != "down", macs: x.MACs, mtu: x.MTU}
		if have := byName[v.name]; have != nil {
			have.add(v)
		} else {
			byName[v.name] = &v
		}
	}
	all := make([]vtep, 0, len(byName))
	for _, v := range byName {
		all = append(all, *v)
	}
	slices.SortFunc(all, func(a, b vtep) int {
		return cmp.Or(cmp.Compare(b.sent.Total+b.received.Total, a.sent.Total+a.received.Total), cmp.Compare(a.name, b.name))
	})
	limit := cmp.Or(c.limit, maxVTEPs)
	if len(all) <= limit {
		return all
	}
	rest := all[limit]
	for _, v := range all[limit+1:] {
		rest.add(v)
	}
	rest.name = "other"
	return append(all[:limit:limit], rest)
}

func (c *Collector) programs(out sink, s *observe.Snapshot) {
	at, err := s.Attachments(c.Options)
	if err != nil {
		return
	}
	type key struct{ program, state string }
	states := map[key]int{}
	type runs struct {
		n       uint64
		seconds float64
	}
	byID := map[uint32]runs{}
	programs := map[uint32]string{}
	for _, a := range at {
		states[key{a.Program, a.State}]++
		for _, s := range []string{"attached", "missing", "stale"} {
			states[key{a.Program, s}] += 0
		}
		if a.ID != 0 {
			byID[a.ID], programs[a.ID] = runs{a.Runs, a.RunTime}, a.Program
		}
	}
	for k, n := range states {
		out.gauge(descAttached, float64(n), k.program, k.state)
	}
	// Attached in many places, but one program; after an upgrade there may be two for a moment.
	total := map[string]runs{}
	for id, r := range byID {
		t := total[programs[id]]
		total[programs[id]] = runs{t.n + r.n, t.seconds + r.seconds}
	}
	for p, r := range total {
		out.count(descRunTime, r.seconds, p)
		out.count(descRuns, float64(r.n), p)
	}
}

var inf, _ = strconv.ParseFloat("inf", 64)
