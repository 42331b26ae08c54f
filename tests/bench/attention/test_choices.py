"""What is compared: legal tiles, the shipped ones first, each other one once."""

import jax
import pytest

from armd_jax.attention import shapes, tpu_blocks
from armd_jax.bench.attention import choices, compile_tpu


@pytest.mark.parametrize('chip', tpu_blocks.CHIPS)
def test_variants_are_distinct_and_cut_into_whole_units(chip):
  for shipped in tpu_blocks.choose(chip, 1, 4096, 4096, 128, 2):
    found = choices.variants(shipped)
    assert found['as shipped'] == shipped
    assert len(found) == len(set(found.values())) > 4
    for blocks in found.values():
      assert blocks.rows % blocks.unit_rows == blocks.keys % blocks.unit_keys == 0


def test_what_is_changed_is_read_from_the_pass_it_is_changed_in(monkeypatch):
  """A compiler that likes larger forward tiles and smaller backward ones, and refuses half rows."""

  def compiled(folder, chip, shape, streams, blocks):
    assert (folder, chip, shape.name, streams) == ('folder', 'v6e', 'train_4096_8x256', 1)
    if blocks[0].rows == shipped[0].rows // 2:
      raise jax.errors.JaxRuntimeError('does not fit')
    return {'forward': {'useful': blocks[0].keys}, 'backward': {'useful': -blocks[1].keys}}

  shape = shapes.NAMED['train_4096_8x256']
  shipped = tpu_blocks.choose('v6e', 1, shape.rows, shape.keys, shape.head_dim, 2)
  monkeypatch.setattr(compile_tpu, 'measure', compiled)
  monkeypatch.setattr(choices, 'forward_alone', lambda *_: 1)
  found = choices.measure('folder', 'v6e', shape)
  assert found['as shipped'] == {'forward': 2048, 'backward': -2048}
  assert found['half the keys'] == {'forward': 1024, 'backward': -1024}
  assert found[choices.LAYOUT] == {'forward': 2048}
  assert found['half the rows'] == {}
  assert found[choices.ALONE] == {'forward': 1}
