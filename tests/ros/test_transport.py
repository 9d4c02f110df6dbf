"""Raw camera images between two processes: what the Fast DDS profile is for.

The publisher and the subscriber are this file run as a program, so that nothing of the project
but the profile takes part.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run through scripts/with_ros")

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "launch" / "fastdds_large_images.xml"
LITTLE_MEMORY_PROFILE = ROOT / "launch" / "fastdds_little_memory.xml"
NAMESPACE = "{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}"
SEGMENT_BYTES = 67_108_864
WIDTH, HEIGHT = 640, 480
NUM_IMAGES = 100
RATE_HZ = 30.0
# Without a profile 6 to 58 of a stream's images arrive: of ten such streams none is whole, either.
MOST_STREAMS = 10
# What ListQueries may take, a call that is held up included.
SERVICE_MS = 100

# Two processes with a segment of 64 MB each, and room for whatever else is running.
NEEDED_SHM_BYTES = 3 * SEGMENT_BYTES


def publish() -> None:
    """Publish NUM_IMAGES raw images with sensor-data QoS once somebody listens."""
    import array

    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, "image", qos_profile_sensor_data)
    while publisher.get_subscription_count() == 0:
        rclpy.spin_once(node, timeout_sec=0.02)
    time.sleep(0.5)  # the subscriber has to have matched as well
    image = Image(width=WIDTH, height=HEIGHT, step=WIDTH * 3, encoding="rgb8")
    image.data = array.array("B", bytes(range(256)) * (WIDTH * HEIGHT * 3 // 256))
    due = time.monotonic()
    for number in range(NUM_IMAGES):
        image.header.frame_id = str(number)
        publisher.publish(image)
        due += 1 / RATE_HZ
        time.sleep(max(0.0, due - time.monotonic()))
    image.header.frame_id = "end"
    while publisher.get_subscription_count() > 0:
        publisher.publish(image)
        rclpy.spin_once(node, timeout_sec=0.1)
    rclpy.try_shutdown()


def subscribe() -> None:
    """Print the numbers of the images that arrived, whole, until the publisher says end."""
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    # Sensor data but for the depth: this is about the transport, and on a busy machine the
    # reader's own queue of five could overflow.
    qos = QoSProfile(depth=NUM_IMAGES, reliability=ReliabilityPolicy.BEST_EFFORT)
    arrived: list[str] = []

    def on_image(image: Image) -> None:
        if len(image.data) == WIDTH * HEIGHT * 3 and image.data[-1] == 255:
            arrived.append(image.header.frame_id)

    rclpy.init()
    node = rclpy.create_node("viewer")
    node.create_subscription(Image, "image", on_image, qos)
    while "end" not in arrived:
        rclpy.spin_once(node, timeout_sec=0.1)
    print("arrived", *(number for number in arrived if number != "end"), "end")
    rclpy.try_shutdown()


@pytest.mark.skipif(
    os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp",
    reason="another RMW implementation than Fast DDS is chosen",
)
@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(
            PROFILE,
            marks=pytest.mark.skipif(
                shutil.disk_usage("/dev/shm").total < NEEDED_SHM_BYTES,
                reason=f"/dev/shm is smaller than {NEEDED_SHM_BYTES >> 20} MB"
                " (containers: --shm-size=512m)",
            ),
        ),
        LITTLE_MEMORY_PROFILE,
    ],
    ids=lambda profile: profile.stem,
)
def test_every_raw_image_arrives_with_the_profile(start_process, profile):
    """In one of several streams: no transport gets images through to a reader that is starved."""
    expected = [str(number) for number in range(NUM_IMAGES)]
    arrived: list[list[str]] = []
    while len(arrived) < MOST_STREAMS and expected not in arrived:
        arrived.append(stream(start_process, profile))
    assert expected in arrived, [len(numbers) for numbers in arrived]


def stream(start_process, profile: Path) -> list[str]:
    """Numbers of the images that arrive, of one stream between two processes."""
    chosen = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(profile)}
    viewer = start_process([sys.executable, __file__, "subscribe"], name="viewer", env=chosen)
    camera = start_process([sys.executable, __file__, "publish"], name="camera", env=chosen)

    words = viewer.wait_for(" end\n", timeout_s=120).split()

    # A broken profile is ignored with an error on the publisher's output.
    assert "Error" not in camera.output()
    camera.wait(timeout_s=120)
    return words[words.index("arrived") + 1 : -1]


def test_the_segment_holds_two_4k_images():
    profile = ET.parse(PROFILE).getroot()
    transports = {
        transport.findtext(f"{NAMESPACE}type"): transport
        for transport in profile.iter(f"{NAMESPACE}transport_descriptor")
    }
    image_bytes = 3840 * 2160 * 3

    assert int(transports["SHM"].findtext(f"{NAMESPACE}segment_size")) == SEGMENT_BYTES
    assert 2 * image_bytes < SEGMENT_BYTES
    assert int(transports["SHM"].findtext(f"{NAMESPACE}maxMessageSize")) > image_bytes


def test_the_profile_uses_every_transport_it_describes_and_no_other():
    profile = ET.parse(PROFILE).getroot()
    described = {
        transport.findtext(f"{NAMESPACE}transport_id")
        for transport in profile.iter(f"{NAMESPACE}transport_descriptor")
    }
    rtps = profile.find(f"{NAMESPACE}participant/{NAMESPACE}rtps")
    used = {entry.text for entry in rtps.find(f"{NAMESPACE}userTransports")}

    assert used == described
    assert rtps.findtext(f"{NAMESPACE}useBuiltinTransports") == "false"


@pytest.mark.parametrize("path", [PROFILE, LITTLE_MEMORY_PROFILE], ids=lambda path: path.stem)
def test_what_was_not_taken_is_soon_sent_again(path):
    """By every writer; with Fast DDS's own 3 s an answer or a service call could be as late."""
    writer = ET.parse(path).getroot().find(f"{NAMESPACE}data_writer")
    period = writer.find(f"{NAMESPACE}times/{NAMESPACE}heartbeatPeriod")
    seconds = int(period.findtext(f"{NAMESPACE}sec"))
    nanoseconds = int(period.findtext(f"{NAMESPACE}nanosec"))

    assert writer.get("is_default_profile") == "true"
    assert 0 < seconds * 10**9 + nanoseconds <= 10**8


@pytest.mark.parametrize("path", [PROFILE, LITTLE_MEMORY_PROFILE], ids=lambda path: path.stem)
def test_meeting_a_new_client_holds_services_up_for_less_than_they_may_take(path):
    """Opening a healthy port waits up to a third of the timeout (Fast DDS's issue 6535)."""
    timeout_ms = int(ET.parse(path).getroot().findtext(f".//{NAMESPACE}healthy_check_timeout_ms"))

    assert timeout_ms / 3 <= SERVICE_MS / 2


if __name__ == "__main__":
    {"publish": publish, "subscribe": subscribe}[sys.argv[1]]()
