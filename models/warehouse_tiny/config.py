"""Settings of a training run, validated once; every message names the field and the fix."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.warehouse_tiny.vocabulary import NUM_PATCHES


@dataclass(frozen=True)
class StageConfig:
    """One stage. ``learning_rate`` is the peak; it falls along a cosine to 2 %.

    ``augment`` is the share of pictures changed as a camera would, ``diversify`` says whether
    viewpoint and colours of the surroundings are changed as well.
    """

    steps: int
    batch_scenes: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.02
    augment: float = 1.0
    diversify: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"StageConfig.steps is {self.steps}; give at least 1")
        if self.batch_scenes < 1:
            raise ValueError(f"StageConfig.batch_scenes is {self.batch_scenes}; give at least 1")
        if not 0 < self.learning_rate < 1:
            raise ValueError(
                f"StageConfig.learning_rate is {self.learning_rate}; give a value in (0, 1)"
            )
        if not 0 <= self.augment <= 1:
            raise ValueError(f"StageConfig.augment is {self.augment}; give a value in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """The whole chain.

    Attributes:
        seed: of initial values, order of scenes and every random draw.
        scenes: training scenes (seeds 0..scenes-1 of split ``train``).
        partial_patches: patches a picture is cut to in the first part of stage ``vision``.
        partial_share: share of the stage that this part takes.
        texts_per_scene: questions a picture is contrasted with.
        questions_per_scene: questions packed behind a picture.
        guided_layers: decoder layers whose first ``guided_heads`` heads learn where to look.
        eval_every, eval_scenes: evaluation during training on validation scenes.
    """

    seed: int = 0
    scenes: int = 36000
    vision: StageConfig = field(default_factory=lambda: StageConfig(560, 32, 2e-3, augment=0.8))
    language: StageConfig = field(default_factory=lambda: StageConfig(600, 16, 1.2e-3))
    joint: StageConfig = field(default_factory=lambda: StageConfig(520, 16, 6e-4))
    robust: StageConfig = field(
        default_factory=lambda: StageConfig(640, 16, 5e-4, warmup_steps=30, diversify=True)
    )
    partial_patches: int = 112
    partial_share: float = 0.9
    texts_per_scene: int = 6
    questions_per_scene: int = 14
    guided_layers: tuple[int, ...] = (1, 2)
    guided_heads: int = 2
    eval_every: int = 200
    eval_scenes: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.partial_patches <= NUM_PATCHES:
            raise ValueError(
                f"TrainConfig.partial_patches is {self.partial_patches}; give 1 to {NUM_PATCHES}"
            )
        if self.scenes < 1:
            raise ValueError(f"TrainConfig.scenes is {self.scenes}; give at least 1")

    def stage(self, name: str) -> StageConfig:
        """Settings of a stage by name."""
        stages = {
            "vision": self.vision,
            "language": self.language,
            "joint": self.joint,
            "robust": self.robust,
        }
        if name not in stages:
            raise ValueError(f"stage is {name!r}; choose one of {tuple(stages)}")
        return stages[name]
