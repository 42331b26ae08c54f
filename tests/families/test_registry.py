"""Every family that a config may name has an entry that keeps what `Family` promises."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import families, models
from armd_jax.data import documents
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.diffusion import Denoised
from armd_jax.decode.sampling import Sampling
from armd_jax.families.family import Draws
from armd_jax.objectives import armd

PACKAGE = pathlib.Path(families.__file__).parents[1]


def test_entries_are_the_choices_of_the_config():
  assert list(families.FAMILIES) == list(config_lib.FAMILIES)


def test_each_is_measured_along_orders_or_has_a_bound():
  for name, family in families.FAMILIES.items():
    orders = config_lib.FAMILIES[name].orders
    assert orders in ('any', 'left_to_right', 'none')
    assert orders != 'none' or (family.bound and family.samplers), name


@pytest.mark.parametrize('name', families.FAMILIES)
def test_loss_is_a_mean_over_the_batch_whose_kinds_account_for_it(name):
  """Halves of a batch add up to the whole; along orders the kinds hold the same nats."""
  config = config_lib.parse(
    {
      'model': dict(
        family=name, length=16, num_layers=1, embed_dim=16, num_heads=2, dtype='float32',
        dropout=0.0, position_dim=8,
      ),
      'order': dict(ar_steps=0, perm_steps=0, max_shuffled=4),
    }
  )  # fmt: skip
  family = families.of(config.model)
  model = families.build(config.model, 7)
  params = models.init(model, jax.random.key(0))
  text = jax.random.randint(jax.random.key(1), (4, 16), 0, 7)
  keys = jax.random.split(jax.random.key(2), 4)

  @jax.jit
  def loss(text_MxN, keys_M, index_M):
    draws = Draws(config.order, jnp.int32(5), jax.random.key(3), keys_M, index_M, 4)
    return family.loss(model, params, text_MxN, draws, loss_chunk=16, dropout_key=None)

  index = jnp.arange(4)
  halves = [loss(text[m::2], keys[m::2], index[m::2]) for m in range(2)]
  total, kinds = (halves[0][i] + halves[1][i] for i in range(2))
  assert kinds.shape == (2, len(armd.ORDER_KINDS))
  whole, whole_kinds = loss(text, keys, index)
  np.testing.assert_allclose(total, whole, rtol=1e-5)
  np.testing.assert_allclose(kinds, whole_kinds, rtol=1e-5)
  if config.model.orders == 'none' or config.model.has_own_orders:
    assert (kinds == 0).all()
  else:
    assert kinds[1].sum() == 4
    np.testing.assert_allclose(kinds[0].sum() / 4, whole, rtol=1e-5)


ORDERED = [name for name, kind in config_lib.FAMILIES.items() if kind.orders != 'none']


@pytest.mark.parametrize('seed', ['prefix', 'neighbours', 'warm'])
@pytest.mark.parametrize('name', ORDERED)
def test_padding_and_prompts_cost_nothing(name, seed, monkeypatch):
  """Other padding changes neither the loss nor a gradient, a prompt only what answers it; the loss
  is the mean over the tokens of all answers, whatever halves of the batch they are in."""
  config = tiny.train_config(
    model__family=name, model__query_seed=seed, model__dropout=0.0, order__uniform_order_prob=0.5
    if name == 'armd' else 0.0, order__segments_prob=0.2,
  )  # fmt: skip
  family = families.of(config.model)
  model, params = tiny.init(config.model)
  random = np.random.default_rng(0)
  text = random.integers(0, 7, (4, 16)).astype(np.int32)
  prompt, length = np.array([0, 5, 3, 2]), np.array([16, 9, 12, 3])
  place = np.arange(16)
  is_given = place < prompt[:, None]
  is_real = place < length[:, None]
  marked = np.where(is_given, ~text, np.where(is_real, text, documents.PADDING))
  keys, index = jax.random.split(jax.random.key(2), 4), jnp.arange(4)
  scored = jnp.float32((is_real & ~is_given).sum())

  @jax.jit
  @jax.value_and_grad
  def loss(params, marked, padding, keys, index):
    # What stands in the place of padding is given by hand.
    read = documents.read(marked)
    read = read._replace(ids_BxN=jnp.where(read.is_real_BxN, read.ids_BxN, padding))
    with monkeypatch.context() as patch:
      patch.setattr(documents, 'read', lambda _: read)
      draws = Draws(config.order, jnp.int32(5), jax.random.key(3), keys, index, 4, scored)
      return family.loss(model, params, marked, draws, loss_chunk=5, dropout_key=None)[0]

  run = lambda padding, rows=slice(None), m=marked: loss(
    params, m[rows], padding[rows], keys[rows], index[rows]
  )
  expected = run(text)
  found = run(random.integers(0, 7, text.shape).astype(np.int32))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  halves = [run(text, slice(m, None, 2)) for m in range(2)]
  together = jax.tree.map(jnp.add, *halves)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())
  jax.tree.map(close, together, expected)
  # What is not padding does matter.
  assert run(text, m=np.where(is_given, ~((text + 1) % 7), marked))[0] != expected[0]
  other = np.where((place == 8) & (prompt[:, None] == 0), (text + 1) % 7, marked)
  assert run(text, m=other)[0] != expected[0]


@pytest.mark.parametrize('name', families.FAMILIES)
def test_generation_keeps_what_is_given_and_takes_the_common_options(name):
  """With a sampler S tokens at once are K = tokens / S steps, and each token has a step; a family
  along orders may take more, of which some reveal one token."""
  config = config_lib.parse(
    {
      'model': dict(
        family=name,
        length=16,
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        dtype='float32',
        position_dim=8,
      ),
      'order': dict(max_shuffled=0),
    }
  )
  tokenizer = ByteTokenizer()
  model, params = tiny.init(config.model, tokenizer.vocab_size)
  decoder = requests.Decoder(model, params, tokenizer, None)
  request = requests.continue_prompts(['ab'], 16, tokenizer)
  family = families.of(config.model)
  streams = 1 if config.model.orders == 'left_to_right' else 2
  sampling = Sampling(seed=1, temperature=0.9, top_p=0.9)
  (text,), generated = family.generate(decoder, request, sampling, streams=streams)
  assert text.startswith('ab') and generated.margin_B.shape == (1,)
  assert isinstance(generated, Denoised) == bool(family.samplers)
  if family.samplers:
    assert 1 <= generated.steps <= (7 if config.model.orders == 'none' else 14)
    assert (np.asarray(generated.step_BxN)[0, 2:] > 0).all()
    how = dict(streams=streams, sampler=family.samplers[0])
    (named,), _ = family.generate(decoder, request, sampling, **how)
    assert named == text
  assert '16 tokens' in family.shown.format(length=16)


def named_families(tree):
  """Comparisons with a family's name, and lookups by one."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Compare):
      for side in (node.left, *node.comparators):
        values = [x.value for x in ast.walk(side) if isinstance(x, ast.Constant)]
        if 'family' in ast.unparse(node) and {*values} & families.FAMILIES.keys():
          yield ast.unparse(node)


# AR becomes ARMD, or a file of transformers; and what is measured of ARMD beside AR.
OF_TWO_FAMILIES = {
  'models/conversion.py', 'artifacts/plain_models.py', 'bench/decode.py', 'bench/launches.py',
  'bench/device/cases.py', 'bench/device/train.py', 'bench/device/picture.py',
}  # fmt: skip


def test_nothing_but_families_compares_with_the_name_of_one():
  found = {
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob('*.py')
    if [*named_families(ast.parse(path.read_text('utf-8')))]
  }
  found = {name for name in found if not name.startswith('families/')}
  assert found == OF_TWO_FAMILIES
  assert [*named_families(ast.parse("x = config.family == 'ar'"))]
