"""The table of processes of the simulated cell, as ``system`` is of the recorded one.

`launch/sim.launch.py` turns it into launch actions and ``runner`` into child processes. Standard
library only, as ``system``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_atp_ros.system import Process, existing, profile_environment, vlm_topics


@dataclass(frozen=True)
class SimArguments:
    """The launch arguments; "" means: not given.

    engine: inference backend. model: model directory, or the name of a shipped model.
    params_file: ROS parameter file for all nodes.
    seed: picks the scene and the orders.
    num_orders: how many orders the cell hands out at the start.
    rate: speed of simulated time; the machine may not keep up.
    hazard: person, cone or pallet on the floor at the start.
    planner: run the pick-and-place planner.
    """

    engine: str = ""
    model: str = ""
    params_file: str = ""
    namespace: str = ""
    seed: int = 3
    num_orders: int = 3
    rate: float = 1.0
    hazard: str = ""
    autostart: bool = True
    use_respawn: bool = False
    planner: bool = True
    log_level: str = "info"


def simulation(arguments: SimArguments, share: Path) -> list[Process]:
    """The processes of the simulated cell, all on simulated time.

    Args:
        arguments: launch arguments.
        share: folder that holds params/ and the DDS profile.
    Raises:
        SettingError: the parameter file does not exist.
    """
    params_file = existing("params_file", arguments.params_file or share / "params/sim.yaml")
    common: dict[str, Any] = {
        "namespace": arguments.namespace,
        "parameter_files": (str(params_file),),
        "environment": profile_environment(share),
        "log_level": arguments.log_level,
    }
    clock = {"use_sim_time": True}
    vlm = {name: value for name in ("engine", "model") if (value := getattr(arguments, name))}
    cell = {
        "seed": arguments.seed,
        "num_orders": arguments.num_orders,
        "rate": arguments.rate,
        "hazard": arguments.hazard,
    }
    processes = [
        Process(
            executable="vlm_node",
            name="vlm_node",
            parameters={"autostart": arguments.autostart, **clock, **vlm},
            respawn=arguments.use_respawn,
            **common,
        ),
        # It makes the clock, so it must not follow it; and a second one would start the cell anew.
        Process(executable="sim_cell", name="sim_cell", parameters=cell, **common),
    ]
    if arguments.planner:
        arm = ("goal_pose", "close_gripper", "arrived")
        processes.append(
            Process(
                executable="pick_and_place",
                name="pick_and_place",
                parameters=clock,
                remappings=(
                    *vlm_topics("vlm_node"),
                    *((f"~/{name}", f"sim_cell/{name}") for name in arm),
                    ("~/order", "orders"),
                ),
                respawn=arguments.use_respawn,
                **common,
            )
        )
    return processes
