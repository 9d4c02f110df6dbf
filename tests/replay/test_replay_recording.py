"""Which cameras a bag has, and errors of bags."""

import shutil

import pytest
from replay_run import BAG

from edge_atp.errors import BackendUnavailableError, BagError, ConfigError
from edge_atp.replay import bags, interfaces
from edge_atp.replay.recording import open_recording, parse_cameras


def cameras_of(path, typestore, **options):
    with open_recording(path, typestore, **options) as recording:
        return recording.topics


def test_the_shipped_bag_has_one_camera(typestore):
    with open_recording(BAG, typestore) as recording:
        images = list(recording.images())
        assert recording.topics == {"camera": "/camera/image_raw/compressed"}
        assert recording.num_images == len(images) > 100
        span_s = (images[-1].time_ns - images[0].time_ns) / 1e9
        assert recording.duration_s == pytest.approx(span_s, abs=0.01)
    assert images[0].frame().image.shape == (480, 640, 3)
    assert images[0].stamp_ns == images[0].time_ns


def test_a_single_file_is_a_bag_too(typestore):
    assert cameras_of(BAG / "warehouse_cell.mcap", typestore) == cameras_of(BAG, typestore)


def test_cameras_are_named_after_their_namespace(write_bag, typestore):
    topics = ["/cell/left/image_raw", "/cell/left/image_raw/compressed", "/right/image", "/top"]
    path = write_bag([(topic, 0) for topic in [*topics, "/vlm_node/mask_image"]])
    assert cameras_of(path, typestore, ignore="/vlm_node") == {
        "left": "/cell/left/image_raw",  # rather than its compressed copy
        "right": "/right/image",
        "top": "/top",
    }


def test_cameras_can_be_chosen(write_bag, typestore):
    path = write_bag([("/a/image_raw", 0), ("/a/image_rect", 0), ("/b/image/compressed", 0)])
    with pytest.raises(BagError, match="would both be camera 'a'; name the cameras with --camera"):
        cameras_of(path, typestore)
    chosen = parse_cameras(["raw=/a/image_raw", "b=b/image"])
    found = cameras_of(path, typestore, cameras=chosen)
    assert found == {"raw": "/a/image_raw", "b": "/b/image/compressed"}
    with pytest.raises(BagError, match=r"no images on /c \(camera 'c'\); image topics: /a/image_r"):
        cameras_of(path, typestore, cameras={"c": "/c"})


@pytest.mark.parametrize("words", [["a"], ["=b"], ["a="], ["a=/x", "a=/y"], ["a=/x", "b=x"]])
def test_a_wrong_camera_option_is_refused(words):
    with pytest.raises(ConfigError, match="camera '"):
        parse_cameras(words)


def test_a_bag_without_images_is_refused(tmp_path, typestore):
    from rosbags.rosbag2 import StoragePlugin, Writer

    path = tmp_path / "empty"
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/s", "std_msgs/msg/String", typestore=typestore)
        message = typestore.types["std_msgs/msg/String"](data="x")
        writer.write(connection, 1, typestore.serialize_cdr(message, connection.msgtype))
    with pytest.raises(BagError, match="empty holds no images"):
        cameras_of(path, typestore)


def test_a_missing_or_foreign_file_is_refused(tmp_path, typestore):
    with pytest.raises(BagError, match=r"bag .*absent does not exist"):
        cameras_of(tmp_path / "absent", typestore)
    (tmp_path / "note.mcap").write_text("not a bag")
    with pytest.raises(BagError, match=r"note\.mcap cannot be read"):
        cameras_of(tmp_path / "note.mcap", typestore)


def test_damage_is_named_with_its_place(tmp_path, typestore):
    path = tmp_path / "damaged"
    shutil.copytree(BAG, path)
    with (path / "warehouse_cell.mcap").open("r+b") as file:
        file.seek(2_000_000)  # within a chunk of images; the index stays whole
        file.write(b"\xff" * 200_000)
    with open_recording(path, typestore) as recording:
        says = "damaged is damaged at or after /camera/image_raw/compressed at second"
        with pytest.raises(BagError, match=says):
            list(recording.images())


def test_without_rosbags_the_remedy_is_named(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(bags.importlib, "import_module", absent)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'edge-atp\[bags\]'"):
        interfaces.load_typestore()


def test_definitions_come_from_a_sourced_workspace_first(tmp_path, monkeypatch):
    installed = tmp_path / "share" / "edge_atp_msgs" / "msg"
    installed.mkdir(parents=True)
    (installed / "Answer.msg").write_text("string text\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    assert interfaces.find_definitions() == installed
    monkeypatch.delenv("AMENT_PREFIX_PATH")
    assert interfaces.find_definitions().parts[-3:] == ("src", "edge_atp_msgs", "msg")
    monkeypatch.setattr(interfaces, "_CHECKOUT", tmp_path / "absent")
    with pytest.raises(BackendUnavailableError, match="source the ROS workspace"):
        interfaces.find_definitions()
