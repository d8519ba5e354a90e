"""Build hook of `tabrank-client`: ship the client, and the contract that it imports, renamed."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAMES = {"client": "tabrank_client", "contract": "tabrank_client.contract"}
NAME = re.compile(r"\bserve\.(client|contract)\b")
IMPORT = re.compile(r"^\s*from serve\.(client|contract)\.(\w+) import", re.M)


class RenamedModules(BuildHookInterface[Any]):
    """Copies of the modules that `serve.client` imports, under `tabrank_client`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the copies to the wheel."""
        self.copies = TemporaryDirectory()
        waiting, seen = [("client", "__init__"), ("contract", "__init__")], set()
        while waiting:
            module = folder, name = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            source = (Path(self.root).parent / folder / f"{name}.py").read_text()
            waiting += IMPORT.findall(source)
            place = f"{NAMES[folder].replace('.', '/')}/{name}.py"
            copy = Path(self.copies.name, f"{folder}.{name}.py")
            copy.write_text(NAME.sub(lambda found: NAMES[found[1]], source))
            build_data["force_include"][str(copy)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copies."""
        self.copies.cleanup()
