"""Kinds of JPEG that Pillow does not read."""

from __future__ import annotations

_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_PROCESSES = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "with arithmetic coding",
    0xCA: "with arithmetic coding",
    0xCB: "lossless, with arithmetic coding",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
    0xF7: "JPEG-LS",
}
"""Start-of-frame markers of other processes than baseline, extended and progressive (ITU-T T.81, table B.1)."""


def unusual(data: bytes) -> str | None:
    """What sets the kind of a JPEG apart from those that every reader knows, such as "12 bits"; None: nothing does."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker in _PROCESSES or marker in (0xC0, 0xC1, 0xC2):
            bits, colours = data[at + 4], data[at + 9]
            if marker in _PROCESSES:
                return _PROCESSES[marker]
            if bits != 8:
                return f"{bits} bits"
            return None if colours in (1, 3, 4) else f"{colours} components"
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
