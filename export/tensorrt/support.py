"""Will a TensorRT version parse this graph? An operator linter that needs neither GPU nor TensorRT.

The table is taken from ``docs/operators.md`` of github.com/onnx/onnx-tensorrt: branch
``release/8.6-GA`` (6ba67d3) and tag ``10.1-GA`` (96e7811). Later parsers added operators and
removed none of those listed, so 10.1 stands for everything after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

# Operators both tables list as supported for the types used here (float32, float16, int64).
# fmt: off
_COMMON = frozenset({
    "Abs", "Add", "Cast", "Concat", "Constant", "Conv", "DequantizeLinear", "Div", "Equal", "Erf",
    "Expand", "Gather", "Gemm", "Greater", "Identity", "LayerNormalization", "MatMul", "Mul",
    "Neg", "Pow", "QuantizeLinear", "Range", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze",
    "Sub", "TopK", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
_TOPK_LIMIT = 3840


@dataclass(frozen=True)
class ParserVersion:
    """What one TensorRT version's ONNX parser reads.

    max_opset: newest operator set it documents.
    """

    name: str
    max_opset: int
    operators: frozenset[str]


PARSERS = (
    ParserVersion("8.6", 17, _COMMON),
    ParserVersion("10.1", 20, _COMMON | {"Gelu"}),
)


@dataclass(frozen=True)
class Finding:
    """One thing in a graph that a parser would refuse."""

    node: str
    problem: str


def lint(path: Path, parser: ParserVersion) -> list[Finding]:
    """Everything in the graph at ``path`` that this parser does not document as supported."""
    model = onnx.load(str(path), load_external_data=False)
    findings = [
        Finding("", f"opset {opset.version} of the default domain; {parser.max_opset} at most")
        for opset in model.opset_import
        if opset.domain == "" and opset.version > parser.max_opset
    ]
    fixed = {initializer.name for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.domain:
            problem = f"operator {node.domain}.{node.op_type} is no standard operator"
        elif node.op_type not in parser.operators:
            problem = f"operator {node.op_type} is not in the support table"
        else:
            problem = _restriction(node, fixed) or ""
        if problem:
            findings.append(Finding(node.name, problem))
    return findings


def _restriction(node: onnx.NodeProto, fixed: set[str]) -> str | None:
    check = _RESTRICTIONS.get(node.op_type)
    return check(node, fixed) if check else None


def _fixed_input(index: int, label: str) -> Callable[[onnx.NodeProto, set[str]], str | None]:
    def check(node: onnx.NodeProto, fixed: set[str]) -> str | None:
        if len(node.input) > index and node.input[index] and node.input[index] not in fixed:
            return f"{label} of {node.op_type} must be an initialiser"
        return None

    return check


def _topk(node: onnx.NodeProto, _fixed: set[str]) -> str | None:
    attributes = {a.name: a.i for a in node.attribute}
    return None if attributes.get("sorted", 1) == 1 else "TopK must be sorted"


def _layer_norm(node: onnx.NodeProto, _fixed: set[str]) -> str | None:
    return "only the first output of LayerNormalization exists" if len(node.output) > 1 else None


_AXES = _fixed_input(1, "axes")
_RESTRICTIONS: dict[str, Callable[[onnx.NodeProto, set[str]], str | None]] = {
    "Slice": _fixed_input(3, "axes"),
    "Squeeze": _AXES,
    "Unsqueeze": _AXES,
    "ReduceL2": _AXES,
    "ReduceMax": _AXES,
    "ReduceMean": _AXES,
    "ReduceMin": _AXES,
    "ReduceSum": _AXES,
    "TopK": _topk,
    "LayerNormalization": _layer_norm,
}


def topk_fits(num_patches: int) -> bool:
    """Whether a selection over that many patches stays under TopK's limit (K < 3840)."""
    return num_patches < _TOPK_LIMIT
