"""The type of a network's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Params = Mapping[str, Any]  # a tree: names of modules to trees, names of parameters to arrays
