"""Opens a decoder in blocks, and tells it what to cut of the next prompt."""

from __future__ import annotations

from collections.abc import Callable

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.in_llm import load_rule
from edge_atp.runtime.in_llm.base import OnLap
from edge_atp.runtime.in_llm.decoder import BlockDecoder, CutPlan
from edge_atp.runtime.kv_cache import KvCache
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.outputs import Prompt
from edge_atp.runtime.sessions.base import Session


def open_blocks(
    manifest: Manifest, open_graph: Callable[[str], Session]
) -> tuple[BlockDecoder, list[Session]]:
    """The decoder of a directory exported with --block-layers, and its blocks' sessions."""
    llm = manifest.llm
    count = -(-llm.layers // llm.block_layers)
    blocks = [open_graph(f"decoder.{number}") for number in range(count)]
    first = manifest.graph("decoder.0")
    exposes_queries = any(output.name.startswith("queries.") for output in first.outputs)
    decoder = BlockDecoder(
        blocks, lambda at: open_graph(f"probe.{at}"), llm, first.dialect, exposes_queries
    )
    return decoder, blocks


def plan_cuts(
    kv_cache: KvCache,
    prompt: Prompt,
    cut: InModelPruner | None,
    num_kept: int | None,
    on_lap: OnLap | None,
) -> None:
    """Cut visual tokens of the next prompt as ``cut`` says; None for not at all.

    Raises:
        ConfigError: the decoder is one graph, or ``cut`` does not fit it.
    """
    if isinstance(kv_cache, BlockDecoder):
        rule = load_rule(cut, prompt, num_kept) if cut else None
        kv_cache.plan = CutPlan.of(prompt, rule, on_lap)
    elif cut:
        raise ConfigError(
            f"{cut.name} cuts inside the language model, and this model directory holds it as one"
            " graph; export with --block-layers 1, or use a method with site post_encoder"
        )


def held_bytes(kv_cache: KvCache, manifest: Manifest) -> int:
    """Memory of the positions that a KV cache really holds, float32."""
    if isinstance(kv_cache, BlockDecoder):
        return kv_cache.held_bytes
    llm = manifest.llm
    return 2 * llm.layers * kv_cache.length * llm.kv_heads * llm.head_dim * 4
