// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AgeingNever is the longest ageing in whole seconds that a bridge takes, 497
// days: the nearest there is to "never".
const AgeingNever = math.MaxUint32 / (time.Second / clockTick) * time.Second

// BridgeSpec says how a new bridge shall be. Durations are sent in steps of
// 10 ms; the kernel rounds them to its own clock, and only whole seconds are
// sure to be read back as they were written.
type BridgeSpec struct {
	STP bool
	// ForwardDelay a port spends listening and again learning. Without STP it
	// may be 0; with STP it must be from 2 s to 30 s.
	ForwardDelay time.Duration
	// Ageing of learned entries, AgeingNever at most. 0: the kernel's default,
	// 300 s. To the kernel itself 0 means "forget at once"; see BridgeChange.
	Ageing time.Duration
	MTU    int // bytes, Ethernet header excluded. 0: follow the smallest port
}

// BridgeChange says what to change of a bridge; nil leaves a value alone.
type BridgeChange struct {
	STP          *bool
	ForwardDelay *time.Duration
	// Ageing of learned entries, AgeingNever at most. 0 makes the bridge forget
	// at once and so flood like a hub.
	Ageing *time.Duration
}

// CreateBridge makes a bridge, administratively down. The error wraps
// unix.EEXIST if a link of that name exists.
func (h *Handle) CreateBridge(name string, spec BridgeSpec) (Link, error) {
	c := BridgeChange{STP: &spec.STP, ForwardDelay: &spec.ForwardDelay}
	if spec.Ageing != 0 {
		c.Ageing = &spec.Ageing
	}
	err := checkDelay(spec.STP, spec.ForwardDelay)
	if err == nil {
		err = h.createLink(name, "bridge", spec.MTU, bridgeData(c))
	}
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("a link of this name exists: %w", err)
	}
	if err != nil {
		return Link{}, fmt.Errorf("create bridge %s: %w", name, err)
	}
	return h.created(name)
}

// checkDelay refuses what the kernel would silently round when STP is turned
// on (BR_MIN_FORWARD_DELAY, BR_MAX_FORWARD_DELAY).
func checkDelay(stp bool, d time.Duration) error {
	if stp && (d < 2*time.Second || d > 30*time.Second) {
		return fmt.Errorf("forward delay %v with STP: want 2s to 30s: %w", d, unix.ERANGE)
	}
	return nil
}

// SetBridge changes a bridge in place; its entries and ports stay. STP is
// turned off before and on after the rest, because the kernel checks the
// forward delay against the STP state it finds; if that second step fails the
// first stands. A forward delay that is shorter than 2 s when STP is turned on
// becomes 2 s.
func (h *Handle) SetBridge(index int, c BridgeChange) error {
	var steps []BridgeChange
	rest := BridgeChange{ForwardDelay: c.ForwardDelay, Ageing: c.Ageing}
	switch {
	case c.STP == nil:
		steps = []BridgeChange{rest}
	case *c.STP:
		if c.ForwardDelay != nil {
			if err := checkDelay(true, *c.ForwardDelay); err != nil {
				return fmt.Errorf("set bridge %d: %w", index, err)
			}
		}
		steps = []BridgeChange{rest, {STP: c.STP}}
	default:
		steps = []BridgeChange{{STP: c.STP}, rest}
	}
	for _, s := range steps {
		if s == (BridgeChange{}) {
			continue
		}
		if err := h.setLink(index, 0, 0, linkInfo("bridge", bridgeData(s))); err != nil {
			return fmt.Errorf("set bridge %d: %w", index, err)
		}
	}
	return nil
}

func bridgeData(c BridgeChange) *nl.RtAttr {
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	ticks := func(typ int, d *time.Duration) {
		if d != nil {
			data.AddRtAttr(typ, nl.Uint32Attr(uint32(*d/clockTick)))
		}
	}
	ticks(unix.IFLA_BR_FORWARD_DELAY, c.ForwardDelay)
	ticks(unix.IFLA_BR_AGEING_TIME, c.Ageing)
	if c.STP != nil {
		data.AddRtAttr(unix.IFLA_BR_STP_STATE, nl.Uint32Attr(uint32(boolByte(*c.STP)[0])))
	}
	return data
}

// linkInfo nests the data of a kind.
func linkInfo(kind string, data *nl.RtAttr) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	info.AddChild(data)
	return info
}

func (h *Handle) createLink(name, kind string, mtu int, data *nl.RtAttr) error {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("link name %q: want 1 to %d bytes: %w", name, unix.IFNAMSIZ-1, unix.EINVAL)
	}
	parts := []nl.NetlinkRequestData{
		ifInfo(0, 0, 0),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		linkInfo(kind, data),
	}
	if mtu != 0 {
		parts = append(parts, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	return h.change(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, parts...)
}
