"""What a JPEG or PNG claims to be, read before anything is decoded.

A JPEG of 2 kB whose damaged header claims 32000 x 32000 pixels keeps OpenCV busy for 50 s and
takes 3 GB (seen with 5.0); a robot's node must not find that out by trying.
"""

from __future__ import annotations

import struct

from edge_atp.errors import ImageError

# The largest industrial sensors have 150 million.
MAX_PIXELS = 160_000_000
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Of a JPEG, 8 x 8 pixels take at least one bit: 512 pixels a byte. Twice that, to be safe.
_MAX_PIXELS_PER_JPEG_BYTE = 1024
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_LAST_MARKERS = frozenset({0xD9, 0xDA})


def check_claims(picture: bytes, name: str) -> None:
    """Refuse a picture that is neither JPEG nor PNG, or claims an absurd size.

    Args:
        picture: the whole file.
        name: what to call it in an error.
    Raises:
        ImageError: says what it claims.
    """
    if picture.startswith(_PNG):
        size, most = _png_size(picture), MAX_PIXELS
    elif picture.startswith(_JPEG):
        size = _jpeg_size(picture)
        most = min(MAX_PIXELS, _MAX_PIXELS_PER_JPEG_BYTE * len(picture))
    else:
        raise ImageError(f"{name} is neither JPEG nor PNG")
    if size is None:
        raise ImageError(f"{name} is truncated or damaged: its header gives no size")
    width, height = size
    if width * height > most:
        raise ImageError(
            f"{name} claims {width} x {height} pixels; {len(picture)} bytes of it hold at most"
            f" {most}: its header is damaged"
        )


def _png_size(picture: bytes) -> tuple[int, int] | None:
    if len(picture) < 24:
        return None
    width, height = struct.unpack_from(">II", picture, 16)
    return int(width), int(height)


def _jpeg_size(picture: bytes) -> tuple[int, int] | None:
    """(width, height) of the first frame header, found as libjpeg finds it."""
    at = len(_JPEG)
    while at + 9 <= len(picture):
        marker = picture[at + 1]
        if picture[at] != 0xFF or marker == 0xFF:  # garbage, or filling
            at += 1
        elif marker in _BARE_MARKERS:
            at += 2
        elif marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", picture, at + 5)
            return int(width), int(height)
        elif marker in _LAST_MARKERS:
            return None
        else:
            at += 2 + max(2, int.from_bytes(picture[at + 2 : at + 4], "big"))
    return None
