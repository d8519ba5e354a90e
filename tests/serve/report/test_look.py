"""Colours of pages: contrast by WCAG 2, and differences that the colour-blind see."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import serve.report

CSS = (Path(serve.report.__file__).parent / "look.css").read_text()
MODES = {
    mode: dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", block))
    for mode, block in zip(
        ("light", "dark", "print"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True
    )
}
WORDS = ("text", "muted", "good", "bad", "unsure", "neutral", "link")
SERIES = ("model", "popular", "baseline", "lightgbm", "other", "limit", "muted")
# Of Machado, Oliveira and Fernandes 2009, in full severity, on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# The difference of CIELAB (1976) from which two lines are told apart at a glance.
APART = 13.0


def linear(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    part = np.frombuffer(bytes.fromhex(digits), np.uint8) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    dark, light = sorted(XYZ[1] @ linear(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb):
    part = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("mode", MODES)
def test_words_and_lines_have_contrast(mode):
    colours = MODES[mode]
    for ground in ("surface", "raised"):
        for name in WORDS:
            assert contrast(colours[name], colours[ground]) >= 4.5, name
        for name in SERIES:
            assert contrast(colours[name], colours[ground]) >= 3, name


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("mode", MODES)
def test_each_pair_of_series_is_told_apart(mode, sight):
    seen = {name: lab(np.array(SIGHT[sight]) @ linear(MODES[mode][name])) for name in SERIES}
    for one, other in itertools.combinations(SERIES, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= APART, (one, other)
