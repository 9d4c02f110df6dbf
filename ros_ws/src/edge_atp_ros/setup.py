"""Builds the ROS 2 package `edge_atp`.

The core library owns the Python name `edge_atp`; the module and the distribution built here are
therefore called `edge_atp_ros`, and only what ROS looks up carries the package's name: the
ament index entry, share/edge_atp and lib/edge_atp.
"""

from collections import defaultdict
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "edge_atp"
MODULE = "edge_atp_ros"
LAUNCH_FOLDER = Path("launch")  # a symlink to the repository's launch/


def launch_data_files() -> list[tuple[str, list[str]]]:
    """List launch files, parameters, bags and the DDS profile, laid out as in the source.

    Raises:
        FileNotFoundError: no launch file is there. A workspace copied without the symlink's
            target would otherwise build without an error and install nothing to launch.
    """
    if not list(LAUNCH_FOLDER.glob("*.launch.py")):
        raise FileNotFoundError(
            f"{LAUNCH_FOLDER.absolute()} has no *.launch.py: it links to the repository's "
            "launch/, so build inside a complete checkout"
        )
    files = [*LAUNCH_FOLDER.glob("*.launch.py"), *LAUNCH_FOLDER.glob("*.xml")]
    files += LAUNCH_FOLDER.glob("params/*.yaml")
    files += [path for path in LAUNCH_FOLDER.glob("security/*") if path.is_file()]
    files += [path for path in LAUNCH_FOLDER.glob("bags/**/*") if path.is_file()]

    by_folder = defaultdict(list)
    for path in sorted(files):
        by_folder[f"share/{PACKAGE}/{path.parent.as_posix()}"].append(path.as_posix())
    return sorted(by_folder.items())


setup(
    name=MODULE,
    version="0.1.0",
    packages=find_packages(include=[MODULE, f"{MODULE}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # Sourcing the workspace sets the Fast DDS profile unless the user has one (colcon.pkg).
        (f"share/{PACKAGE}/hook", ["hook/fastdds_profile.dsv"]),
        *launch_data_files(),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="edge_atp maintainers",
    maintainer_email="maintainers@edge-atp.dev",
    description="ROS 2 nodes and launch files of edge_atp",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            f"vlm_node = {MODULE}.vlm_node:main",
            f"bag_player = {MODULE}.bag_player:main",
            f"planner = {MODULE}.planner:main",
            f"pick_and_place = {MODULE}.pick_and_place:main",
            f"bag_questions = {MODULE}.bag_questions:main",
            f"sim_cell = {MODULE}.sim_cell:main",
            f"viewer = {MODULE}.viewer:main",
        ],
    },
)
