"""Logical axes are strict, and attention runs on every device's own sequences and heads."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import on_mesh
import pytest
import tiny

from armd_jax import attention, training
from armd_jax import config as config_lib
from armd_jax.hardware import device
from armd_jax.parallel import axes, sharding


def test_an_unknown_axis_is_an_error():
  with pytest.raises(ValueError, match="no row of MESH_AXES is called 'width'"):
    axes.constrain(jnp.zeros((2, 2)), 'batch', 'width')
  with pytest.raises(ValueError, match='no row of MESH_AXES'):
    axes.split(jnp.sin, (('rows',),), (None,))
  with pytest.raises(ValueError, match=r'2 names .* for an array of shape \(2,\)'):
    axes.constrain(jnp.zeros(2), 'batch', None)


def test_what_a_device_holds():
  """Of matrices the part along fsdp and along tensor, of a batch the part along data and fsdp."""
  mesh = jax.sharding.AbstractMesh((3, 4, 2), ('data', 'fsdp', 'tensor'))
  model = tiny.model_config(num_kv_heads=2, vocab_multiple=10, scan_layers=False, num_layers=2)
  config = config_lib.parse({'model': dataclasses.asdict(model), 'order': {'max_shuffled': 1}})
  state = training.abstract_state(config, tiny.VOCAB, mesh)
  expected = {
    'vocabulary/embedding': (10 // 2, 32 // 4),
    'query/kernel': (32 // 4, 4 // 2, 8),
    'key_value/kernel': (32 // 4, 2, 2 // 2, 8),
    'out/kernel': (4 // 2, 8, 32 // 4),
    'up/kernel': (32 // 4, 64 // 2),
    'down/kernel': (64 // 2, 32 // 4),
  }
  found = collections.defaultdict(list)
  for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.ema, state.opt_state)):
    found['/'.join(axes.path_name(path).split('/')[-2:])].append(x.sharding.shard_shape(x.shape))
  for name, part in expected.items():
    # Parameters, average, and both moments of AdamW.
    assert found[name] == [part] * (4 if name == 'vocabulary/embedding' else 8), name
  assert sharding.batch_sharding(mesh).shard_shape((24, 16)) == (24 // (3 * 4), 16)


def sums_over_vocab(mesh_sizes):
  with axes.on(on_mesh.mesh(mesh_sizes)):
    add = axes.split(lambda x_V: axes.total(x_V.sum(), 'vocab'), (('vocab',),), ())
    return str(jax.make_jaxpr(add)(jnp.zeros(8))).count('psum')


@pytest.mark.parametrize(('mesh_sizes', 'sums'), [((8, 1, 1), 0), ((1, 8, 1), 0), ((2, 2, 2), 1)])
def test_an_axis_of_one_device_costs_no_sum(mesh_sizes, sums, eight_devices):
  assert eight_devices(sums_over_vocab, mesh_sizes) == sums


def attention_gradients(mesh_sizes, groups, backend, batches=(1, 4)):
  """Output, dq, dk and dv of two streams on a mesh; with lengths for all and for each sequence."""
  rng = np.random.default_rng(0)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, k, v = make(4, 2, 40, 4, 64), make(4, 40, groups, 64), make(4, 40, groups, 64)
  mesh = on_mesh.mesh(mesh_sizes)

  def run(q, k, v, lengths):
    with axes.on(mesh):
      attend = lambda q, k, v: attention.prefix_attention(q, k, v, lengths, backend=backend)
      out, pullback = jax.vjp(attend, q, k, v)
      return out, *pullback(out)

  run = jax.jit(run, in_shardings=sharding.replicated(mesh))
  lengths = {b: np.sort(rng.integers(0, 41, (b, 2, 40))).astype(np.int32) for b in (1, 4)}
  return [jax.device_get(run(q, k, v, lengths[b])) for b in batches]


def interpreted(mesh_sizes, groups):
  with device.interpreting_tpu():
    return attention_gradients(mesh_sizes, groups, 'pallas_tpu', (4,))


def assert_equal(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize(
  ('mesh_sizes', 'groups'),
  [((2, 2, 2), 4), ((1, 4, 2), 1), ((2, 1, 4), 2)],  # fewer key heads than devices to hold them
)
def test_attention_on_a_mesh_equals_one_device(eight_devices, mesh_sizes, groups):
  expected = attention_gradients((1, 1, 1), groups, 'reference')
  assert_equal(eight_devices(attention_gradients, mesh_sizes, groups, 'reference'), expected)


def test_interpreted_tpu_kernels_on_a_mesh_equal_the_reference(eight_devices):
  expected = attention_gradients((1, 1, 1), 2, 'reference', (4,))
  assert_equal(eight_devices(interpreted, (2, 1, 4), 2), expected)


def test_heads_that_a_mesh_cannot_share_are_an_error():
  mesh = jax.sharding.AbstractMesh((1, 1, 4), ('data', 'fsdp', 'tensor'))
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  rows, lengths = shape(1, 1, 8, 12, 64), jax.ShapeDtypeStruct((1, 1, 8), jnp.int32)
  with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ValueError, match='into 4 parts'):
    jax.eval_shape(attention.prefix_attention, rows, *[shape(1, 8, 3, 64)] * 2, lengths)


@pytest.mark.parametrize('chip', ['v5p', 'H100'])
def test_kernels_see_what_one_device_holds(chip):
  """Traced for chips that are not here, kernels stand inside shard_map only."""
  mesh = jax.sharding.AbstractMesh((2, 2, 4), ('data', 'fsdp', 'tensor'))
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
  lengths = jnp.ones((1, 2, 256), jnp.int32)

  def loss(q, k, v):
    return attention.prefix_attention(q, k, v, lengths).astype(jnp.float32).sum()

  with device.compiling_for(chip), jax.sharding.use_abstract_mesh(mesh):
    arguments = shape(8, 2, 256, 8, 64), shape(8, 256, 4, 64), shape(8, 256, 4, 64)
    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*arguments)
  found = kernels_of(jaxpr.jaxpr)
  assert found and all(found)


KERNELS = ('pallas_call', 'core_map', 'mpmd_map')  # primitives


def kernels_of(jaxpr):
  """Of every Pallas kernel, whether it stands inside shard_map."""
  return [inside for eqn, inside in equations(jaxpr) if eqn.primitive.name in KERNELS]


def equations(jaxpr, inside=False):
  """Every equation, those of kernels left out, and whether it stands inside shard_map."""
  for eqn in jaxpr.eqns:
    yield eqn, inside
    if eqn.primitive.name in KERNELS:
      continue
    is_jaxpr = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    for inner in filter(is_jaxpr, jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)):
      inner = getattr(inner, 'jaxpr', inner)
      yield from equations(inner, inside or eqn.primitive.name == 'shard_map')
