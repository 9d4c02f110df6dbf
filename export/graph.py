"""Builds one ONNX graph node by node, with weights stored as in the checkpoint.

A weight in a 16-bit type is stored as such and followed by a Cast: the graph computes in float32,
the file has half the size, and ONNX Runtime folds the casts when it loads. Large graphs write
their weights to an external file as they come, so memory holds one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.linear_forms import LinearForm, float_linear

OPSET = 18
CONTRIB = "com.microsoft"
# File format version: the oldest that carries the operator set.
_IR_VERSIONS = {17: 8, 18: 8, 24: 11}
# Tensors below this size stay in the graph file even when weights are external: shape inference
# and constant folding read them.
_INLINE_BYTES = 1024
_ALIGNMENT = 4096

Shape = Sequence[int | str]


class GraphBuilder:
    """Collects nodes, weights, inputs and outputs; ``save`` writes the model.

    Args:
        name: of the graph, and stem of its file.
        external: file the weights go to, None to keep them inside the graph file.
        opset: of the default domain.
        linear_form: how linear layers are written, see ``linear_forms``.
    """

    def __init__(
        self,
        name: str,
        external: Path | None = None,
        opset: int = OPSET,
        linear_form: LinearForm = float_linear,
    ) -> None:
        self.name = name
        self._linear_form = linear_form
        self._opset = opset
        self._external = external
        self._stream = external.open("wb") if external else None
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        self._counter = 0
        self._domains: set[str] = set()

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """Declare a graph input; strings in ``shape`` are dynamic dimensions."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, source: str, dtype: int, shape: Shape) -> None:
        """Declare the value ``source`` as the graph output ``name``."""
        if source != name:
            self._nodes.append(helper.make_node("Identity", [source], [name], name=f"out/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def node(self, op: str, *inputs: str, domain: str = "", name: str = "", **attrs: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.nodes(op, list(inputs), 1, domain=domain, name=name, **attrs)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int | Sequence[str],
        *,
        domain: str = "",
        name: str = "",
        **attrs: Any,
    ) -> list[str]:
        """Add a node with several outputs, given by count or by name."""
        self._counter += 1
        name = name or f"{op}_{self._counter}"
        if isinstance(outputs, int):
            outputs = [f"{name}:{i}" if i else f"{name}:out" for i in range(outputs)]
        if domain:
            self._domains.add(domain)
        self._nodes.append(
            helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain, **attrs)
        )
        return list(outputs)

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a weight; returns the float32 value to compute with.

        Args:
            name: of the initialiser, the checkpoint's where possible.
            array: float32, float16 or bfloat16.
        """
        self._weights.append(self._tensor(name, array))
        if array.dtype == np.float32:
            return name
        return self.node("Cast", name, name=f"{name}/f32", to=TensorProto.FLOAT)

    def raw_weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a weight that its operator reads in the stored type (float16, int8, packed)."""
        self._weights.append(self._tensor(name, array))
        return name

    def int4_weight(self, name: str, codes: NDArray[np.int8]) -> str:
        """Add a weight of 4-bit integers in [-8, 7]; two share a byte, the first the low half."""
        flat = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.int8)).view(np.uint8) & 15
        packed = flat[0::2] | (flat[1::2] << 4)
        tensor = self._tensor(name, packed)
        tensor.data_type = TensorProto.INT4
        tensor.ClearField("dims")
        tensor.dims.extend(codes.shape)
        self._weights.append(tensor)
        return name

    def linear(
        self, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None = None
    ) -> str:
        """x W + b with weight (K, N), in the form this graph writes linear layers in."""
        return self._linear_form(self, x, name, weight, bias)

    def constant(self, array: NDArray[Any]) -> str:
        """Add a small constant; equal ones are stored once."""
        array = np.asarray(array)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._weights.append(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def reduce(self, op: str, x: str, *axes: int, keepdims: bool) -> str:
        """ReduceMean and its like; their axes became an input with opset 18."""
        if self._opset >= 18 or op == "ReduceSum":
            return self.node(op, x, self.ints(*axes), keepdims=int(keepdims))
        return self.node(op, x, axes=list(axes), keepdims=int(keepdims))

    def ints(self, *values: int) -> str:
        """A constant int64 vector, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def save(self, path: Path) -> None:
        """Write the model file.

        Raises:
            onnx.checker.ValidationError: the graph is malformed.
            OSError: the disk is full or not writable.
        """
        if self._stream:
            self._stream.close()
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._weights
        )
        opsets = [helper.make_opsetid("", self._opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(self._domains)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edge_atp")
        model.ir_version = _IR_VERSIONS[self._opset]
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))

    def _tensor(self, name: str, array: NDArray[Any]) -> TensorProto:
        array = np.ascontiguousarray(array)
        if self._stream is None or array.nbytes < _INLINE_BYTES:
            return numpy_helper.from_array(array, name)
        offset = -(-self._stream.tell() // _ALIGNMENT) * _ALIGNMENT
        self._stream.seek(offset)
        array.tofile(self._stream)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        assert self._external is not None
        for key, value in (
            ("location", self._external.name),
            ("offset", str(offset)),
            ("length", str(array.nbytes)),
        ):
            tensor.external_data.add(key=key, value=value)
        return tensor
