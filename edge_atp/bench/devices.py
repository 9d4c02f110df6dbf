"""Published figures of edge devices, each with its source, for projections.

Dense (not sparse) tensor-core rates of the GPU alone: the DLAs beside it run none of this. A tensor
core of compute capability 8.7 does 512 dense fp16 or 1024 dense int8 operations a clock, which
gives every published int8 rate below within 3 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_atp.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """One device.

    fp16_tflops, int8_tops: dense peak of the GPU.
    bandwidth_gb_s: of its memory.
    memory_gb: shared by CPU and GPU.
    sources: where the figures are published, and what was derived from them.
    """

    name: str
    title: str
    fp16_tflops: float
    int8_tops: float
    bandwidth_gb_s: float
    memory_gb: float
    sources: tuple[str, ...]


# Shares of the peaks that engines reach: TensorRT Edge-LLM 0.10 with Qwen3-VL-2B (int4 weights,
# fp16 ViT, 292 prompt tokens) has 0.42 to 0.65 of the fp16 peak in ViT and prefill and 0.66 to 0.81
# of the bandwidth in decoding on the three Orins below.
# https://nvidia.github.io/TensorRT-Edge-LLM/0.10.0/user_guide/performance/performance-benchmarks.html
COMPUTE_EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.7
# Least time of a transformer layer however small it is: ten kernels of 5 us. An assumption, not a
# published figure; it decides the times of small models.
LAYER_OVERHEAD_US = 50.0

_MODULES = "NVIDIA, Jetson modules, https://developer.nvidia.com/embedded/jetson-modules"

DEVICES = {
    device.name: device
    for device in (
        Device(
            "orin-nano",
            "Jetson Orin Nano 8GB (15 W)",
            fp16_tflops=10.2,
            int8_tops=20.0,
            bandwidth_gb_s=68.0,
            memory_gb=8.0,
            sources=(
                "NVIDIA, Jetson Orin Nano Series data sheet: 20 dense int8 TOPS, 625 MHz",
                "32 tensor cores x 512 fp16 operations x 625 MHz",
                f"68 GB/s: {_MODULES}",
            ),
        ),
        Device(
            "orin-nx",
            "Jetson Orin NX 16GB (25 W)",
            fp16_tflops=15.0,
            int8_tops=30.0,
            bandwidth_gb_s=102.4,
            memory_gb=16.0,
            sources=(
                "NVIDIA, Jetson Orin NX Series data sheet DS-10712-001 v1.1: 100 sparse int8 TOPS"
                " of the GPU and two DLAs together",
                "GPU: 32 tensor cores x 512 fp16 or 1024 int8 operations x 918 MHz",
                f"918 MHz, 102.4 GB/s: {_MODULES}",
            ),
        ),
        Device(
            "agx-orin",
            "Jetson AGX Orin 64GB (MAXN)",
            fp16_tflops=42.6,
            int8_tops=85.0,
            bandwidth_gb_s=204.8,
            memory_gb=64.0,
            sources=(
                "https://github.com/NVIDIA/Deep-Learning-Accelerator-SW: the GPU has 171 sparse"
                " int8 TOPS at MAXN, half of it dense",
                "64 tensor cores x 512 fp16 operations x 1.3 GHz",
                f"204.8 GB/s: {_MODULES}",
            ),
        ),
        Device(
            "thor",
            "Jetson AGX Thor, T5000 (130 W)",
            fp16_tflops=258.5,
            int8_tops=517.0,
            bandwidth_gb_s=273.0,
            memory_gb=128.0,
            sources=(
                f"2070 sparse fp4 TFLOPS, 273 GB/s, 128 GB: {_MODULES}",
                "fp16 is sparse fp4 / 8, int8 is sparse fp4 / 4: 2 for sparsity, 2 for each width",
            ),
        ),
    )
}


def named_device(name: str) -> Device:
    """One of ``DEVICES``.

    Raises:
        ConfigError: unknown name; lists the choices.
    """
    if name not in DEVICES:
        raise ConfigError(f"--project {name!r}: choose from {', '.join(DEVICES)}")
    return DEVICES[name]
