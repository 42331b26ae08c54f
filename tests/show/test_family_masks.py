"""The picture of docs/families.md shows what networks see, and the page's table what they cost."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax.models.denoiser import MASK
from armd_jax.models.flops import training_flops
from armd_jax.order import GenerationOrder
from armd_jax.show import family_masks

SIZE = family_masks.SIZE
MASKS = family_masks.masks()
PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'families.md'


def test_every_family_is_drawn():
  assert {name for mask in MASKS for name in mask.families} == set(config_lib.FAMILIES)
  for mask in MASKS:
    assert sorted(mask.position_N) == list(range(1, SIZE + 1))


def changes(run, ids_N):
  """bool [row, key]: whether the output of a row depends on the token of a key."""
  ids = np.tile(ids_N, (SIZE + 1, 1))
  ids[np.arange(SIZE), np.arange(SIZE)] = (ids_N + 1) % tiny.VOCAB
  hidden = np.asarray(run(jnp.asarray(ids, jnp.int32)))
  return np.abs(hidden[:-1] - hidden[-1:]).max(axis=-1).T > 1e-5


@pytest.mark.parametrize(
  'mask',
  [m for m in MASKS if len(m.families) == 1 and not config_lib.FAMILIES[m.families[0]].sets],
  ids=lambda m: m.title,
)
def test_rows_along_orders_see_what_is_drawn(mask):
  config = tiny.model_config(family=mask.families[0], length=SIZE, num_layers=2)
  model, params = tiny.init(config, scale=1.0)
  position = jnp.asarray(mask.position_N)[None]
  # Rows that see the same tokens are of one block; in Eso-LM's pictures the clean ones come first.
  clean = 3 if mask.families == ('esolm',) else 0
  seen = np.count_nonzero(mask.seen_NxN == 1, axis=1)
  block = np.where(np.arange(SIZE) < clean, np.arange(SIZE), SIZE + seen)
  order = GenerationOrder(position, jnp.asarray(block)[None])
  run = jax.jit(lambda ids: model.apply({'params': params}, ids, order))
  found = changes(run, np.arange(SIZE) % tiny.VOCAB)
  np.testing.assert_array_equal(found[clean:], (mask.seen_NxN == 1)[clean:])


@pytest.mark.parametrize(
  'mask', [m for m in MASKS if config_lib.FAMILIES[m.families[0]].sets], ids=lambda m: m.title
)
def test_noised_rows_of_sets_see_what_is_drawn(mask):
  config = tiny.model_config(family=mask.families[0], length=SIZE, num_layers=2)
  model, params = tiny.init(config, scale=1.2)
  # Smaller gates and scales, which would saturate the attention.
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 0.1 * x if 'modulation' in jax.tree_util.keystr(path) else x, params
  )
  apply = lambda ids, **how: model.apply({'params': params}, ids, **how)
  if config.sets == 'ordered':
    position = jnp.asarray(mask.position_N)[None]
    run = jax.jit(lambda ids: apply(ids, position_BxN=jnp.tile(position, (len(ids), 1))))
  else:
    is_masked = np.diag(mask.seen_NxN) == 2
    run = jax.jit(lambda ids: apply(jnp.where(is_masked, MASK, ids), clean_BxN=ids))
  found = changes(run, np.arange(SIZE) % tiny.VOCAB)
  np.testing.assert_array_equal(found, mask.seen_NxN == 1)


def test_rows_of_denoisers_see_what_is_drawn():
  (mask,) = [m for m in MASKS if len(m.families) > 1]
  model, params = tiny.init(tiny.model_config(family='mdlm', length=SIZE, num_layers=2), scale=1.2)
  is_masked = (mask.seen_NxN == 2)[0]

  @jax.jit
  def run(ids):
    return model.apply({'params': params}, jnp.where(is_masked, MASK, ids))

  found = changes(run, np.arange(SIZE) % tiny.VOCAB)
  np.testing.assert_array_equal(found, mask.seen_NxN == 1)


def test_the_page_has_a_row_of_every_family_with_its_cost():
  rows = dict(re.findall(r'^\| `(\w+)` \|.*\| ([^|]+) \|$', PAGE.read_text(), re.MULTILINE))
  assert {*config_lib.FAMILIES} <= rows.keys()

  def cost(**model):
    return training_flops(config_lib.parse({'model': model}).model, 50257)

  for family in config_lib.FAMILIES:
    shares = [cost(family=family) / cost(family='ar')]
    if family == 'armd':
      one = cost(family=family, num_two_stream_layers=1, query_seed='neighbours')
      shares.append(one / cost(family='ar'))
    numbers = re.findall(r'\d\.\d\d', rows[family])
    assert numbers == [f'{share:.2f}' for share in shares], family


def test_the_picture_is_drawn(tmp_path):
  family_masks.draw(tmp_path / 'families.png')
  assert (tmp_path / 'families.png').read_bytes().startswith(b'\x89PNG')
