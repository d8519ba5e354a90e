"""Contenders of the scoring benchmark: ways to score an artifact, and reference artifacts."""

from __future__ import annotations

import dataclasses
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors

from serve.features.matrix import Matrix
from serve.features.slots import F64
from serve.model.artifact import FILES, Artifact, new_version, save
from serve.model.encoder import Encoder, NumericColumn, SingleColumn, entry_hash
from serve.model.graph import Calibration
from serve.model.scorers import load_scorer, one_thread_session
from training.bench.reference import module_of, trained_classifier
from training.network.export import OPSET, build, golden
from training.network.model import Model
from training.network.network import Network, NetworkConfig

# Networks to measure without an artifact; cost does not depend on the weights.
REFERENCES = {
    "random-sparsemax-16x4": NetworkConfig(width=16, n_steps=4, mask_type="sparsemax"),
    "random-entmax-16x2": NetworkConfig(width=16, n_steps=2, mask_type="entmax"),
    "random-entmax-64x5": NetworkConfig(width=64, n_steps=5, mask_type="entmax"),
}


@dataclass(frozen=True)
class Contender:
    """One way to score given rows; `probability` maps its result to calibrated P(label) [R]."""

    run: Callable[[], Any]
    probability: Callable[[Any], NDArray[Any]]


class Contenders:
    """All ways to score one artifact: those of torch on `device`, each on one thread of the CPU."""

    def __init__(self, artifact: Artifact, device: str = "cpu") -> None:
        config = NetworkConfig(**artifact.manifest["network"])
        weights = load_safetensors(artifact.read("weights.safetensors"))
        self._network = Model.of(artifact.encoder, config, weights).network
        self._classifier = trained_classifier(self._network, device)
        self._exported = _exported(module_of(self._network), len(artifact.encoder.input_names))
        self._ours = load_scorer(artifact.path, "onnx")
        self._ours_torch = load_scorer(artifact.path, "torch", device)
        self._calibration = Calibration(**artifact.manifest["calibration"])

    def on(self, matrix: Matrix) -> dict[str, Contender]:
        """Return the contenders by name, ready to score these rows.

        `predict_proba`: pytorch_tabnet's classifier; `eager`: its module on tensors; `exported`:
        the network with one output, as torch's ONNX exporter writes it. These three start from the
        network's inputs.
        `ours_torch` and `ours`, the service's scorers, start from the matrix. `exported` and `ours`
        need ONNX Runtime and so the CPU. All start and end in the CPU's memory.
        """
        tensor = self._network.inputs_of(matrix)
        x, rows = tensor.numpy(), (matrix.numeric, matrix.category)

        @torch.no_grad()
        def eager() -> torch.Tensor:
            logits: torch.Tensor = self._classifier.network(tensor.to(self._classifier.device))[0]
            return logits[:, 1].cpu()

        return {
            "predict_proba": Contender(lambda: self._classifier.predict_proba(x), self._of_classes),
            "eager": Contender(eager, self._of_logit),
            "exported": Contender(lambda: self._exported.run(["logit"], {"x": x})[0][:, 0], self._of_logit),
            "ours_torch": Contender(lambda: self._ours_torch.score(*rows), np.asarray),
            "ours": Contender(lambda: self._ours.score(*rows), np.asarray),
        }

    def _of_logit(self, logit: Any) -> F64:
        logit = np.asarray(logit, np.float64)
        return np.asarray(1.0 / (1.0 + np.exp(-(self._calibration.a * logit + self._calibration.b))))

    def _of_classes(self, share: NDArray[np.float32]) -> F64:
        with np.errstate(divide="ignore"):
            return self._of_logit(np.log(share[:, 1]) - np.log(share[:, 0]))


def _exported(module: torch.nn.Module, num_inputs: int) -> Any:
    """Return a one-thread session of the module as torch's own exporter writes it."""
    x = torch.zeros(2, num_inputs)
    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter warns about traced values that are constant here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x,),
            file,
            input_names=["x"],
            output_names=["logit", "sparsity"],
            dynamic_axes={"x": {0: "rows"}, "logit": {0: "rows"}},
            opset_version=OPSET,
            # The newer exporter needs a further package.
            dynamo=False,
        )
    return one_thread_session(file.getvalue())


def references(parent: Path) -> dict[str, Path]:
    """Write artifacts of `REFERENCES` to `parent`: 40 features, 4 with a missing indicator."""
    vocabularies = [tuple(f"value{i}" for i in range(5 * (k + 1))) for k in range(8)]
    encoder = Encoder(
        tuple(NumericColumn(f"n{i}", ("none", "log1p")[i % 2], indicator=i % 8 == 0) for i in range(32)),
        tuple(SingleColumn(f"c{k}", v, min(8, 1 + int(len(v) ** 0.5))) for k, v in enumerate(vocabularies)),
    )
    rng = np.random.default_rng(0)
    numeric = rng.standard_normal((2048, len(encoder.numeric))).astype(np.float32)
    for column in encoder.indicators:
        numeric[rng.random(len(numeric)) < 0.2, column] = np.nan
    hashes = [np.array([0, 1, *map(entry_hash, vocabulary)], np.uint64) for vocabulary in vocabularies]
    # Hash 1 stands for an unseen category.
    category = np.stack([rng.choice(known, len(numeric)) for known in hashes], axis=1)
    matrix, calibration = Matrix(numeric, category), Calibration(0.9, -0.1)
    for name, config in REFERENCES.items():
        network = _random_network(encoder, config, matrix)
        files = dict.fromkeys(FILES, b"") | build(network, calibration)
        files["golden.safetensors"] = golden(network, calibration, matrix, 512)
        manifest = {"network": dataclasses.asdict(config), "calibration": dataclasses.asdict(calibration)}
        save(parent / name, files, {"version": new_version(time.time()), **manifest})
    return {name: parent / name for name in REFERENCES}


@torch.no_grad()
def _random_network(encoder: Encoder, config: NetworkConfig, matrix: Matrix) -> Network:
    """Return a network whose batch norms have seen these rows: its activations are realistic."""
    torch.manual_seed(0)
    network = Network(encoder, dataclasses.replace(config, momentum=0.3))
    x = network.inputs_of(matrix)
    for _ in range(4):
        network(x)
    return network.eval()
