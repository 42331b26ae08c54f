"""Which peers are compiled, and what of them is kept."""

import itertools

import pytest

from armd_jax import records
from armd_jax.bench.attention import peers
from armd_jax.errors import UserError


def test_the_best_of_every_shape_is_kept_and_not_compiled_again(tmp_path):
  kept = records.Records(tmp_path / 'peers.json')
  known = {'forward': [0.9, 'splash', '512x512x512']}
  kept.add('v6e train_1024_12x64', peers.stamp(), known)
  kept.add('v6e train_4096_16x128', 'jax 0.1', known)  # which is compiled again
  calls = []

  def measured(chip, peer, length, name, blocks):
    calls.append((chip, length, name))
    if peer == 'splash':
      raise NotImplementedError('not that')
    return {'forward': blocks[0] / 2048, 'backward': blocks[2] / 4096}

  peers.run(kept.path, ['v6e'], measured)
  best = kept.read()
  assert set(best) == {
    f'v6e train_{n}_{h}' for n, h in itertools.product(peers.LENGTHS, peers.HEADS)
  }
  assert best['v6e train_1024_12x64'] == {'stamp': peers.stamp(), **known}
  found = best['v6e train_4096_32/8x128']
  assert found['forward'] == [0.5, 'tokamax, diagonal skipping', '1024x1024x512']
  assert found['backward'] == [0.25, 'tokamax, diagonal skipping', '1024x1024x1024']
  assert ('v6e', 1024, '12x64') not in calls
  assert ('v6e', 4096, '16x128') in calls

  calls.clear()
  peers.run(kept.path, ['v6e'], measured)
  assert not calls


def test_nothing_is_kept_where_nothing_can_be_compiled(tmp_path):
  """UserError is a ValueError, which a peer raises of blocks that it does not take."""
  kept = records.Records(tmp_path / 'peers.json')

  def measured(*_):
    raise UserError('libtpu is not installed; install it')

  with pytest.raises(UserError, match=r'^libtpu is not installed; install it$'):
    peers.run(kept.path, ['v6e'], measured)
  assert not kept.path.exists()
