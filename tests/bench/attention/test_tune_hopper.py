"""Tuning with a timer that knows the answer; what it writes is what the kernels take."""

import json
import math

import jax
import jax.numpy as jnp

from armd_jax.attention import hopper, hopper_blocks
from armd_jax.bench.attention import tune_hopper
from armd_jax.hardware import device

WANTED = hopper_blocks.Blocks(64, 64, 128, 64, (3, 1, 2))


def _timer(shape, streams, blocks, backward):
  """The more of what is wanted, the faster; no more than two tiles of 128 keys fit."""
  if blocks.forward_keys == 128 and blocks.stages[0] > 2:
    return math.inf
  wrong = blocks.forward_keys != WANTED.forward_keys
  wrong += blocks.forward_columns != WANTED.forward_columns
  wrong += blocks.stages[0] != WANTED.stages[0]
  if backward:
    wrong += blocks.dq_keys != WANTED.dq_keys
    wrong += blocks.dkv_rows != WANTED.dkv_rows
    wrong += blocks.stages[1:] != WANTED.stages[1:]
    wrong += blocks.stages[1] != WANTED.stages[1]
  return 1.0 + wrong


def test_fastest_blocks_of_every_call_reach_the_kernels_through_the_table(tmp_path, monkeypatch):
  path = tmp_path / 'hopper_blocks.json'
  tune_hopper.run(path, 1024, _timer)
  table = json.loads(path.read_text())
  assert len(table) == len(tune_hopper.CALLS)
  shipped = hopper_blocks.choose(2, 64)
  monkeypatch.setattr(hopper_blocks, 'TABLE', path)
  hopper_blocks.tuned.cache_clear()
  found = hopper_blocks.choose(2, 64)
  hopper_blocks.tuned.cache_clear()
  assert found == WANTED != shipped


def test_candidates_change_one_kernel_only():
  blocks = hopper_blocks.choose(1, 256)
  for kernel, fields in enumerate(
    [('dq_keys', 'dkv_rows'), ('forward_keys', 'dkv_rows'), ('forward_keys', 'dq_keys')]
  ):
    options = tune_hopper.candidates(blocks, 256, kernel)
    assert len(options) == len(set(options)) >= 8
    for option in options:
      assert all(getattr(option, field) == getattr(blocks, field) for field in fields)
      others = [i for i in range(3) if i != kernel]
      assert all(option.stages[i] == blocks.stages[i] for i in others)
      assert 256 % option.forward_columns == 0


def test_kernels_take_the_blocks_of_a_call():
  q = jnp.ones((1, 1, 128, 1, 64), jnp.bfloat16)
  lengths = jnp.ones((1, 1, 128), jnp.int32)

  def text(blocks):
    with device.compiling_for(device.HOPPER):
      attend = lambda q, k, v: hopper.prefix_attention(q, k, v, lengths, blocks=blocks)
      return str(jax.make_jaxpr(attend)(q, q[:, 0], q[:, 0]))

  assert text(None) == text(hopper_blocks.choose(1, 64)) != text(WANTED)
