// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// VNetHdr is struct virtio_net_hdr: what a packet carries beside its bytes.
type VNetHdr struct {
	Flags      uint8 // NeedsCsum
	GSOType    uint8 // GSO..., 0 for none
	HdrLen     uint16
	GSOSize    uint16
	CsumStart  uint16
	CsumOffset uint16
}

// From linux/virtio_net.h.
const (
	NeedsCsum  = 1
	dataValid  = 2
	GSOTCPv4   = 1
	GSOTCPv6   = 4
	GSOUDPL4   = 5
	GSOECN     = 0x80
	vnetHdrLen = 10
)

// vouched says that the kernel takes the transport checksum for right. (The
// flag of PACKET_AUXDATA would not do: it is also left over from an outer header.)
func (h VNetHdr) vouched() bool { return h.Flags&dataValid != 0 }

// partial says that the checksum is left to be filled in.
func (h VNetHdr) partial() bool { return h.Flags&NeedsCsum != 0 }

// Sighting is a frame as it came out at a point.
type Sighting struct {
	At   Point
	Out  bool // transmitted on the device, not received from it
	Type byte // PACKET_HOST, PACKET_OTHERHOST, ...
	// Opaque: a GSO packet of a kind that virtio_net_hdr has no word for; Data is empty.
	Opaque bool
	Hdr    VNetHdr
	Data   []byte // a tag that the kernel keeps beside the packet stands where it was on the wire
	Time   time.Time
}

// tap receives what passes a device.
type tap struct {
	at       Point
	outgoing bool // what is transmitted, else what is received
	fd       int
	buf      []byte
	oob      []byte
}

// openPacket opens a packet socket with virtio headers on a link of a namespace.
func openPacket(ns testenv.NS, ifname string, proto uint16, opts ...int) (int, error) {
	fd := -1
	err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		errs := []error{unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)}
		for _, o := range opts {
			errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_PACKET, o, 1))
		}
		if proto != 0 {
			errs = append(errs,
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<20),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
		}
		errs = append(errs, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifi.Index}))
		if err := errors.Join(errs...); err != nil {
			unix.Close(fd)
			return err
		}
		return nil
	})
	if err != nil {
		return -1, fmt.Errorf("open packet socket on %s in %s: %w", ifname, ns.Name(), err)
	}
	return fd, nil
}

func openTap(ns testenv.NS, ifname string, at Point, outgoing bool) (*tap, error) {
	opts := []int{unix.PACKET_AUXDATA}
	if !outgoing {
		opts = append(opts, unix.PACKET_IGNORE_OUTGOING)
	}
	var all [2]byte
	binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
	fd, err := openPacket(ns, ifname, binary.NativeEndian.Uint16(all[:]), opts...)
	if err != nil {
		return nil, err
	}
	return &tap{at: at, outgoing: outgoing, fd: fd, buf: make([]byte, 1<<17), oob: make([]byte, 256)}, nil
}

// drain appends everything that is waiting.
func (t *tap) drain(out []Sighting) ([]Sighting, error) {
	for {
		n, oobn, _, from, err := unix.Recvmsg(t.fd, t.buf, t.oob, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return out, t.lost()
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL):
			out = append(out, Sighting{At: t.at, Opaque: true})
			continue
		case err != nil:
			return out, fmt.Errorf("receive at %s: %w", t.at, err)
		case n < vnetHdrLen:
			return out, fmt.Errorf("receive at %s: %d bytes", t.at, n)
		}
		s := Sighting{At: t.at}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			s.Out = ll.Pkttype == unix.PACKET_OUTGOING
			s.Type = ll.Pkttype
		}
		if _, err := binary.Decode(t.buf[:vnetHdrLen], binary.NativeEndian, &s.Hdr); err != nil {
			return out, err
		}
		s.Data = append(make([]byte, 0, n-vnetHdrLen+4), t.buf[vnetHdrLen:n]...)
		if err := s.ancillary(t.oob[:oobn]); err != nil {
			return out, err
		}
		// What comes in at a host's underlay has gone out elsewhere, and the
		// kernel writes the ECN field into the very bytes that this socket shares.
		if t.outgoing && !s.Out {
			continue
		}
		out = append(out, s)
	}
}

func (s *Sighting) ancillary(oob []byte) error {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range cmsgs {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS:
			var ts unix.Timespec
			if _, err := binary.Decode(m.Data, binary.NativeEndian, &ts); err == nil {
				s.Time = time.Unix(ts.Unix())
			}
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA:
			var aux unix.TpacketAuxdata
			if len(m.Data) < int(unsafe.Sizeof(aux)) {
				continue
			}
			if _, err := binary.Decode(m.Data, binary.NativeEndian, &aux); err != nil {
				return err
			}
			if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 && len(s.Data) >= 12 {
				tag := binary.BigEndian.AppendUint16(nil, aux.Vlan_tpid)
				tag = binary.BigEndian.AppendUint16(tag, aux.Vlan_tci)
				s.Data = append(append(append([]byte{}, s.Data[:12]...), tag...), s.Data[12:]...)
				s.Hdr.CsumStart += 4
			}
		}
	}
	return nil
}

// lost is an error if the socket has dropped frames: then nothing can be compared.
func (t *tap) lost() error {
	st, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("read statistics at %s: %w", t.at, err)
	}
	if st.Drops != 0 {
		return fmt.Errorf("the socket at %s dropped %d frames: batch too large", t.at, st.Drops)
	}
	return nil
}

// inject sends a frame, and whatever happens to it on this CPU happens before
// inject returns: a veth hands it over in the softirq that ends the system call.
func inject(fd int, hdr VNetHdr, frame []byte) error {
	b := make([]byte, 0, vnetHdrLen+len(frame))
	b, err := binary.Append(b, binary.NativeEndian, hdr)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, append(b, frame...))
	return err
}
