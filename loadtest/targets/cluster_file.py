"""Read and change the `cluster.yaml` of a measured service, which has one application."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]


def read_document(file: Path) -> Document:
    """Return the parsed file."""
    document: Document = yaml.safe_load(file.read_text())
    return document


def write_document(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document as YAML."""
    file.write_text(yaml.safe_dump(dict(document), sort_keys=False))


@contextmanager
def edited(file: Path) -> Iterator[Document]:
    """Yield the parsed file; write it when the block ends without an error."""
    document = read_document(file)
    yield document
    write_document(file, document)


def deployments_of(document: Document) -> dict[str, Document]:
    """Return the declared deployments of the only application, by name."""
    declared = document["applications"][0].get("deployments", [])
    return {deployment.get("name", ""): deployment for deployment in declared}
