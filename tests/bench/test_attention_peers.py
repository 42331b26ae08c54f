"""Which peers are compiled, and what of them is kept."""

import itertools
import json

import jax

from armd_jax.bench import attention_peers as peers


def test_the_best_of_every_shape_is_kept_and_not_compiled_again(tmp_path):
  path = tmp_path / 'peers.json'
  known = {'forward': [0.9, 'splash', '512x512x512']}
  path.write_text(json.dumps({'jax': jax.__version__, 'best': {'v6e train_1024_12x64': known}}))
  calls = []

  def measured(chip, peer, length, name, blocks):
    calls.append((chip, length, name))
    if peer == 'splash':
      raise NotImplementedError('not that')
    return {'forward': blocks[0] / 2048, 'backward': blocks[2] / 4096}

  peers.run(path, ['v6e'], measured)
  best = json.loads(path.read_text())['best']
  assert set(best) == {
    f'v6e train_{n}_{h}' for n, h in itertools.product(peers.LENGTHS, peers.HEADS)
  }
  assert best['v6e train_1024_12x64'] == known
  found = best['v6e train_4096_32/8x128']
  assert found['forward'] == [0.5, 'tokamax, diagonal skipping', '1024x1024x512']
  assert found['backward'] == [0.25, 'tokamax, diagonal skipping', '1024x1024x1024']
  assert ('v6e', 1024, '12x64') not in calls

  calls.clear()
  peers.run(path, ['v6e'], measured)
  assert not calls
