"""How long one answer takes on this device, as a function of its numbers of tokens.

Each stage is a sum of a few terms (a constant, the prompt's length, its square, ...) with
nonnegative coefficients fitted to measured times, so a prediction never falls when tokens are
added. ``edge-atp bench --calibrate`` measures and writes the model; ``load_calibration`` reads it
back and refuses one of another model, backend or device.

    model = load_calibration(Identity(model_id, manifest_sha256, "ort-cpu", device_name("ort-cpu")))
    model.predict_ms(prompt_tokens=24, answer_tokens=4, num_kept=64)

Does not know what to do about a budget (``latency_budget``) or how times are measured (``bench``).
"""

from edge_atp.cost_model.fit import Sample, fit, nonnegative_least_squares
from edge_atp.cost_model.model import STAGE_TERMS, CostModel, Identity, Work
from edge_atp.cost_model.store import (
    calibration_folder,
    calibration_path,
    load_calibration,
    read_calibration,
    require_writable,
    write_calibration,
)

__all__ = [
    "STAGE_TERMS",
    "CostModel",
    "Identity",
    "Sample",
    "Work",
    "calibration_folder",
    "calibration_path",
    "fit",
    "load_calibration",
    "nonnegative_least_squares",
    "read_calibration",
    "require_writable",
    "write_calibration",
]
