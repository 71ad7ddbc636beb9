// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"encoding/binary"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Expressions as the kernel dumps them, for what the running one may lack.

func attr(typ uint16, data []byte) []byte {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: typ, Data: data}})
	if err != nil {
		panic(err)
	}
	return b
}

func num(typ uint16, n uint32) []byte { return attr(typ, binary.BigEndian.AppendUint32(nil, n)) }

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func expression(kind string, attrs ...[]byte) []byte {
	return attr(unix.NFTA_LIST_ELEM, join(attr(unix.NFTA_EXPR_NAME, []byte(kind+"\x00")), attr(unix.NFTA_EXPR_DATA, join(attrs...))))
}

func data(typ uint16, val ...byte) []byte { return attr(typ, attr(unix.NFTA_DATA_VALUE, val)) }

func payloadTo(reg, base, offset, size uint32) []byte {
	return expression("payload", num(unix.NFTA_PAYLOAD_DREG, reg), num(unix.NFTA_PAYLOAD_BASE, base), num(unix.NFTA_PAYLOAD_OFFSET, offset), num(unix.NFTA_PAYLOAD_LEN, size))
}

func metaTo(reg, key uint32) []byte {
	return expression("meta", num(unix.NFTA_META_DREG, reg), num(unix.NFTA_META_KEY, key))
}

func equals(reg uint32, val ...byte) []byte {
	return expression("cmp", num(unix.NFTA_CMP_SREG, reg), num(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ), data(unix.NFTA_CMP_DATA, val...))
}

func verdict(code int32) []byte {
	return expression("immediate", num(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		attr(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VERDICT, num(unix.NFTA_VERDICT_CODE, uint32(code)))))
}

func TestExpressions(t *testing.T) {
	out, _ := outer4.packets()
	inBridge := packet{bridge: "br-mgmt"}
	port := func(reg uint32) []byte { return payloadTo(reg, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2) }
	for _, c := range []struct {
		name  string
		p     packet
		exprs []byte
		does  effect
		never bool
	}{
		{"nothing", out, nil, passes, false},
		{"drop", out, verdict(nfDrop), judges, false},
		{"an expression of the future", out, expression("teleport"), judges, false},
		{"before it a condition", out, join(port(1), equals(1, 0, 53), expression("teleport")), judges, true},
		{"after it a condition", out, join(expression("teleport"), port(1), equals(1, 0, 53)), judges, false},
		{"flowtable", out, expression("flow_offload"), passes, false},
		{"flowtable with a counter", out, join(expression("counter"), expression("flow_offload")), passes, false},
		{"flowtable, then drop", out, join(expression("flow_offload"), verdict(nfDrop)), judges, false},
		{"another bridge", inBridge, join(metaTo(1, unix.NFT_META_BRI_IIFNAME), equals(1, []byte("virbr0\x00")...), verdict(nfDrop)), judges, true},
		{"this bridge", inBridge, join(metaTo(1, unix.NFT_META_BRI_IIFNAME), equals(1, []byte("br-mgmt\x00")...), verdict(nfDrop)), judges, false},

		{"register used again", out, join(port(1), payloadTo(1, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2), equals(1, 0, 53), verdict(nfDrop)), judges, false},
		{"register overwritten by what is not followed", out, join(port(1), expression("numgen"), equals(1, 0, 53), verdict(nfDrop)), judges, false},
		{"register overwritten in part", out, join(payloadTo(1, unix.NFT_PAYLOAD_NETWORK_HEADER, 12, 8), metaTo(unix.NFT_REG32_00+1, unix.NFT_META_MARK),
			equals(1, 10, 0, 0, 1, 0, 0, 0, 0), verdict(nfDrop)), judges, false},
		{"32-bit registers are apart", out, join(payloadTo(unix.NFT_REG32_00, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2), payloadTo(unix.NFT_REG32_00+1, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2),
			equals(1, 0, 53), verdict(nfDrop)), judges, true},
		{"longer than what was loaded", out, join(port(1), equals(1, 0x12, 0xb5, 1, 1), verdict(nfDrop)), judges, false},
		{"beyond what is known", out, join(payloadTo(1, unix.NFT_PAYLOAD_NETWORK_HEADER, 1<<31, 4), equals(1, 1, 2, 3, 4), verdict(nfDrop)), judges, false},
		{"mask that changes bits", out, join(port(1), expression("bitwise", num(unix.NFTA_BITWISE_SREG, 1), num(unix.NFTA_BITWISE_DREG, 1), data(unix.NFTA_BITWISE_MASK, 0xff, 0xff), data(unix.NFTA_BITWISE_XOR, 0x12, 0xb5)),
			equals(1, 0, 0), verdict(nfDrop)), judges, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parseRule(c.exprs, func(string) *chain { return nil })
			if err != nil || r.does != c.does || r.never(c.p) != c.never {
				t.Errorf("does %d, never %v, %v; want %d, %v", r.does, r.never(c.p), err, c.does, c.never)
			}
		})
	}
}

// TestCovers: a chain may stand at devices by prefix.
func TestCovers(t *testing.T) {
	c := chain{devs: []string{"eth0", "wan*"}}
	for dev, want := range map[string]bool{"eth0": true, "eth01": false, "wan": true, "wan0": true, "lan": false} {
		if c.covers(dev) != want {
			t.Errorf("covers %s: %v", dev, !want)
		}
	}
}

// FuzzParsers: whatever the bytes, an answer or an error.
func FuzzParsers(f *testing.F) {
	f.Add(join(metaTo(1, unix.NFT_META_IIFNAME), equals(1, []byte("eth0\x00")...), verdict(unix.NFT_JUMP)))
	f.Add(make([]byte, xtInfoLen+ip6Tables.size+64))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, in := outer6.packets()
		if r, err := parseRule(b, func(string) *chain { return nil }); err == nil {
			r.never(out)
			r.never(in)
		}
		_, _, _ = parseChain(netlink.Message{Data: b})
		_, _ = parseEbtables("filter", b)
		if len(b) < xtInfoLen {
			return
		}
		for _, x := range []*xtables{&ipTables, &ip6Tables} {
			if chains, err := x.parse("filter", b[:xtInfoLen], b[xtInfoLen:]); err == nil {
				(&Rules{legacy: chains}).Outer(outer4)
			}
		}
	})
}
