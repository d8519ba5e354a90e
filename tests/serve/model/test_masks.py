from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_tabnet.sparsemax import entmax15, sparsemax

from serve.model.masks import MaskType, mask, num_passes
from serve.model.torch_ops import TorchOps
from tests.support.networks import geometric_logits

MASKS: dict[MaskType, object] = {"sparsemax": sparsemax, "entmax": entmax15}
BOTH = pytest.mark.parametrize("mask_type", list(MASKS))


def ours(mask_type: MaskType, logits: np.ndarray, *, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask [R, G] and its sum [R] of logits [R, G]."""
    halved = logits / 2 if mask_type == "entmax" else logits
    columns = torch.from_numpy(np.ascontiguousarray(halved.T, np.float32))
    chosen, total = mask(TorchOps(), mask_type, columns, logits.shape[1], exact=exact)
    return chosen.numpy().T, total.numpy()[0]


def reference(mask_type: MaskType, logits: np.ndarray) -> np.ndarray:
    return MASKS[mask_type](torch.from_numpy(logits.astype(np.float64)), -1).numpy()


@BOTH
@pytest.mark.parametrize("exact", [False, True])
def test_masks_are_those_of_pytorch_tabnet(mask_type: MaskType, exact: bool) -> None:
    rng = np.random.default_rng(0)
    for num_columns in (1, 2, 7, 40, 100):
        for spread in (0.1, 1.0, 5.0):
            logits = (rng.standard_normal((10_000, num_columns)) * spread).astype(np.float32)
            chosen, total = ours(mask_type, logits, exact=exact)
            np.testing.assert_allclose(chosen, reference(mask_type, logits), atol=2e-6)
            assert np.abs(total - 1.0).max() <= 1e-6


@BOTH
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((1, 40)),
        np.full((1, 40), -7.5),
        np.eye(1, 40) * 1e4,
        np.eye(1, 40) * -1e6 + np.linspace(0, 1, 40),
        np.repeat([[0.0, -100.0]], 20, axis=1).reshape(1, 40),
    ],
    ids=["all zero", "all equal", "one large", "one far below", "halves"],
)
def test_extreme_logits_have_exact_masks(mask_type: MaskType, exact: bool, logits: np.ndarray) -> None:
    chosen, total = ours(mask_type, logits.astype(np.float32), exact=exact)
    np.testing.assert_allclose(chosen, reference(mask_type, logits), atol=1e-6)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("size", [1e8, 1e30, -1e8, -1e30])
def test_huge_logits_have_exact_masks_or_show_in_the_sum(mask_type: MaskType, size: float) -> None:
    logits = np.eye(1, 40) * size
    want = reference(mask_type, logits)
    chosen, total = ours(mask_type, logits.astype(np.float32), exact=True)
    np.testing.assert_allclose(chosen, want, atol=1e-6)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    chosen, total = ours(mask_type, logits.astype(np.float32), exact=False)
    if abs(total[0] - 1.0) <= 1e-6:
        np.testing.assert_allclose(chosen, want, atol=1e-6)


@BOTH
@settings(max_examples=24, deadline=None)
@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30))
def test_more_passes_never_choose_more_until_the_sum_is_1(mask_type: MaskType, values: list[float]) -> None:
    logits = np.float32([values])
    sums, masks = [], []
    for passes in range(1, 9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("serve.model.masks.num_passes", lambda *_, passes=passes: passes)
            chosen, total = ours(mask_type, logits, exact=False)
        sums.append(total[0])
        masks.append(chosen[0])
    # The first threshold can be as far off as the spread of the logits, and is rounded to float32
    # there. Each unit in its last place moves a sum by up to twice that. The remainder after the
    # last pass is tested above, to 1e-6.
    rounding = max(1e-6, 4 * float(np.finfo(np.float32).eps) * float(np.ptp(logits)))
    assert min(sums) >= 1.0 - rounding
    assert np.diff(sums).max() <= rounding
    assert np.diff(masks, axis=0).max() <= rounding


def test_unsettled_logits_show_in_the_sum_and_a_sort_settles_them() -> None:
    logits = geometric_logits(10)
    chosen, total = ours("sparsemax", logits, exact=False)
    assert total[0] - 1.0 > 1e-6
    chosen, total = ours("sparsemax", logits, exact=True)
    np.testing.assert_allclose(chosen, reference("sparsemax", logits), atol=1e-7)
    assert abs(total[0] - 1.0) <= 1e-6


def test_wider_masks_take_more_passes() -> None:
    for mask_type in MASKS:
        passes = [num_passes(mask_type, num_columns) for num_columns in (1, 10, 40, 300)]
        assert passes == sorted(passes)
        assert passes[0] >= 2
