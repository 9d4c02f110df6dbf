"""The simulated cell needs MuJoCo with its off-screen GL library, and the built workspace."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from models.warehouse_tiny.render import RendererUnavailableError, import_mujoco


@pytest.fixture(scope="session", autouse=True)
def mujoco():
    try:
        return import_mujoco()
    except RendererUnavailableError as error:
        pytest.skip(str(error))
