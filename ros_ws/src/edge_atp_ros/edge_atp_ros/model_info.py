"""The ``ModelInfo`` message: what is loaded, its limits and its defaults."""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp_msgs.msg import ModelInfo, PruneConfig

from edge_atp.pipeline import Pipeline, runnable_methods
from edge_atp.runtime.manifest import FILE_NAME
from edge_atp.runtime.model_dir import file_sha256
from edge_atp_ros.convert import to_duration


def manifest_sha256(pipeline: Pipeline) -> str:
    """Which export is loaded; read it at once, the files may be replaced while the node runs.

    Raises:
        ArtifactError: the manifest is gone already.
    """
    return file_sha256(pipeline.engine.directory.path / FILE_NAME)


def model_info(pipeline: Pipeline, sha256: str, cameras: Sequence[str]) -> ModelInfo:
    """Describe a loaded pipeline; the header is left to the caller.

    Args:
        pipeline: the loaded model and the defaults of questions.
        sha256: from ``manifest_sha256``.
        cameras: names of the node's cameras.
    """
    manifest, config = pipeline.manifest, pipeline.config
    # A backend is called <backend>-<device>, such as "ort-cpu".
    backend, _, device = pipeline.engine.backend.partition("-")
    return ModelInfo(
        model_id=manifest.model_id,
        source=manifest.source.model,
        family=manifest.source.architecture,
        precision=manifest.precision.compute,
        backend=backend,
        device=device,
        manifest_sha256=sha256,
        image_width=manifest.preprocess.size,
        image_height=manifest.preprocess.size,
        grid_rows=pipeline.grid.rows,
        grid_cols=pipeline.grid.cols,
        max_prompt_chars=config.max_prompt_chars,
        max_new_tokens=config.max_new_tokens,
        max_context_tokens=manifest.llm.max_kv,
        available_methods=list(runnable_methods(manifest)),
        default_prune=_default_prune(pipeline),
        cameras=list(cameras),
    )


def _default_prune(pipeline: Pipeline) -> PruneConfig:
    budget, latency_budget_ms = pipeline.default_budget, pipeline.config.latency_budget_ms
    default = PruneConfig(
        policy=PruneConfig.POLICY_KEEP_RATIO,
        method=budget.method,
        keep_ratio=float(budget.value),
        alpha=float(budget.alpha),
    )
    if latency_budget_ms > 0:
        default.policy = PruneConfig.POLICY_LATENCY_BUDGET
        default.latency_budget = to_duration(latency_budget_ms / 1e3)
    return default
