"""How large the tiles of the Hopper kernels are.

A choice that spills no register (docs/attention.md), and before it the table of what
`python -m armd_jax.bench.attention.tune_hopper` found fastest on a real chip.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

WARPGROUPS = 2  # that compute; a third one moves memory
WARPGROUP_ROWS = 64  # rows of one wgmma
TILE_ROWS = WARPGROUPS * WARPGROUP_ROWS
MAX_COLUMNS = 128  # of the head dimension that one warpgroup accumulates twice in its registers
TABLE = pathlib.Path(__file__).with_name('hopper_blocks.json')


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tile sizes of the three kernels; see docs/attention.md for the registers they need.

  Attributes:
    forward_keys: keys in a key tile of the forward kernel.
    forward_columns: columns of the output that one product computes.
    dq_keys: keys in a key tile of the kernel for dq.
    dkv_rows: rows in a query tile of the kernel for dk and dv.
    stages: tiles in flight, of the three kernels.
  """

  forward_keys: int
  forward_columns: int
  dq_keys: int
  dkv_rows: int
  stages: tuple[int, int, int]


def folded(streams: int, copies: int, num_rows: int) -> tuple[int, int]:
  """Streams and query heads of a group that become rows: as many as fit one tile with their slots.

  Decoding has few slots; a block then loads keys and values once for all heads that read them.

  Examples:
    >>> folded(2, 4, 8), folded(2, 4, 32), folded(2, 1, 1024)
    ((2, 4), (1, 4), (1, 1))
  """
  if streams * copies * num_rows <= TILE_ROWS:
    return streams, copies
  return (1, copies) if copies * num_rows <= TILE_ROWS else (1, 1)


def streams_together(streams: int, head_dim: int) -> int:
  """How many streams a warpgroup computes: both, if their outputs fill half of its registers.

  At a head dimension of 128 both would fit, in smaller tiles; a block for each was faster on an
  H200.
  """
  return streams if streams * head_dim <= MAX_COLUMNS else 1


@functools.cache
def tuned() -> dict[str, dict]:
  """Blocks by `name`, from the table; empty if it was never written."""
  return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def name(streams: int, head_dim: int) -> str:
  """The line of the table that holds for a call; arguments as in `choose`."""
  return f'streams={streams} D={head_dim}'


def choose(streams: int, head_dim: int) -> Blocks:
  """Blocks by streams in a warpgroup (1 or 2) and head dimension (64, 128 or 256)."""
  found = tuned().get(name(streams, head_dim))
  if found:
    return Blocks(**found | {'stages': tuple(found['stages'])})
  return {
    (1, 64): Blocks(128, 64, 128, 128, (4, 3, 3)),
    (2, 64): Blocks(128, 64, 64, 128, (4, 3, 3)),
    (1, 128): Blocks(128, 128, 64, 64, (2, 3, 3)),
    (1, 256): Blocks(64, 128, 64, 64, (2, 1, 2)),
  }[streams, head_dim]
