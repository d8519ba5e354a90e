"""Extract the Serve part of `cluster.yaml` with its comments, and replace some values."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from serve.contract.errors import TabrankError

Path = tuple[str, ...]
# A comment after a value, to the end of its line.
COMMENT = re.compile(r"""[^#'"\n]*?([ \t]+#[^\n]*)""")


def serve_text(text: str, changes: Mapping[Path, str]) -> str:
    """Return the file's text without the block `nodes`, and with the values of `changes`.

    A comment beside a changed value is removed, because it describes the old value.
    """
    top = yaml.compose(text, yaml.SafeLoader)
    # The strict reader has checked the file.
    assert isinstance(top, yaml.MappingNode)
    edits = [*_without_nodes(top, len(text)), *_changed(top, text, changes)]
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    text = "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        raise TabrankError(
            "nodes: cannot be removed from the file; write each top-level key on its own line, and define no anchor "
            "in `nodes` that other keys use"
        ) from None
    return text


def _without_nodes(top: yaml.MappingNode, length: int) -> list[tuple[int, int, str]]:
    begins = [key.start_mark.index for key, _ in top.value] + [length]
    return [(begins[i], begins[i + 1], "") for i, (key, _) in enumerate(top.value) if key.value == "nodes"]


def _changed(top: yaml.MappingNode, text: str, changes: Mapping[Path, str]) -> list[tuple[int, int, str]]:
    edits = []
    for path, new in changes.items():
        node: yaml.Node | None = top
        for name in path:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((value for key, value in pairs if key.value == name), None)
        if isinstance(node, yaml.ScalarNode) and node.value != new:
            end = node.end_mark.index
            edits.append((node.start_mark.index, end, new))
            if comment := COMMENT.match(text, end):
                edits.append((*comment.span(1), ""))
    return edits
