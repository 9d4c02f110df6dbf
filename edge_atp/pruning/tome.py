"""ToMe: merge the most similar tokens inside each ViT layer.

Between attention and MLP the tokens are split alternately in two sides, every even token is
matched with its most similar odd one, and the r best pairs become one token each. The hook in
``edge_atp.hf`` calls ``match`` on the layer's keys and ``merge`` on its hidden states, and adds
``log_sizes`` to the attention logits.
Source: Bolya et al., "Token Merging: Your ViT But Faster", sec. 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.pruning.ops import as_float32, require_finite, top_k
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.pruning.similarity import cosine_cross
from edge_atp.types import Array


@dataclass(frozen=True)
class Matching:
    """Which tokens of one layer merge; indices into its n tokens.

    merged: (r,) even tokens that go, most similar pair first.
    targets: (r,) odd token each of them joins.
    kept: (n - r,) tokens that stay, ascending; CLS stays first.
    """

    merged: Array
    targets: Array
    kept: Array


def merge_count(num_tokens: int, requested: int, has_cls: bool = True) -> int:
    """Tokens one layer can merge: at most half of those that are not CLS."""
    return max(0, min(requested, (num_tokens - has_cls) // 2))


def match(keys: Array, num_merged: int, has_cls: bool = True) -> Matching:
    """Bipartite soft matching.

    Args:
        keys: (n, c) head-mean attention keys of the layer.
        num_merged: r wanted; see ``merge_count``.
        has_cls: token 0 never merges.
    Returns:
        Matching. Ties go to the lower even token, and to the lower odd target.
    Raises:
        ShapeError: a key is not finite.
    """
    xp = array_namespace(keys)
    num = keys.shape[0]
    count = merge_count(num, num_merged, has_cls)
    index = xp.arange(num, dtype=xp.int64, device=device(keys))
    even, odd = index[::2], index[1::2]
    if count == 0:
        return Matching(even[:0], even[:0], index)
    require_finite("keys", keys)
    # float32 does not give every pair of equal keys a cosine of exactly 1, and their ties would
    # hang on it; the product takes a quarter longer (0.5 ms at 577 tokens).
    similarity = cosine_cross(keys[::2, :], keys[1::2, :], exact=True)
    best = xp.max(similarity, axis=1)
    if has_cls:
        best[0] = float("-inf")
    going = top_k(best, count)
    targets = xp.take(odd, xp.take(xp.argmax(similarity, axis=1), going))
    merged = xp.take(even, going)
    stays = ~xp.any(index[:, None] == merged[None, :], axis=1)
    return Matching(merged, targets, index[stays])


def merge(tokens: Array, sizes: Array, matching: Matching) -> tuple[Array, Array]:
    """Replace each target by the size-weighted mean of itself and what joins it.

    Args:
        tokens: (n, d) hidden states.
        sizes: (n,) patches each token stands for; ones before the first merge.
        matching: of these n tokens.
    Returns:
        (n - r, d) tokens in the dtype given, and (n - r,) float32 sizes; order ``matching.kept``.
    """
    xp = array_namespace(tokens)
    sizes = as_float32(sizes)
    joins = xp.astype(matching.kept[:, None] == matching.targets[None, :], xp.float32)
    joined_sizes = xp.take(sizes, matching.merged)
    new_sizes = xp.take(sizes, matching.kept) + joins @ joined_sizes
    weighted = as_float32(tokens) * sizes[:, None]
    sums = xp.take(weighted, matching.kept, axis=0)
    sums = sums + joins @ xp.take(weighted, matching.merged, axis=0)
    return xp.astype(sums / new_sizes[:, None], tokens.dtype), new_sizes


def log_sizes(sizes: Array) -> Array:
    """(n,) bias of the attention logits of each key: a token of size s counts s times."""
    xp = array_namespace(sizes)
    return xp.log(as_float32(sizes))


def assign(owner: Array, matching: Matching) -> Array:
    """Follow every patch to the token that holds it after a merge.

    Args:
        owner: (N,) int64, index of the token that holds each patch; start with its own index.
        matching: of the tokens that ``owner`` refers to.
    Returns:
        (N,) int64, indices into ``matching.kept``.
    """
    xp = array_namespace(owner, matching.kept)
    joins = owner[:, None] == matching.merged[None, :]
    if matching.merged.shape[0]:
        moved = xp.take(matching.targets, xp.argmax(xp.astype(joins, xp.int64), axis=1))
        owner = xp.where(xp.any(joins, axis=1), moved, owner)
    return xp.astype(xp.searchsorted(matching.kept, owner), xp.int64)


@dataclass(frozen=True)
class Method(InModelPruner):
    """ToMe with a constant number of merges a layer.

    num_merged: r tokens merged in each layer; 0 spreads the merges evenly over the layers so
        that the budget asked for is met.
    num_layers: ViT layers that merge (23 of CLIP-L run when features are taken at layer -2).
    """

    site: ClassVar[str] = "in_encoder"

    num_merged: int = 0
    num_layers: int = 23

    def __post_init__(self) -> None:
        if self.num_merged < 0 or self.num_layers < 1:
            raise ConfigError(
                f"num_merged is {self.num_merged} and num_layers {self.num_layers}; they must be"
                " at least 0 and 1"
            )

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """Patches after the merge in each layer (layer l + 1 is the first to see fewer).

        The stage of layer l here is the merge *inside* layer l.
        """
        total = self.num_merged * self.num_layers
        if num_kept is not None:
            total = num_visual - num_kept
        if self.num_merged == 0 and num_kept is None:
            raise ConfigError("tome needs num_merged above 0, or a number of tokens to keep")
        stages, current = [], num_visual
        for layer in range(self.num_layers):
            wanted = total * (layer + 1) // self.num_layers - total * layer // self.num_layers
            current -= merge_count(current, wanted, has_cls=False)
            stages.append(Stage(layer, current))
        if num_kept is not None and current != num_kept:
            raise ConfigError(
                f"tome cannot go from {num_visual} to {num_kept} tokens in {self.num_layers}"
                " layers that merge at most half each; raise num_layers or keep more"
            )
        return Schedule(tuple(stages))

    def scored_rows(self, num_visual: int, num_text: int) -> int:
        """No row: matching uses head-mean keys, under 0.1 % of a layer."""
        del num_visual, num_text
        return 0
