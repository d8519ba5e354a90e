"""Export a trained network: the inference graph as ONNX, and the artifact's other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partialmethod
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save as save_safetensors

from serve.contract.errors import TabrankError
from serve.features.matrix import Matrix
from serve.model.folding import fold
from serve.model.graph import Calibration, Folded, forward
from serve.model.ops import LARGE
from serve.model.torch_ops import TorchOps
from training.network.network import Network

OPSET = 18
# Every version of ONNX Runtime that may be installed for serving can read IR version 9.
IR_VERSION = 9

# Golden rows are chosen from this many rows.
_NUM_TRIED = 1024
# The largest difference of a golden row between the trained network and its graph. It is a fifth of
# the loader's tolerance.
_TOLERANCE = 2e-6


def build(network: Network, calibrations: Sequence[Calibration]) -> dict[str, bytes]:
    """Return the files that the network contributes to an artifact, by their names.

    `serve.model.artifact.save` writes them.
    """
    folded = folded_of(network, calibrations)
    return {
        "weights.safetensors": save_safetensors(_weights(network)),
        "encoder.json": network.encoder.to_json().encode(),
        "model.onnx": export(folded, exact=False),
        "model_sorting.onnx": export(folded, exact=True),
    }


@torch.no_grad()
def golden(
    network: Network, calibrations: Sequence[Calibration], matrix: Matrix, num_rows: int = 64
) -> bytes:
    """Return `golden.safetensors`: evenly spaced rows with the trained network's scores.

    A loader scores these rows again, to check that it computes the same as the training did. In the
    first row, all values are missing. Deep networks amplify rounding errors, on single rows beyond
    a loader's tolerance. Such rows cannot test a loader, so they are left out.

    Raises:
        TabrankError: the inference graph differs from the trained network on most rows.
    """
    numeric, category = (_evenly(part, _NUM_TRIED) for part in (matrix.numeric, matrix.category))
    numeric[:1], category[:1] = np.nan, 0
    parts = [torch.from_numpy(part) for part in network.encoder.encode(numeric, category)]
    logit = network.logit(network.inputs(*parts))
    a, b = torch.tensor([(one.a, one.b) for one in calibrations]).T
    score = torch.sigmoid(a * logit + b).numpy()
    served, _ = forward(TorchOps(), folded_of(network, calibrations), *parts, exact=True)
    off = np.abs(served.numpy() - score).max(axis=1)
    if not np.median(off) <= _TOLERANCE:
        raise TabrankError(
            f"export: the inference graph differs from the trained network by {np.median(off):.1e} "
            f"(median), more than {_TOLERANCE}, so the model cannot be served; report this defect of the export"
        )
    stable = np.flatnonzero(off <= _TOLERANCE)
    rows: dict[str, NDArray[Any]] = {"numeric": numeric, "category": category, "score": score}
    return save_safetensors({name: _evenly(array[stable], num_rows) for name, array in rows.items()})


def export(folded: Folded, exact: bool) -> bytes:
    """Return the graph as a serialised ONNX model for any number of rows.

    The inputs are numeric f32 [R, F], hot f32 [R, V] and index i64 [R, K1]. An input without
    columns is left out. The outputs are shares f32 [R, O] and residual f32 [R].
    """
    ops = _OnnxOps()
    num_single = sum(len(group.columns) for group in folded.embedded)
    inputs = [
        helper.make_tensor_value_info(name, dtype, ["rows", num_columns])
        for name, dtype, num_columns in (
            ("numeric", TensorProto.FLOAT, len(folded.mean)),
            ("hot", TensorProto.FLOAT, folded.num_hot),
            ("index", TensorProto.INT64, num_single),
        )
        if num_columns
    ]
    shapes = {"shares": ["rows", len(folded.output)], "residual": ["rows"]}
    values = forward(ops, folded, "numeric", "hot", "index", exact=exact)
    ops.nodes += [helper.make_node("Identity", [v], [name]) for v, name in zip(values, shapes, strict=True)]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    ]
    graph = helper.make_graph(ops.nodes, "tabnet", inputs, outputs, ops.initializers)
    model = helper.make_model(
        graph, producer_name="tabrank", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def folded_of(network: Network, calibrations: Sequence[Calibration]) -> Folded:
    """Return the constants of a network's inference graph."""
    return fold(_weights(network), network.encoder, asdict(network.config), calibrations)


def _weights(network: Network) -> dict[str, NDArray[Any]]:
    state = network.tabnet.state_dict()
    return {name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in state.items()}


def _evenly(array: NDArray[Any], num_rows: int) -> NDArray[Any]:
    """Return at most `num_rows` rows, evenly spaced from the first to the last, as a new array."""
    at = np.linspace(0, len(array) - 1, min(num_rows, len(array))).astype(np.int64)
    return np.ascontiguousarray(array[at])


class _OnnxOps:
    """The operations of `serve.model.graph.forward` as ONNX nodes. A value is a node's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"n{len(self.nodes)}"
        outputs = [output, f"{output}_at"] if operator == "TopK" else [output]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return output

    add = partialmethod(_node, "Add")
    sub = partialmethod(_node, "Sub")
    mul = partialmethod(_node, "Mul")
    div = partialmethod(_node, "Div")
    matmul = partialmethod(_node, "MatMul")
    linear = partialmethod(_node, "Gemm")
    relu = partialmethod(_node, "Relu")
    sigmoid = partialmethod(_node, "Sigmoid")
    sqrt = partialmethod(_node, "Sqrt")
    abs = partialmethod(_node, "Abs")
    log = partialmethod(_node, "Log")
    is_nan = partialmethod(_node, "IsNaN")
    less_equal = partialmethod(_node, "LessOrEqual")
    where = partialmethod(_node, "Where")

    def constant(self, array: NDArray[Any]) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"c{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def positive(self, a: str) -> str:
        return self._node("HardSigmoid", a, alpha=LARGE, beta=0.0)

    def clip(self, a: str, low: float, high: float) -> str:
        return self._node("Clip", a, self.scalar(low), self.scalar(high))

    def max(self, a: str) -> str:
        return self._node("ReduceMax", a, self._integers([0]), keepdims=1)

    def sort(self, a: str) -> str:
        self._node("Shape", a, start=0, end=1)
        return self._node("TopK", a, f"n{len(self.nodes) - 1}", axis=0, largest=1, sorted=1)

    def to_float(self, condition: str) -> str:
        return self._node("Cast", condition, to=TensorProto.FLOAT)

    def transpose(self, a: str) -> str:
        return self._node("Transpose", a, perm=[1, 0])

    def concat(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else self._node("Concat", *parts, axis=0)

    def take(self, a: str, columns: NDArray[Any]) -> str:
        return self._node("Gather", a, self.constant(columns), axis=0)

    def embed(self, table: str, index: str) -> str:
        # [K, R, e]
        rows = self._node("Gather", table, index, axis=0)
        columns = self._node("Transpose", rows, perm=[0, 2, 1])
        return self._node("Flatten", columns, axis=2)

    def flatten(self, a: str) -> str:
        return self._node("Reshape", a, self._integers([-1]))

    def _integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))
