"""Images and questions for the parity gates: the model's own where given, else synthetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.text import PromptTokenizer, TextTowerTokenizer, load_tokenizer
from export.settings import ExportSettings

_NUM_IMAGES = 4
_NUM_PROMPTS = 32
QUESTIONS = (
    "what is in the picture?",
    "what is on the left?",
    "how many objects are there?",
    "is there a person?",
    "where is the red box?",
    "what colour is the floor?",
    "is the gripper empty?",
    "describe the scene in detail.",
)


@dataclass(frozen=True)
class ParityPrompt:
    """One question about the image of that index."""

    image: int
    question: str


@dataclass(frozen=True)
class ParityInputs:
    """images: each (1, 3, size, size); prompts: at least 32, the first ones one per image."""

    images: list[NDArray[np.float32]]
    prompts: list[ParityPrompt]
    image_token_id: int
    _prompt: PromptTokenizer
    _text: TextTowerTokenizer | None

    def prompt_ids(self, question: str, num_visual: int) -> NDArray[np.int64]:
        """Token ids with the image token repeated once per visual token, as transformers does."""
        tokens = self._prompt.encode(question, 1)
        return np.repeat(tokens.ids, np.where(tokens.is_image, num_visual, 1))

    def text_windows(self, text: str) -> list[NDArray[np.int64]]:
        """Input windows of the text encoder."""
        assert self._text is not None
        return self._text.windows(text)


def make_inputs(settings: ExportSettings, manifest: Manifest) -> ParityInputs:
    """Images and prompts for one model.

    Raises:
        ConfigError: parity_images holds fewer than two readable pictures.
    """
    size = manifest.preprocess.size
    if settings.parity_images:
        images = _read_images(Path(settings.parity_images), manifest)
    else:
        images = [_synthetic_image(size, seed) for seed in range(_NUM_IMAGES)]
    questions = settings.parity_questions or QUESTIONS
    prompts = [
        ParityPrompt(number % len(images), questions[(number // len(images)) % len(questions)])
        for number in range(max(_NUM_PROMPTS, len(images)))
    ]
    checkpoint = settings.checkpoint
    return ParityInputs(
        images,
        prompts,
        manifest.prompt.image_token_id,
        PromptTokenizer(load_tokenizer(checkpoint / "tokenizer.json"), manifest.prompt),
        _text_tokenizer(settings, manifest),
    )


def _text_tokenizer(settings: ExportSettings, manifest: Manifest) -> TextTowerTokenizer | None:
    if manifest.text_tower is None:
        return None
    from export.text_tower import load_text_tower

    tower = load_text_tower(settings.text_tower)
    return TextTowerTokenizer(load_tokenizer(tower.tokenizer), manifest.text_tower)


def _synthetic_image(size: int, seed: int) -> NDArray[np.float32]:
    """Coloured blobs on a gradient, normalised like a photograph: mean 0, deviation about 1."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    image = np.stack([rows * rng.normal() + cols * rng.normal() for _ in range(3)])
    for _ in range(8):
        centre, radius = rng.random(2), rng.uniform(0.05, 0.3)
        inside = (rows - centre[0]) ** 2 + (cols - centre[1]) ** 2 < radius**2
        image[:, inside] = rng.normal(size=(3, 1))
    image += rng.normal(scale=0.1, size=image.shape)
    return image[None].astype(np.float32)


def _read_images(folder: Path, manifest: Manifest) -> list[NDArray[np.float32]]:
    import cv2

    from edge_atp.preprocess import Preprocessor

    spec = manifest.preprocess
    preprocess = Preprocessor(spec.size, spec.mean, spec.std, spec.resize)
    images = []
    for path in sorted(folder.iterdir())[: 4 * _NUM_IMAGES]:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is not None:
            images.append(preprocess(np.ascontiguousarray(picture[..., ::-1]))[0])
    if len(images) < 2:
        raise ConfigError(f"parity_images {folder} holds {len(images)} pictures; at least 2 needed")
    return images
