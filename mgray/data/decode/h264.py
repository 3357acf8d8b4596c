"""What is read from H.264 packets without decoding them."""

from __future__ import annotations

_START_CODE = b"\x00\x00\x01"
_SLICES = (1, 5)


def is_reference(packet: bytes | memoryview, nal_length: int = 0) -> bool:
    """Whether other pictures may depend on this one: nal_ref_idc of its first slice (H.264).

    Args:
        nal_length: bytes of the length before each NAL unit; 0 where start codes stand before them (Annex B).
    """
    content, at = bytes(packet), 0
    while at >= 0:
        if nal_length:
            start = at + nal_length
            at = start + int.from_bytes(content[at:start], "big")
        else:
            at = content.find(_START_CODE, at)
            start = at = at + len(_START_CODE) if at >= 0 else -1
        if not 0 <= start < len(content):
            break
        if content[start] & 31 in _SLICES:
            return content[start] & 0x60 != 0
    return True  # no slice in it
