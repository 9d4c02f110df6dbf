"""Rotary position embedding tables, computed as transformers does for each scaling rule."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from export.architecture import LlmConfig


def inverse_frequencies(config: LlmConfig) -> NDArray[np.float32]:
    """(head_dim / 2,) rotation per position, in radians.

    Source: transformers ``modeling_rope_utils`` (default, linear, llama3).
    """
    # float32 throughout, as in the reference: the tables must agree in the last bits.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    base = np.float32(config.rope_theta)
    frequencies: NDArray[np.float32] = np.float32(1.0) / base**exponents
    rule = config.rope["rope_type"]
    if rule == "linear":
        frequencies = frequencies / np.float32(config.rope["factor"])
    if rule == "llama3":
        return _llama3(frequencies, config)
    return frequencies


def _llama3(frequencies: NDArray[np.float32], config: LlmConfig) -> NDArray[np.float32]:
    rope = config.rope
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    slow = wavelengths > original / low
    fast = wavelengths < original / high
    scaled = np.where(slow, frequencies / factor, np.where(fast, frequencies, blended))
    return scaled.astype(np.float32)


def cos_sin_tables(
    config: LlmConfig, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine (length, head_dim / 2) for positions 0 to length - 1."""
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse_frequencies(config)[None, :]
    return np.cos(angles), np.sin(angles)
