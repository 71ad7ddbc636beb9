// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"encoding/json"
	"net/netip"
	"strings"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Verb says what an Action does.
type Verb string

// The verbs. Links are created, recreated and deleted; ports, addresses,
// remotes and static entries are added and removed; attributes are changed.
const (
	Create   Verb = "create"
	Change   Verb = "change"
	Keep     Verb = "keep"
	Recreate Verb = "recreate"
	Delete   Verb = "delete"
	Add      Verb = "add"
	Remove   Verb = "remove"
)

// Action is one thing that a plan does or, with Keep, finds in order.
type Action struct {
	Verb   Verb   `json:"verb"`
	Object string `json:"object"`            // "bridge br-mgmt", "remote 192.0.2.12 on encap-mgmt"
	Attr   Attr   `json:"attr,omitempty"`    // what Change changes
	Old    string `json:"old,omitempty"`     // value found
	New    string `json:"new,omitempty"`     // value wanted
	Reason string `json:"reason,omitempty"`  // why
	Net    string `json:"network,omitempty"` // name of the network it is for

	link string // the link it is about, for Options.Repair
}

// String is the action on one line.
func (a Action) String() string {
	var b strings.Builder
	b.WriteString(string(a.Verb) + " " + a.Object)
	if a.Attr != "" {
		b.WriteString(" " + string(a.Attr))
	}
	switch {
	case a.Old != "" && a.New != "":
		b.WriteString(": " + a.Old + " -> " + a.New)
	case a.New != "":
		b.WriteString(": " + a.New)
	}
	if a.Reason != "" {
		b.WriteString(" (" + a.Reason + ")")
	}
	return b.String()
}

// ResolvedNetwork is a network together with what the host adds to it. The
// data path is built from it.
type ResolvedNetwork struct {
	Config *config.Network
	Local  netip.Addr  // outer source address
	Device kernel.Link // underlay device
	MTU    int         // of the vxlan link once the plan is applied, bytes
	V6     bool        // the underlay is IPv6
}

// Plan is what would make the host match a config. It belongs to the Snapshot
// it was made from: apply it soon, and once.
type Plan struct {
	// Actions are grouped for the reader: first what goes, then each network
	// in the order of the config. Apply has its own order.
	Actions []Action
	// Notices are what the operator should know and Apply does not change, a
	// sentence each.
	Notices []string
	// Foreign is what differs from the config and is not ours to put back (Options.Repair).
	Foreign []Action
	// Resolved has an element for each network of the config.
	Resolved []ResolvedNetwork

	other  bool // an action of Add
	steps  []step
	snap   Snapshot
	before Owned // as the caller gave it
	start  Owned // without what does not exist any more
}

// Changes reports whether the plan does anything to the host.
func (p *Plan) Changes() bool { return len(p.steps) > 0 || p.other }

// Add puts an action on the list that is for the caller to carry out: a change
// of a network that is none of its links.
func (p *Plan) Add(a Action) {
	p.Actions = append(p.Actions, a)
	p.other = true
}

// String has one line for each action and each notice.
func (p *Plan) String() string {
	var b strings.Builder
	for _, a := range p.Actions {
		b.WriteString(a.String() + "\n")
	}
	for _, n := range p.Notices {
		b.WriteString("notice: " + n + "\n")
	}
	return b.String()
}

// MarshalJSON has the actions, whether any of them changes the host, and the notices.
func (p *Plan) MarshalJSON() ([]byte, error) {
	v := struct {
		Changes bool     `json:"changes"`
		Actions []Action `json:"actions"`
		Notices []string `json:"notices,omitempty"`
	}{p.Changes(), p.Actions, p.Notices}
	if v.Actions == nil {
		v.Actions = []Action{}
	}
	return json.Marshal(v)
}

// phase orders the steps of all networks. What goes makes room for what comes:
// names, VNIs and addresses are free before they are needed. Bridges that we
// made go last: nothing waits for their place, and a failure before that
// leaves the containers on them alone.
type phase int

const (
	phaseRemoveStatic phase = iota
	phaseRemoveRemote
	phaseRemoveAddress
	phaseRestore
	phaseClearMaster
	phaseSetDown
	phaseDeleteVXLAN
	phaseDeleteBridgeInTheWay
	phaseRestoreLink
	phaseBridge
	phaseVXLAN
	phaseMaster
	phaseMTU
	phaseAddress
	phaseRemote
	phaseStatic
	phaseUp
	phaseDeleteBridge
)

// step is one change of the host and the action it belongs to.
type step struct {
	phase phase
	what  string // for errors: verb and object
	do    func(*run) error
}
