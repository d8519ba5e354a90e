from __future__ import annotations

import pytest

from serve.contract.errors import TabrankError
from serve.model.artifact import CURRENT, FILES, point, publish, save
from training.fit.publish import check_surface

VERSION = "20260102T030405Z-0a1b"


def test_a_folder_of_models_is_of_one_surface(tmp_path):
    models = tmp_path / "models"
    check_surface(models, "spaces")
    save(tmp_path / "made", dict.fromkeys(FILES, b""), {"version": VERSION, "surface": "spaces"})
    point(models, CURRENT, publish(tmp_path / "made", models))
    check_surface(models, "spaces")
    with pytest.raises(
        TabrankError,
        match=r"models: its current model is of the surface 'spaces', not 'shop'.*separate folder",
    ):
        check_surface(models, "shop")
