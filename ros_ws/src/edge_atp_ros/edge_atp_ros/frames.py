"""Camera frames as they arrived: stored serialized, read when a question needs them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_atp.errors import ImageError
from edge_atp.types import Frame
from edge_atp_ros.convert import to_ns
from edge_atp_ros.images import to_rgb

_NS = 1_000_000_000


@dataclass(frozen=True)
class CameraImage:
    """One image: the message decoded, the pixels not yet."""

    camera: str
    message: Image | CompressedImage

    @property
    def header(self) -> Header:
        """Stamp and frame id as the camera gave them."""
        return self.message.header

    @property
    def stamp_ns(self) -> int:
        """Capture time by the publisher's clock."""
        return to_ns(self.message.header.stamp)

    def frame(self) -> Frame:
        """The pixels, converted to RGB.

        Raises:
            ImageError: empty, truncated or in an encoding that is not supported.
        """
        pixels = to_rgb(self.message)
        return Frame(pixels, self.stamp_ns, self.message.header.frame_id, self.camera)


@dataclass(frozen=True)
class StoredFrame:
    """One image message as it arrived.

    number: of this camera's messages, from 1; it names the frame.
    stamp_ns: capture time by the publisher's clock; None if the message is malformed.
    """

    camera: str
    number: int
    stamp_ns: int | None = field(compare=False)
    serialized: bytes = field(compare=False, repr=False)
    message_type: type = field(compare=False, repr=False)

    def read(self) -> CameraImage:
        """The message.

        Raises:
            ImageError: it is malformed.
        """
        try:
            return CameraImage(self.camera, deserialize_message(self.serialized, self.message_type))
        except Exception as error:  # the middleware documents no error class
            raise ImageError(
                f"camera {self.camera!r} sent a malformed {self.message_type.__name__} message"
                f" ({len(self.serialized)} bytes): {error}"
            ) from error


# One of each camera of a question, in the question's order.
FrameSet = tuple[StoredFrame, ...]


def read_stamp(serialized: bytes) -> int | None:
    """The stamp of a serialized message that begins with a header, nanoseconds.

    Reading the 12 bytes it takes (CDR: 4 of encapsulation, int32 seconds, uint32 nanoseconds)
    costs a thousandth of decoding an image that nobody may ask about.
    Returns:
        None if there are fewer bytes.
    """
    if len(serialized) < 12:
        return None
    order = "<" if serialized[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", serialized, 4)
    return int(seconds) * _NS + int(nanoseconds)
