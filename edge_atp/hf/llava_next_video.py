"""LLaVA-NeXT-Video: LLaVA-NeXT for images, frames with spatially pooled patches for videos.

Frames are pooled before the projector, so a video's token stands for a square of patches; signals
are averaged over the same square. The per-tile budget of a video is per frame.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from edge_atp.hf.family import (
    Family,
    Host,
    ImageLayout,
    Module,
    Tensor,
    TokenGroup,
    VisionCall,
    square_grid,
)
from edge_atp.hf.llava import llava_host
from edge_atp.hf.llava_next import Model as LlavaNext


class Model(Family):
    """Images as in LLaVA-NeXT, videos frame by frame."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)

    def __init__(self) -> None:
        self._images = LlavaNext()

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        return llava_host(model)

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """Frames of each video, or tiles of each image."""
        if call.modality == "image":
            return self._images.layout(host, call, tiles, tokens, per_tile)
        videos = len(call.arguments["pixel_values_videos"])
        return frames_layout(videos, tiles // videos, tokens, per_tile)

    def pool(self, host: Host, call: VisionCall, signal: Tensor) -> Tensor:
        """Average the patches that a video token was pooled from."""
        if call.modality == "image":
            return signal
        side = round(signal.shape[-1] ** 0.5)
        stride = host.model.config.spatial_pool_stride
        grid = signal.unflatten(-1, (side, side)).flatten(0, -3)[:, None]
        pooled = torch.nn.functional.avg_pool2d(grid.float(), stride, stride)
        return pooled.flatten(1).view(*signal.shape[:-1], -1)

    def finish(self, host: Host, call: VisionCall, output: Any) -> None:
        """Images drop idle newline tokens; videos have none."""
        if call.modality == "image":
            self._images.finish(host, call, output)


def frames_layout(videos: int, frames: int, tokens: int, per_frame: bool) -> list[ImageLayout]:
    """Videos of equal length, one group a frame or one a video."""
    flat = torch.arange(videos * frames * tokens).view(videos, frames, tokens)
    if per_frame:
        grid = square_grid(tokens)
        groups = [tuple(TokenGroup(frame, grid) for frame in video) for video in flat]
    else:
        groups = [(TokenGroup(video.flatten()),) for video in flat]
    return [ImageLayout(group, frames * tokens) for group in groups]
