"""FLOP counts against hand formulas, masks counted one by one, and compiled programs."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import Mesh, PartitionSpec

from armd_jax import config, models, order, training
from armd_jax.attention import prefix_attention
from armd_jax.compiled.flops import MatmulFlops, count
from armd_jax.objectives import armd

BATCH = 2


def shape(*sizes, dtype='float32'):
  return jax.ShapeDtypeStruct(sizes, dtype)


def whole_config(order_fields=None, train_fields=None, **model):
  sizes = dict(
    length=tiny.NUM_SLOTS, num_layers=4, embed_dim=32, num_heads=4, mlp_dim=64, dtype='float32',
    query_seed_chunk=0, position_dim=8,
  )  # fmt: skip
  raw = {
    'model': sizes | model,
    'order': {'max_shuffled': 0} | (order_fields or {}),
    'train': {'batch_size': BATCH, 'loss_chunk': 5} | (train_fields or {}),
  }
  return config.parse(raw)


def abstract_params(whole, vocab=tiny.VOCAB):
  return jax.eval_shape(functools.partial(training.init_state, whole, vocab)).params


def gradient(whole, vocab=tiny.VOCAB):
  """The gradient of a training step, and abstract arguments for it."""
  function = functools.partial(training.loss_and_gradients, whole, vocab)
  text = shape(whole.train.batch_size, whole.model.length, dtype='int32')
  return function, (abstract_params(whole, vocab), jnp.int32(0), text)


def nll_gradient(whole, generation_order):
  """The same loss under a generation order that is given."""
  model = models.build(whole.model, tiny.VOCAB)

  def loss(params, text, generation_order):
    ones = jnp.ones((BATCH, whole.model.length))
    return armd.nll(model, params, text, generation_order, ones, loss_chunk=4)[0]

  text = shape(BATCH, whole.model.length, dtype='int32')
  return count(jax.value_and_grad(loss), abstract_params(whole), text, generation_order)


# ----- hand formulas


def test_mlp():
  def mlp(up, down, x):
    return jax.nn.gelu(x @ up) @ down

  weights = shape(8, 24), shape(24, 8)
  forward = 2 * (3 * 5) * 8 * 24 * 2
  assert count(mlp, *weights, shape(3, 5, 8)) == MatmulFlops(forward, forward)
  # The backward pass multiplies twice for each product, once for the matrix and once for its input.
  gradient = jax.grad(lambda *args: jnp.sum(mlp(*args)), argnums=(0, 1, 2))
  assert count(gradient, *weights, shape(3, 5, 8)).dense == 3 * forward


@pytest.mark.parametrize('key_heads', [4, 2])
def test_attention(key_heads):
  batch, streams, rows, keys, heads, dim = 3, 2, 6, 10, 4, 8
  lengths = np.random.default_rng(0).integers(0, keys + 1, (1, streams, rows)).astype(np.int32)
  q = shape(batch, streams, rows, heads, dim)
  k = shape(batch, keys, key_heads, dim)
  product = 2 * batch * heads * dim  # times pairs of rows and keys
  pairs, seen = streams * rows * keys, lengths.sum()
  attend = functools.partial(prefix_attention, backend='reference')
  flops = count(attend, q, k, k, lengths)
  assert flops.dense == 2 * product * pairs
  assert flops.visible == pytest.approx(2 * product * seen, rel=1e-12)

  # Backward: two products for each of the two. With checkpoint the two of the forward pass again.
  def loss(q, k, v, lengths):
    return jnp.sum(attend(q, k, v, lengths) ** 2)

  flops = count(jax.value_and_grad(loss, argnums=(0, 1, 2)), q, k, k, lengths)
  assert flops.dense == 6 * product * pairs
  assert flops.visible == pytest.approx(6 * product * seen, rel=1e-12)
  saved = jax.checkpoint(loss, policy=jax.checkpoint_policies.nothing_saveable)
  flops = count(jax.value_and_grad(saved, argnums=(0, 1, 2)), q, k, k, lengths)
  assert flops.visible == pytest.approx(8 * product * seen, rel=1e-12)


# ----- loops against the same loops unrolled


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
@pytest.mark.parametrize('family', ['armd', 'ar'])
def test_scanned_equals_unrolled(family, remat):
  scanned, unrolled = (
    gradient(whole_config(family=family, remat=remat, scan_layers=scan, dropout=0.1))
    for scan in (True, False)
  )
  a, b = (count(function, *args) for function, args in (scanned, unrolled))
  assert a.dense == b.dense
  assert a.visible == pytest.approx(b.visible, rel=1e-12)
  assert a.visible < a.dense


def test_micro_batches_add_up():
  once = gradient(whole_config(train_fields={'batch_size': 4}))
  twice = gradient(whole_config(train_fields={'batch_size': 4, 'accumulation': 2}))
  assert count(once[0], *once[1]).dense == count(twice[0], *twice[1]).dense


@pytest.mark.parametrize('family, remat', [('armd', 'full'), ('ar', 'none')])
def test_equals_the_products_of_an_unrolled_compile(family, remat):
  # One logits chunk and the quadratic prefix aggregation: no loop that multiplies is left, so every
  # product stands once in the compiled program. `cost_analysis` also counts elementwise work.
  train = {'loss_chunk': tiny.NUM_SLOTS}
  sizes = dict(num_layers=3, num_two_stream_layers=2, scan_layers=False)
  whole = whole_config(family=family, remat=remat, train_fields=train, **sizes)
  function, args = gradient(whole)
  cheap = {'xla_llvm_disable_expensive_passes': True}
  compiled = jax.jit(function).lower(*args).compile(cheap)
  dense = count(function, *args).dense
  assert dense == compiled_products(compiled.as_text())
  assert dense < compiled.cost_analysis()['flops'] < 2 * dense


def compiled_products(text):
  """FLOPs of all `dot`s in compiled HLO text."""

  def sizes(csv):
    return [int(x) for x in csv.split(',') if x]

  shapes = dict(re.findall(r'(%[\w.-]+) = \w+\[([0-9,]*)\]', text))
  pattern = r'= \w+\[([0-9,]*)\]\S* dot\((%[\w.-]+), .*?lhs_contracting_dims=\{([0-9,]*)\}'
  total = 0
  for out, left, contracted in re.findall(pattern, text):
    left = sizes(shapes[left])
    total += 2 * math.prod(sizes(out)) * math.prod(left[i] for i in sizes(contracted))
  assert total > 0
  assert 'custom-call' not in ''.join(line for line in text.splitlines() if 'matmul' in line)
  return total


# ----- visible keys against masks


def hidden_pairs(whole, generation_order):
  """Pairs of row and key of a sequence that the masks of paper section 3 hide, over all layers."""
  m = whole.model
  block_BxN = np.asarray(generation_order.block_BxN)
  before = block_BxN[:, :, None] > block_BxN[:, None, :]  # M^sc, [row, slot]
  until = block_BxN[:, :, None] >= block_BxN[:, None, :]  # M^c
  # Content rows, BOS first: BOS sees itself, row n + 1 is slot n. The last slot has no row.
  sees_bos = np.ones_like(before[:, :, :1])
  queries = np.concatenate([sees_bos, before[:, :, :-1]], axis=2)
  content = np.concatenate([sees_bos, until[:, :, :-1]], axis=2)[:, :-1]
  bos_row = np.arange(m.length)[None, None] == 0
  content = np.concatenate([np.broadcast_to(bos_row, content[:, :1].shape), content], axis=1)

  def hidden(mask):
    return np.sum(~mask) / len(mask)

  if m.family == 'ar':
    return m.num_layers * hidden(content)
  two_stream = m.num_two_stream_layers
  return (
    (two_stream - 1) * hidden(content)
    + two_stream * hidden(queries)
    + (m.num_layers - two_stream) * hidden(until)
  )


def flops_of_pairs(whole, pairs):
  """Of the six products of a forward and a backward pass, 2 D a head and pair each."""
  return 6 * 2 * BATCH * whole.model.embed_dim * pairs


@pytest.mark.parametrize('name', ['left_to_right', 'strided4', 'blocks', 'one_block'])
def test_visible_keys_of_an_order(name):
  whole = whole_config()
  generation_order = tiny.orders(batch=BATCH)[name]
  flops = nll_gradient(whole, generation_order)
  hidden = flops_of_pairs(whole, hidden_pairs(whole, generation_order))
  assert flops.dense - flops.visible == pytest.approx(hidden, rel=1e-9)


@pytest.mark.parametrize(
  'whole, expected',
  [
    (whole_config(family='ar'), order.left_to_right(tiny.NUM_SLOTS)),
    (whole_config({'max_shuffled': 8}), order.left_to_right(tiny.NUM_SLOTS)),
    # S is drawn inside the step, from the step's number.
    (whole_config({'strided_start': 0, 'strided_streams': (8,)}), order.strided(tiny.NUM_SLOTS, 8)),
    (whole_config({'uniform_order_prob': 0.5}), order.left_to_right(tiny.NUM_SLOTS)),
  ],
  ids=['ar', 'shuffled', 'sbp', 'uniform'],
)
def test_visible_keys_of_a_training_step(whole, expected):
  function, args = gradient(whole)
  flops = count(function, *args)
  hidden = flops_of_pairs(whole, hidden_pairs(whole, expected))
  assert flops.dense - flops.visible == pytest.approx(hidden, rel=1e-9)


def test_unknown_lengths_are_refused():
  whole = whole_config()
  generation_order = tiny.orders(batch=BATCH)['blocks']
  generation_order = jax.tree.map(lambda x: shape(*x.shape, dtype='int32'), generation_order)
  with pytest.raises(
    ValueError, match=r'lengths of .*prefix_attention .* pass the generation order'
  ):
    nll_gradient(whole, generation_order)


def test_goal_at_gpt2_small():
  """The goal for length 1024: 1.255 x the auto-regressive model by visible keys, without remat."""
  flops = {}
  for family in ('armd', 'ar'):
    whole = config.parse({'model': {'family': family}, 'train': {'batch_size': 1}})
    assert (whole.model.num_layers, whole.model.embed_dim, whole.model.length) == (12, 768, 1024)
    function, args = gradient(whole, vocab=50257)
    flops[family] = count(function, *args)
  assert 1.25 < flops['armd'].visible / flops['ar'].visible <= 1.255
  assert flops['armd'].dense / flops['ar'].dense <= 1.265


# ----- primitives


MATRIX = shape(4, 4)
PRODUCT = 2 * 4**3


def pallas_product(x, cost_estimate=None):
  def kernel(x_ref, y_ref):
    y_ref[...] = x_ref[...]

  out = shape(*x.shape)
  return pl.pallas_call(kernel, out, cost_estimate=cost_estimate, interpret=True)(x)


def test_primitives():
  def same(x):
    return x @ x

  cost = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
  cases = {
    PRODUCT: [
      same,
      jax.jit(same),
      jax.checkpoint(same),
      lambda x: jax.lax.cond(True, same, lambda x: x @ x @ x, x),
      lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x + 1, x) @ x,
    ],
    2 * PRODUCT: [
      lambda x: jax.lax.cond(x[0, 0] > 0, same, lambda x: x @ x @ x, x),
      lambda x: jax.vmap(same)(jnp.stack([x, x])),
    ],
    6 * PRODUCT: [
      lambda x: jax.lax.scan(
        lambda c, _: (jax.lax.fori_loop(0, 3, lambda _, c: c @ c, c), 0), x, length=2
      ),
    ],
    77: [functools.partial(pallas_product, cost_estimate=cost)],
    0: [lambda x: jnp.sum(x * x), lambda x: x.at[0].add(1)],
  }
  for expected, functions in cases.items():
    for i, function in enumerate(functions):
      assert count(function, MATRIX) == MatmulFlops(expected, expected), (expected, i)


def test_devices_share_the_work():
  mesh = Mesh(np.array(jax.devices()[:1]), ('data',))
  spec = PartitionSpec('data')
  split = jax.shard_map(
    lambda x, y: x @ y, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
  )
  assert count(split, MATRIX, MATRIX).dense == PRODUCT


def test_kernel_in_an_attention_call():
  cost = pl.CostEstimate(flops=100, transcendentals=0, bytes_accessed=0)  # half of all pairs

  @jax.jit
  def _prefix_attention_kernel(q, k, lengths):
    del k, lengths
    return pallas_product(q, cost_estimate=cost)

  lengths = jnp.array([[[1, 2, 3, 4]]])
  flops = count(_prefix_attention_kernel, shape(1, 1, 4, 1, 2), shape(1, 4, 1, 2), lengths)
  assert flops == MatmulFlops(100, 2 * 100 * 2.5 / 4)


def unknown_kernel(x):
  def unknown(x_ref, y_ref):
    del x_ref, y_ref

  out = shape(*x.shape)
  return plgpu.kernel(unknown, out_type=out, grid=(1,), grid_names=('block',))(x)


@pytest.mark.parametrize(
  'function, sentence',
  [
    (unknown_kernel, 'does not know the kernel unknown'),
    (lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), 'while loop'),
    (pallas_product, 'no cost_estimate'),
    (lambda x: jnp.convolve(x[0], x[1]), 'conv_general_dilated'),
  ],
)
def test_what_cannot_be_counted_is_refused(function, sentence):
  with pytest.raises(ValueError, match=sentence):
    count(function, MATRIX)
