"""The SROS 2 policy against what the nodes really use, and that no node falls back to plain text.

The Fast DDS of the ROS 2 wheels has no security plug-ins: an encrypted run cannot be tested on it.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: scripts/with_ros")
pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.runner import command_line  # noqa: E402
from edge_atp_ros.system import SettingError, WarehouseArguments, secured, warehouse  # noqa: E402

pytestmark = pytest.mark.ros

SHARE = Path(__file__).resolve().parents[2] / "launch"
POLICIES = SHARE / "security" / "policies.xml"
GRAPH_TIMEOUT_S = 120.0
# Subscribed to with use_sim_time, published while it is played.
CLOCK = "/clock"
ACTION_PARTS = ("feedback", "status", "cancel_goal", "get_result", "send_goal")


def allowed(name: str) -> dict[str, set[str]]:
    """Names by kind that the enclave of a process allows."""
    (enclave,) = ET.parse(POLICIES).iterfind(f".//enclave[@path='/edge_atp/{name}']")
    found: dict[str, set[str]] = {}
    for group in enclave.iter():
        for verb in ("publish", "subscribe", "reply", "request", "execute"):
            if group.get(verb) == "ALLOW":
                found.setdefault(verb, set()).update(entry.text.strip() for entry in group)
    return found


def used(observer) -> dict[str, set[str]]:
    """Names by kind that the other nodes of the graph use."""
    verbs = {"publish": "publisher", "subscribe": "subscriber", "reply": "service"}
    verbs["request"] = "client"
    found: dict[str, set[str]] = {verb: set() for verb in (*verbs, "execute")}
    for node, namespace in observer.get_node_names_and_namespaces():
        if node == observer.get_name():
            continue
        for verb, kind in verbs.items():
            entries = getattr(observer, f"get_{kind}_names_and_types_by_node")(node, namespace)
            for name, _types in entries:
                action, separator, part = name.partition("/_action/")
                if separator:
                    assert part in ACTION_PARTS
                    found["execute"].add(action)
                else:
                    found[verb].add(name)
    return found


def differences(names: dict[str, set[str]], others: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Names of which the others have none alike; a * on either side stands for anything."""
    return {
        (verb, name)
        for verb, group in names.items()
        for name in group
        if not any(fnmatch(name, o) or fnmatch(o, name) for o in others.get(verb, ()))
    }


@pytest.mark.parametrize("name", ["vlm_node", "planner", "bag_player"])
def test_the_policy_allows_what_a_process_uses_and_nothing_else(start_process, name):
    table = {process.name: process for process in warehouse(WarehouseArguments(), SHARE)}
    start_process(command_line(table[name]), env=table[name].environment)
    wanted = allowed(name)
    context = rclpy.Context()
    rclpy.init(context=context)
    observer = rclpy.create_node("observer", context=context)
    try:
        end = time.monotonic() + GRAPH_TIMEOUT_S
        while True:
            found = used(observer)
            found["subscribe"] |= wanted.get("subscribe", set()) & {CLOCK}
            found["publish"] |= wanted.get("publish", set()) & {CLOCK}
            forbidden = differences(found, wanted)
            unused = differences(wanted, found)
            if not (forbidden or unused) or time.monotonic() > end:
                break
            time.sleep(0.1)
    finally:
        observer.destroy_node()
        rclpy.shutdown(context=context)
    assert not forbidden, "used, but not in the policy"
    assert not unused, "in the policy, but not used"


def keystore(root: Path, *names: str) -> Path:
    for name in names:
        (root / "enclaves" / "edge_atp" / name).mkdir(parents=True)
    return root


def test_every_process_gets_its_enclave_and_may_not_talk_in_the_clear(tmp_path):
    store = keystore(tmp_path, "vlm_node", "planner", "bag_player")
    arguments = WarehouseArguments(security=True, keystore=str(store))
    for process in warehouse(arguments, SHARE):
        assert process.environment["ROS_SECURITY_ENABLE"] == "true"
        assert process.environment["ROS_SECURITY_STRATEGY"] == "Enforce"
        assert process.environment["ROS_SECURITY_KEYSTORE"] == str(store)
        command = command_line(process)
        assert command[command.index("--enclave") + 1] == f"/edge_atp/{process.name}"


def test_a_missing_keystore_or_enclave_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ROS_SECURITY_KEYSTORE", raising=False)
    processes = warehouse(WarehouseArguments(), SHARE)
    with pytest.raises(SettingError, match="no keystore is named"):
        secured(processes, "")
    with pytest.raises(SettingError, match="does not exist"):
        secured(processes, str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match="no enclave /edge_atp/bag_player"):
        secured(processes, str(keystore(tmp_path, "vlm_node")))


def test_a_node_that_cannot_be_secure_does_not_start(start_process, tmp_path):
    store = keystore(tmp_path, "vlm_node", "planner", "bag_player")
    arguments = WarehouseArguments(security=True, keystore=str(store))
    vlm = warehouse(arguments, SHARE)[0]
    node = start_process(command_line(vlm), env=vlm.environment)
    assert node.wait() != 0
    assert "cannot start" in node.output()
    assert "security" in node.output().lower()
