"""What a link carries for a payload: packets have headers. No torch, no I/O."""

from __future__ import annotations

MTU_BYTES = 1500  # of Ethernet and of most paths through the internet
IP_BYTES = 20  # IPv4 (RFC 791)
TCP_BYTES = 32  # 20, and 12 of timestamps (RFC 7323), which Linux sends
ETHERNET_BYTES = 14  # addresses and type; as an interface counts, without preamble, checksum and gap


def wire_share(mtu: int = MTU_BYTES, link: int = ETHERNET_BYTES) -> float:
    """Bytes on the link over bytes of payload in full TCP segments: 1514 / 1448 = 1.046 with 1500-byte packets.

    Acknowledgements ride on the packets of the other way, where both ways are in use as in a ring.

    Args:
        mtu: largest IP packet, in bytes.
        link: header bytes of the link's own, a packet.
    """
    return (mtu + link) / (mtu - IP_BYTES - TCP_BYTES)
