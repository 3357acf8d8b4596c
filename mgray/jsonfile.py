"""JSON files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, tree: Any) -> None:
    """Write a file beside its place and put it there in one move; several processes may do so, the last one counts."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(tree, indent=1))
    os.replace(part, path)
