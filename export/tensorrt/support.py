"""Will a TensorRT version parse this graph? An operator linter that needs neither GPU nor TensorRT.

The tables are taken from ``docs/operators.md`` of github.com/onnx/onnx-tensorrt:
branch ``release/8.6-GA`` (6ba67d3), tag ``10.1-GA`` (96e7811), and the edition headed "TensorRT
10.15 supports operators in the inclusive range of opset 9 to opset 24". The edition for 11.2 lists
everything of 10.15 and adds Swish and DFT. Between 10.1 and 10.15, ``docs/Changelog.md`` tells
what came when; a version between two tables reads at least what the older one lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

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
# What came with opset 20 and 23 or 24.
_OPSET_20 = _COMMON | {"Gelu"}
_OPSET_24 = _OPSET_20 | {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}
_TOPK_LIMIT = 3840


@dataclass(frozen=True)
class ParserVersion:
    """What one TensorRT version's ONNX parser reads.

    max_opset: newest operator set it documents.
    slice_axes: whether Slice takes axes that are no initialiser (from 10.3).
    quantised: types DequantizeLinear takes.
    """

    name: str
    max_opset: int
    operators: frozenset[str]
    slice_axes: bool = False
    quantised: frozenset[int] = frozenset({TensorProto.INT8})


_INT4 = frozenset({TensorProto.INT8, TensorProto.INT4})
PARSERS = (
    ParserVersion("8.6", 17, _COMMON),
    ParserVersion("10.1", 20, _OPSET_20, quantised=_INT4),
    ParserVersion("10.15", 24, _OPSET_24, slice_axes=True, quantised=_INT4),
    ParserVersion("11.2", 24, _OPSET_24 | {"Swish"}, slice_axes=True, quantised=_INT4),
)


@dataclass(frozen=True)
class Finding:
    """One thing in a graph that a parser would refuse."""

    node: str
    problem: str


@dataclass(frozen=True)
class _Context:
    """What a restriction may look at besides the node."""

    parser: ParserVersion
    weights: Mapping[str, TensorProto]


def lint(path: Path, parser: ParserVersion) -> list[Finding]:
    """Everything in the graph at ``path`` that this parser does not document as supported."""
    model = onnx.load(str(path), load_external_data=False)
    findings = [
        Finding("", f"opset {opset.version} of the default domain; {parser.max_opset} at most")
        for opset in model.opset_import
        if opset.domain == "" and opset.version > parser.max_opset
    ]
    context = _Context(parser, {tensor.name: tensor for tensor in model.graph.initializer})
    for node in model.graph.node:
        if node.domain:
            problem = f"operator {node.domain}.{node.op_type} is no standard operator"
        elif node.op_type not in parser.operators:
            problem = f"operator {node.op_type} is not in the support table"
        else:
            check = _RESTRICTIONS.get(node.op_type)
            problem = (check(node, context) if check else None) or ""
        if problem:
            findings.append(Finding(node.name, problem))
    return findings


_Check = Callable[[onnx.NodeProto, _Context], "str | None"]


def _fixed_input(index: int, label: str) -> _Check:
    def check(node: onnx.NodeProto, context: _Context) -> str | None:
        if _has(node, index) and node.input[index] not in context.weights:
            return f"{label} of {node.op_type} must be an initialiser"
        return None

    return check


def _has(node: onnx.NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _slice(node: onnx.NodeProto, context: _Context) -> str | None:
    return None if context.parser.slice_axes else _fixed_input(3, "axes")(node, context)


def _topk(node: onnx.NodeProto, _context: _Context) -> str | None:
    return None if _attribute(node, "sorted", 1) == 1 else "TopK must be sorted"


def _layer_norm(node: onnx.NodeProto, _context: _Context) -> str | None:
    return "only the first output of LayerNormalization exists" if len(node.output) > 1 else None


def _zero_point(node: onnx.NodeProto, context: _Context) -> str | None:
    """Zero points must be 0; what is dequantised must be of a type the version knows."""
    if node.op_type == "DequantizeLinear" and node.input[0] in context.weights:
        kind = context.weights[node.input[0]].data_type
        if kind not in context.parser.quantised:
            return f"DequantizeLinear of {TensorProto.DataType.Name(kind)} is not supported"
    if not _has(node, 2):
        return None
    if node.input[2] not in context.weights:
        return f"the zero point of {node.op_type} must be 0"
    values = onnx.numpy_helper.to_array(context.weights[node.input[2]])
    return f"the zero point of {node.op_type} must be 0" if values.any() else None


def _attention(node: onnx.NodeProto, _context: _Context) -> str | None:
    if any(_has(node, index) for index in range(4, len(node.input))) or len(node.output) > 1:
        return "Attention takes queries, keys, values and mask alone, and has one output"
    extra = {a.name for a in node.attribute} & {"softcap", "qk_matmul_output_mode"}
    return f"attribute {extra.pop()} of Attention is not supported" if extra else None


def _tensor_scatter(node: onnx.NodeProto, _context: _Context) -> str | None:
    return None if _attribute(node, "axis", -2) == -2 else "axis of TensorScatter must be -2"


_AXES = _fixed_input(1, "axes")
_RESTRICTIONS: dict[str, _Check] = {
    "Slice": _slice,
    "Squeeze": _AXES,
    "Unsqueeze": _AXES,
    "ReduceL2": _AXES,
    "ReduceMax": _AXES,
    "ReduceMean": _AXES,
    "ReduceMin": _AXES,
    "ReduceSum": _AXES,
    "TopK": _topk,
    "LayerNormalization": _layer_norm,
    "QuantizeLinear": _zero_point,
    "DequantizeLinear": _zero_point,
    "Attention": _attention,
    "TensorScatter": _tensor_scatter,
}


def topk_fits(num_patches: int) -> bool:
    """Whether a selection over that many patches stays under TopK's limit (K < 3840)."""
    return num_patches < _TOPK_LIMIT
