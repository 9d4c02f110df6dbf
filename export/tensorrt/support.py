"""Will a TensorRT version parse this graph? An operator linter that needs neither GPU nor TensorRT.

What each column rests on, all of it NVIDIA's own:

- 8.6, 10.1 and 10.15: the table ``docs/operators.md`` of github.com/onnx/onnx-tensorrt at tag
  ``release/8.6-GA`` (6ba67d3), tag ``release/10.1-GA`` (96e7811; its header still says 10.0), and
  in the edition headed "TensorRT 10.15 supports operators in the inclusive range of opset 9 to
  opset 24". Between them ``docs/Changelog.md`` of the same repository tells what came when: tensor
  axes of Slice with 10.3, Attention with 10.14, RotaryEmbedding, RMSNormalization and TensorScatter
  with 10.15. A version between two tables reads at least what the older one lists.
- 11.0 and 11.5: no table of these was at hand. They are the 10.15 table and what the release notes
  at github.com/NVIDIA/TensorRT/releases list under "Parsers": v11.0 adds Swish, v11.1 no standard
  operator, v11.2 DFT and 5-D GridSample (neither is used here), v11.3 and v11.4 none, v11.5 opset
  25 and Squeeze without axes. None of them takes an operator away.

Which operators and restrictions are documented says nothing about what a parser does with a graph:
nothing here was run against TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from export.tensorrt.restrictions import Context, Restriction, restrictions

# Operators that all three tables list as supported for the types used here (float32, float16,
# int64; 8.6 narrows int64 to int32).
# fmt: off
_COMMON = frozenset({
    "Abs", "Add", "Cast", "Concat", "Constant", "Conv", "DequantizeLinear", "Div", "Equal", "Erf",
    "Expand", "Gather", "Gemm", "Greater", "Identity", "LayerNormalization", "MatMul", "Mul",
    "Neg", "Pow", "QuantizeLinear", "Range", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze",
    "Sub", "TopK", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
_OPSET_20 = _COMMON | {"Gelu"}
_OPSET_24 = _OPSET_20 | {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}
_TOPK_LIMIT = 3840


@dataclass(frozen=True)
class ParserVersion:
    """What one TensorRT version's ONNX parser reads.

    max_opset: newest operator set it documents.
    slice_axes: whether Slice takes axes that are no initialiser (from 10.3).
    squeeze_all: whether Squeeze may leave its axes out (from 11.5).
    quantised: types DequantizeLinear takes.
    """

    name: str
    max_opset: int
    operators: frozenset[str]
    slice_axes: bool = False
    squeeze_all: bool = False
    quantised: frozenset[int] = frozenset({TensorProto.INT8})


# 10.1 and later also list 8- and 4-bit floats, which no graph of this exporter holds.
_INT4 = frozenset({TensorProto.INT8, TensorProto.INT4})
PARSERS = (
    ParserVersion("8.6", 17, _COMMON),
    ParserVersion("10.1", 20, _OPSET_20, quantised=_INT4),
    ParserVersion("10.15", 24, _OPSET_24, slice_axes=True, quantised=_INT4),
    ParserVersion("11.0", 24, _OPSET_24 | {"Swish"}, slice_axes=True, quantised=_INT4),
    ParserVersion(
        "11.5", 25, _OPSET_24 | {"Swish"}, slice_axes=True, squeeze_all=True, quantised=_INT4
    ),
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
    context = Context.of(model)
    checks = restrictions(
        slice_axes=parser.slice_axes, squeeze_all=parser.squeeze_all, quantised=parser.quantised
    )
    for node in model.graph.node:
        problem = _problem(node, parser, checks.get(node.op_type), context)
        if problem:
            findings.append(Finding(node.name, problem))
    return findings


def _problem(
    node: onnx.NodeProto, parser: ParserVersion, check: Restriction | None, context: Context
) -> str | None:
    if node.domain:
        return f"operator {node.domain}.{node.op_type} is no standard operator"
    if node.op_type not in parser.operators:
        return f"operator {node.op_type} is not in the support table"
    return check(node, context) if check else None


def topk_fits(num_patches: int) -> bool:
    """Whether a selection over that many patches stays under TopK's limit (K < 3840)."""
    return num_patches < _TOPK_LIMIT
