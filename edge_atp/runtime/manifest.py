"""``manifest.json``: what a model directory contains and how its graphs are to be used.

Plain data, written by ``python -m export`` and read here. N patches of width D, P the joint
image-text space, H the width of the language model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_atp.errors import ArtifactError
from edge_atp.runtime.schema import parse, to_json

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1
RESIZE_RULES = ("shortest_edge_center_crop", "squash")
CHANNEL_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output; a string in ``shape`` is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[Any, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph: its role, the dialect it is written in, and its interface."""

    role: str
    file: str
    dialect: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileSpec:
    """One file of the directory, path relative to it, with its checksum."""

    role: str
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class SourceSpec:
    """Where the weights came from: checkpoint name, revision, combined hash of its tensors."""

    model: str
    architecture: str
    sha256: str
    revision: str = ""
    text_tower: str = ""


@dataclass(frozen=True)
class ExporterSpec:
    """Versions of what wrote the directory."""

    edge_atp: str
    onnx: str
    opset: int
    packages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PreprocessSpec:
    """How an image becomes ``pixel_values`` (1, 3, size, size)."""

    size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str = "rgb"
    rescale: float = 1.0 / 255.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.resize not in RESIZE_RULES:
            raise ArtifactError(
                f"preprocess.resize is {self.resize!r}; choose one of {', '.join(RESIZE_RULES)}"
            )
        if self.channel_order not in CHANNEL_ORDERS:
            raise ArtifactError(
                f"preprocess.channel_order is {self.channel_order!r};"
                f" choose one of {', '.join(CHANNEL_ORDERS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std, default=0) <= 0:
            raise ArtifactError("preprocess.mean and .std must hold 3 values, std positive")


@dataclass(frozen=True)
class GridSpec:
    """Rows and columns of the patch grid."""

    rows: int
    cols: int


@dataclass(frozen=True)
class VisionSpec:
    """The vision encoder.

    feature_layer: index into the hidden states of the layer the projector consumes (-2: last
        but one); embed_layer: the same for the joint-space patch embeddings.
    group_layers: layers per ``vision_group`` graph, 0 where the encoder is one graph only.
    cut_layers, cut_kept: layers behind whose attention ``vision_cut`` drops patches, and how many
        patches each cut leaves; empty where there is no such graph.
    intermediate: width of the MLP, 0 where unknown; nothing but the count of FLOPs reads it.
    """

    num_patches: int
    patch_grid: GridSpec
    image_size: int
    feature_layer: int
    feature_dim: int
    embed_layer: int = -1
    embed_dim: int = 0
    layers: int = 0
    heads: int = 0
    group_layers: int = 0
    intermediate: int = 0
    cut_layers: tuple[int, ...] = ()
    cut_kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.cut_layers) != len(self.cut_kept):
            raise ArtifactError(
                f"vision.cut_layers has {len(self.cut_layers)} entries and vision.cut_kept"
                f" {len(self.cut_kept)}; each cut needs both"
            )
        grid = self.patch_grid
        if grid.rows * grid.cols != self.num_patches or self.num_patches < 1:
            raise ArtifactError(
                f"vision.num_patches is {self.num_patches}, but vision.patch_grid is"
                f" {grid.rows} x {grid.cols}"
            )

    @property
    def consumed_layers(self) -> int:
        """Layers that the projector's input has been through."""
        layer = self.feature_layer
        return layer if layer >= 0 else self.layers + 1 + layer


@dataclass(frozen=True)
class SelectionSpec:
    """Defaults of token selection for this model; a question may override most of them.

    keep_max: largest number of visual tokens of one image the decoder was exported for.
    position_ids: "compact" numbers the kept tokens without gaps.
    """

    method: str
    alpha: float
    relevance_source: str
    keep_ratio: float
    keep_max: int
    tie_break: str = "lowest_index"
    position_ids: str = "compact"


@dataclass(frozen=True)
class LlmSpec:
    """The language model's shape.

    max_kv: the longest sequence it accepts; block_layers: layers per decoder graph, 0 for one.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    rope_theta: float
    max_kv: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    intermediate: int = 0
    sliding_window: int | None = None
    block_layers: int = 0

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ArtifactError(
                f"llm.heads is {self.heads}, not a multiple of llm.kv_heads {self.kv_heads}"
            )


@dataclass(frozen=True)
class PromptSpec:
    """The prompt: ``template`` has one ``{image}`` and one ``{question}`` slot.

    Several images fill the slot one after the other, ``image_separator`` between them.
    max_text_tokens bounds the tokens of one question that are not image tokens. turn_template is
    the template of a question that follows an answer; "" derives it from ``template``.
    """

    template: str
    image_token: str
    image_token_id: int
    max_text_tokens: int
    image_separator: str = "\n"
    turn_template: str = ""

    def __post_init__(self) -> None:
        for slot in ("{image}", "{question}"):
            for name in ("template", "turn_template"):
                template = getattr(self, name)
                if template.count(slot) != 1 and (template or name == "template"):
                    raise ArtifactError(f"prompt.{name} must contain {slot} exactly once")


@dataclass(frozen=True)
class TextTowerSpec:
    """The CLIP text encoder: longest input in tokens, and its end-of-text token.

    layers, hidden, heads, intermediate: its shape, 0 where unknown; nothing but the count of
        FLOPs reads it.
    """

    context_length: int
    bos_token_id: int
    eos_token_id: int
    embed_dim: int
    layers: int = 0
    hidden: int = 0
    heads: int = 0
    intermediate: int = 0


@dataclass(frozen=True)
class PrecisionSpec:
    """What graphs compute in, and how weights are stored in the files.

    backends: those that have the operators it is written in, by name; empty for all.
    """

    compute: str
    weight_storage: str
    quantisation: dict[str, Any] = field(default_factory=dict)
    backends: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineSpec:
    """One TensorRT engine built from a graph of this directory."""

    role: str
    file: str
    tensorrt_version: str
    compute_capability: str
    onnx_sha256: str
    profiles: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``; see the field types. ``parity`` holds measured numbers."""

    format_version: int
    model_id: str
    source: SourceSpec
    exporter: ExporterSpec
    graphs: tuple[GraphSpec, ...]
    files: tuple[FileSpec, ...]
    preprocess: PreprocessSpec
    vision: VisionSpec
    selection: SelectionSpec
    llm: LlmSpec
    prompt: PromptSpec
    precision: PrecisionSpec
    text_tower: TextTowerSpec | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    engines: tuple[EngineSpec, ...] = ()

    def graph(self, role: str) -> GraphSpec:
        """The graph of that role.

        Raises:
            ArtifactError: the directory has none.
        """
        for graph in self.graphs:
            if graph.role == role:
                return graph
        roles = ", ".join(g.role for g in self.graphs)
        raise ArtifactError(f"{FILE_NAME} lists no {role!r} graph (it has {roles}); export again")


def read_manifest(path: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        ArtifactError: missing, not JSON, unknown format, or a wrong field (named).
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} is missing; {path.parent} is no model directory"
            " (make one with `python -m export`)"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); export the model again") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format_version is {version!r}; this version of edge_atp reads"
            f" {FORMAT_VERSION}. Export the model again or install the matching edge_atp"
        )
    return parse(Manifest, raw, FILE_NAME)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` in a stable order, readable in a diff."""
    text = json.dumps(to_json(manifest), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
