"""Render a scene state with MuJoCo: colour image and entity segmentation.

One compiled model for all scenes; a state is written into the model's arrays. The same state
gives the same pixels with the same GL driver. Not thread-safe: one renderer a process.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.mjcf import NUM_ARM_GEOMS, TEXTURE_SIZE, build_mjcf
from models.warehouse_tiny.scene import slot_centre_m
from models.warehouse_tiny.shapes import (
    GRIP_TO_TOP_M,
    Part,
    arm_parts,
    hazard_parts,
    item_height_m,
    item_parts,
)
from models.warehouse_tiny.state import Camera, Look, SceneState

HIDDEN_GROUP = 5


class RendererUnavailableError(RuntimeError):
    """MuJoCo or its off-screen GL library is missing; the message names what to install."""


@dataclass(frozen=True)
class RenderedFrame:
    """image: (H, W, 3) uint8 RGB; entities: (h, w) uint8 entity ids of ``vocabulary``."""

    image: np.ndarray
    entities: np.ndarray


def import_mujoco() -> Any:
    """MuJoCo with off-screen OpenGL.

    Raises:
        RendererUnavailableError: it or its GL library is missing.
    """
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    # OSMesa and Triton (which torch loads late) each bring an LLVM; loaded in this order they live
    # together, in the other order loading Triton crashes the process.
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
    try:
        import mujoco
        from mujoco.gl_context import GLContext  # noqa: F401
    except ImportError as error:
        raise RendererUnavailableError(
            f"MuJoCo cannot be loaded ({error}): pip install mujoco PyOpenGL, and for "
            "MUJOCO_GL=osmesa install the system package libosmesa6 (apt install libosmesa6)"
        ) from error
    except AttributeError as error:  # PyOpenGL without the shared library
        raise RendererUnavailableError(
            f"MUJOCO_GL={os.environ['MUJOCO_GL']} has no GL library ({error}): "
            "install the system package libosmesa6 (apt install libosmesa6)"
        ) from error
    return mujoco


class SceneRenderer:
    """Off-screen renderer for images up to ``max_width`` x ``max_height``."""

    def __init__(self, max_width: int = 640, max_height: int = 480) -> None:
        self._mj = mujoco = import_mujoco()
        self._gl = mujoco.GLContext(max_width, max_height)
        self._gl.make_current()
        self._model = mujoco.MjModel.from_xml_string(build_mjcf())
        self._model.vis.global_.offwidth = max_width
        self._model.vis.global_.offheight = max_height
        self._data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)
        self._scene = mujoco.MjvScene(self._model, maxgeom=400)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN_GROUP] = 0
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._ids = {self._model.geom(i).name: i for i in range(self._model.ngeom)}
        self._textures = {name: self._model.texture(name).id for name in ("floor", "wall")}
        self._types = {
            kind: int(getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}"))
            for kind in ("box", "cylinder", "sphere", "capsule")
        }
        self._entity_of_geom = self._map_entities()

    def close(self) -> None:
        """Free the GL context."""
        self._context.free()
        self._gl.free()

    def render(
        self,
        state: SceneState,
        width: int = v.IMAGE_SIZE,
        height: int = v.IMAGE_SIZE,
        camera: Camera | None = None,
        segmentation_scale: float = 1.0,
    ) -> RenderedFrame:
        """Draw a state.

        Args:
            state: what to draw.
            width, height: image size in pixels.
            camera: replaces the state's own camera.
            segmentation_scale: the entity map may be drawn smaller than the image, to save time.
        """
        self._apply(state, camera or state.look.camera)
        image = self._draw(width, height, segment=False)
        entities = self._draw(
            round(width * segmentation_scale), round(height * segmentation_scale), segment=True
        )
        return RenderedFrame(image, entities)

    def _draw(self, width: int, height: int, segment: bool) -> np.ndarray:
        mujoco = self._mj
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = segment
        flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = segment
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not segment
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        pixels = pixels[::-1]
        if not segment:
            return np.ascontiguousarray(pixels)
        ids = pixels[..., 0].astype(np.int32) + (pixels[..., 1].astype(np.int32) << 8)
        table = np.zeros(max(int(ids.max()), self._scene.ngeom) + 2, np.uint8)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                table[geom.segid + 1] = self._entity_of_geom[geom.objid]
        return table[ids]

    def _map_entities(self) -> np.ndarray:
        entity = np.zeros(self._model.ngeom, np.uint8)
        for name, index in self._ids.items():
            if name.startswith("item"):
                entity[index] = v.FIRST_ITEM + int(name[4:].split("_")[0])
            elif name.startswith("panel"):
                entity[index] = v.FIRST_PANEL + int(name[5:])
            elif name.startswith("hazard"):
                entity[index] = v.HAZARD
            elif name.startswith("arm") and int(name[3:]) >= NUM_ARM_GEOMS - 3:
                entity[index] = v.GRIPPER
        return entity

    def _apply(self, state: SceneState, camera: Camera) -> None:
        for slot, item in enumerate((*state.slots, state.held)):
            parts = item_parts(item) if item is not None else []
            if item is not None and slot < v.NUM_SLOTS:
                x, z = slot_centre_m(slot)
                origin = (x + item.offset_m[0], item.offset_m[1] - 0.12, z)
            elif item is not None:
                gx, gy, gz = state.gripper_m
                origin = (gx, gy, gz + GRIP_TO_TOP_M - item_height_m(item))
            yaw = item.yaw_rad if item is not None else 0.0
            self._place(f"item{slot}_", parts, origin if parts else (0, 0, 0), yaw)
        self._place("arm", arm_parts(state), (0, 0, 0), 0.0)
        look = state.look
        hazard = hazard_parts(state.hazard, look.person_rgb) if state.hazard else []
        self._place("hazard", hazard, (*state.hazard_m, 0.0), state.hazard_yaw_rad)
        clutter = [Part("box", c.half_size_m, c.position_m, c.rgb) for c in look.clutter]
        self._place("clutter", clutter, (0, 0, 0), 0.0)
        self._apply_look(look)
        self._aim(camera)

    def _place(self, prefix: str, parts: list[Part], origin: Any, yaw: float) -> None:
        """Turn the generic geoms ``prefix0..`` into the parts and hide the rest."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        index = 0
        while f"{prefix}{index}" in self._ids:
            geom = self._ids[f"{prefix}{index}"]
            if index >= len(parts):
                self._model.geom_group[geom] = HIDDEN_GROUP
                index += 1
                continue
            part = parts[index]
            x, y, z = part.position_m
            turn = yaw + part.yaw_rad
            c, s = np.cos(turn), np.sin(turn)
            self._model.geom_group[geom] = 0
            self._model.geom_type[geom] = self._types[part.kind]
            self._model.geom_size[geom] = part.half_size_m
            self._model.geom_rgba[geom] = (*part.rgb, 1.0)
            self._data.geom_xpos[geom] = (
                origin[0] + cos * x - sin * y,
                origin[1] + sin * x + cos * y,
                origin[2] + z,
            )
            self._data.geom_xmat[geom] = (c, -s, 0, s, c, 0, 0, 0, 1)
            index += 1

    def _apply_look(self, look: Look) -> None:
        model, data = self._model, self._data
        for name, geom in self._ids.items():
            if name.startswith(("post", "board")):
                model.geom_rgba[geom] = (*look.rack_rgb, 1.0)
            elif name.startswith("panel"):
                model.geom_rgba[geom] = (*look.panel_rgb, 1.0)
        tint = np.array(look.light_tint)
        model.light_diffuse[0] = look.light_diffuse * tint
        model.light_ambient[0] = 0.0
        model.vis.headlight.ambient[:] = look.ambient * tint
        position = np.array(look.light_position_m)
        data.light_xpos[0] = position
        direction = np.array([0.0, 0.0, 2.0]) - position
        data.light_xdir[0] = direction / np.linalg.norm(direction)
        rng = np.random.default_rng(look.texture_seed)
        for name, rgb in (("floor", look.floor_rgb), ("wall", look.wall_rgb)):
            self._upload(name, _texture(rng, np.array(rgb), look))

    def _upload(self, name: str, pixels: np.ndarray) -> None:
        texture = self._textures[name]
        start = self._model.tex_adr[texture]
        self._model.tex_data[start : start + pixels.size] = pixels.reshape(-1)
        self._mj.mjr_uploadTexture(self._model, self._context, texture)

    def _aim(self, camera: Camera) -> None:
        mujoco = self._mj
        self._model.vis.global_.fovy = camera.fovy
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FREE
        view.lookat[:] = camera.lookat_m
        view.distance = camera.distance_m
        view.azimuth = camera.azimuth
        view.elevation = camera.elevation
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            view,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        roll = np.deg2rad(camera.roll)
        for eye in self._scene.camera:
            forward, up = np.array(eye.forward), np.array(eye.up)
            eye.up = np.cos(roll) * up + np.sin(roll) * np.cross(forward, up)


def _texture(rng: np.random.Generator, rgb: np.ndarray, look: Look) -> np.ndarray:
    """(S, S, 3) uint8: noise (kind 0), checks (1) or stripes (2) around a base colour."""
    size = TEXTURE_SIZE
    if look.texture_kind == 0:
        pattern = rng.random((size, size))
    elif look.texture_kind == 1:
        rows, columns = np.indices((size, size)) // 16
        pattern = ((rows + columns) % 2).astype(float)
    else:
        pattern = np.broadcast_to((np.arange(size) // 8 % 2).astype(float), (size, size))
    shade = rgb * (1.0 + look.texture_contrast * (pattern[..., None] - 0.5) * 2.0)
    return (np.clip(shade, 0.0, 1.0) * 255).astype(np.uint8)
