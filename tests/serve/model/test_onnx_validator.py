from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from serve.model.onnx_validator import OPERATORS, validate
from tests.support.networks import artifact_files, random_encoder, random_network
from training.network.network import NetworkConfig


def exported(mask_type: Any) -> dict[str, bytes]:
    rng = np.random.default_rng(3)
    network = random_network(rng, random_encoder(rng, 3, 1, 1), NetworkConfig(n_steps=1, mask_type=mask_type))
    files, _ = artifact_files(network, rng)
    return {f"{mask_type} {name}": files[name] for name in ("model.onnx", "model_sorting.onnx")}


MODELS = exported("entmax") | exported("sparsemax")
MODEL = MODELS["entmax model.onnx"]


def test_what_the_export_writes_passes_and_is_all_that_does() -> None:
    operators: set[str] = set()
    for content in MODELS.values():
        validate(content)
        operators |= {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert operators == OPERATORS


def external_data(model: onnx.ModelProto) -> None:
    convert_model_to_external_data(model, location="../../no/such/weights", size_threshold=0)


def external_without_its_key(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def tensor_of_strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("more", TensorProto.STRING, [1], [b"x"]))


def tensor_that_asks_for_a_terabyte(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 18])


def tensor_of_a_negative_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def tensor_of_many_dimensions(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims.extend([1] * 100_000)


def sparse_tensor(model: onnx.ModelProto) -> None:
    values, indices = (numpy_helper.from_array(np.zeros(1, kind), "s") for kind in (np.float32, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["n"], ["out"], body=body))


def branch_under_a_known_name(model: onnx.ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("Add", ["a", "b"], ["c"], body=helper.make_graph([], "g", [], []))
    )


def constant_of_any_size(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))


def tensor_in_an_attribute(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(1, np.float32))
    model.graph.node.append(helper.make_node("Add", ["a", "b"], ["c"], value=value))


def operator_of_others(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def operators_of_others(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def function(model: onnx.ModelProto) -> None:
    opset = helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("", "Add", ["a"], ["b"], [], [opset]))


def configuration_of_the_runtime(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"ort_config": "{}"})


def training_graph(model: onnx.ModelProto) -> None:
    model.training_info.add()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_data, "tensor with the unsupported field 13"),
        (external_without_its_key, "tensor with the unsupported field 14"),
        (tensor_of_strings, "tensor with the unsupported field 6"),
        (tensor_that_asks_for_a_terabyte, r"tensor of the shape \[1048576, 262144\] in \d+ bytes"),
        (tensor_of_a_negative_size, "tensor of the shape"),
        (tensor_of_many_dimensions, "tensor of more than 8 dimensions"),
        (sparse_tensor, "graph with the unsupported field 15"),
        (loop, "field 6"),
        (branch_under_a_known_name, "attribute with the unsupported field 6"),
        (constant_of_any_size, "node of the operator 'ConstantOfShape'"),
        (tensor_in_an_attribute, "attribute with the unsupported field 5"),
        (operator_of_others, "node with the unsupported field 7"),
        (operators_of_others, "not ONNX's own"),
        (function, "model with the unsupported field 25"),
        (configuration_of_the_runtime, "model with the unsupported field 14"),
        (training_graph, "model with the unsupported field 20"),
    ],
)
def test_what_no_export_of_ours_writes_is_refused(
    change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.load_from_string(MODEL)
    change(model)
    with pytest.raises(ValueError, match=message):
        validate(model.SerializeToString())


def test_a_file_of_nothing_but_fields_is_refused_before_it_fills_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.model.onnx_validator.MAX_FIELDS", 10_000)
    for content in MODELS.values():
        validate(content)
    node = helper.make_node("Add", [""] * 6_000, [])
    model = helper.make_model(helper.make_graph([node, node], "g", [], []))
    with pytest.raises(ValueError, match="has more than 10,000 fields"):
        validate(model.SerializeToString())


def test_an_operator_that_is_said_twice_is_refused() -> None:
    # The last field of a kind counts.
    node = helper.make_node("Add", ["a"], ["b"]).SerializeToString() + b"\x22\x04Loop"
    graph = b"\x0a" + bytes([len(node)]) + node
    with pytest.raises(ValueError, match="node of the operator 'Add Loop'"):
        validate(b"\x3a" + bytes([len(graph)]) + graph)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x09",
        # ONNX Runtime's own format, which it loads too.
        b"\x28\0\0\0ORTM" + bytes(100),
        pickle.dumps({"model": 1}),
        b"\xff" * 20,
        b"PK\x03\x04" + bytes(30),
    ],
)
def test_what_is_no_onnx_file_is_refused(content: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"is not an ONNX file|is truncated|has no graph|with the unsupported field"
    ):
        validate(content)


def _any_bytes_are_passed_or_refused(content: bytes) -> None:
    message = "has "
    try:
        validate(content)
    except ValueError as refusal:
        message = str(refusal)
    assert message.startswith(("has ", "is ", "imports "))


damaged = st.builds(
    lambda at, part, cut: MODEL[: int(at * len(MODEL))] + part + MODEL[int(at * len(MODEL)) + cut :],
    st.floats(0, 1),
    st.binary(max_size=12),
    st.integers(0, 12),
)


@settings(max_examples=20, deadline=1000)
@given(st.one_of(st.binary(max_size=300), damaged))
@example(MODEL[:-1])
def test_any_bytes_are_passed_or_refused(content: bytes) -> None:
    _any_bytes_are_passed_or_refused(content)


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
@settings(max_examples=1200, deadline=1000)
@given(st.one_of(st.binary(max_size=300), damaged))
def test_any_of_many_bytes_are_passed_or_refused(content: bytes) -> None:
    _any_bytes_are_passed_or_refused(content)
