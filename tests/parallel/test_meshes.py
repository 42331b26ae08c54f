"""Meshes change nothing but speed: training, likelihood and decoding on 8 devices as on one."""

import collections
import functools
import itertools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import on_mesh
import pytest
import tiny
from parallel import test_axes

from armd_jax import families, models, training
from armd_jax.data import documents
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode.generate import generate, task_of
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.families import FAMILIES
from armd_jax.hardware import device
from armd_jax.models import vocabulary
from armd_jax.parallel import axes, sharding
from armd_jax.training import adapters


def train_config(**changes):
  """Of layers in scans of two, and of batches that eight devices share."""
  own = dict(model__num_layers=4, train__batch_size=16, train__loss_chunk=4)
  return tiny.train_config(**own | changes)


def compile_gradients(mesh, config):
  """The compiled `loss_and_gradients(params, text)` of step 3."""
  abstract = training.abstract_state(config, tiny.VOCAB, mesh).params
  rows = sharding.batch_sharding(mesh)
  text = jax.ShapeDtypeStruct((config.train.batch_size, config.model.length), jnp.int32)

  def run(params, text_BxN):
    with axes.on(mesh):
      return training.loss_and_gradients(config, tiny.VOCAB, params, 3, text_BxN)

  where = jax.tree.map(lambda x: x.sharding, abstract)
  trained = adapters.trained(config.optimizer, where)
  shardings = dict(in_shardings=(where, rows), out_shardings=(sharding.replicated(mesh), trained))
  return jax.jit(run, **shardings).lower(abstract, text).compile()


def gradients(mesh_sizes, config):
  mesh = on_mesh.mesh(mesh_sizes)
  params = training.new_state(config, tiny.VOCAB, mesh).params
  shake = lambda x: jax.device_put(x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape), x.sharding)
  # At first half of an adapter is, and the gates of conditioned layers are shut.
  is_zero = lambda path: path[-1].key.endswith('_out') or 'modulation' in jax.tree_util.keystr(path)
  params = jax.tree_util.tree_map_with_path(lambda p, x: shake(x) if is_zero(p) else x, params)
  shape = config.train.batch_size, config.model.length
  text = np.random.default_rng(0).integers(0, tiny.VOCAB, shape).astype(np.int32)
  if config.data.packing == documents.PACKING:  # a prompt, an answer, padding, of other lengths
    start, place = np.arange(len(text))[:, None] % 5, np.arange(shape[1])
    text = np.where(place < start, ~text, np.where(place < 9 + start, text, documents.PADDING))
  text = sharding.put(text.astype(np.int32), sharding.batch_sharding(mesh))
  (loss, kinds), found = jax.device_get(compile_gradients(mesh, config)(params, text))
  if config.model.has_own_orders:  # of which there are no kinds
    assert not kinds.any()
    return loss, found
  return ((loss,) if config.model.orders == 'none' else (loss, kinds)), found


def assert_same(found, expected):
  """Loss and every gradient, to 1e-5 of its largest entry."""
  pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
  for (path, a), b in pairs:
    assert np.abs(b).max() > 0, path
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=str(path))


NETWORKS = {
  'plain': train_config(),
  'micro-batches': train_config(train__accumulation=2),
  'one key head': train_config(
    model__num_kv_heads=1, model__scan_layers=False, model__num_layers=2
  ),
  # What open models have, and our recipe.
  'llama': train_config(
    model__num_layers=2, model__num_kv_heads=2, model__head_dim=16, model__mlp='swiglu',
    model__biases='all', model__query_key_norm=True, model__tied_head=False,
    model__query_seed='neighbours', order__segments_prob=0.5,
  ),
  # Adapters at their own size: times 16 / 3, a change of the parameters in the last place changes
  # gradients by 3e-5 of their largest entry.
  'lora': train_config(model__num_kv_heads=2, optimizer__lora_rank=3, optimizer__lora_alpha=3.0),
  'documents': train_config(
    data__packing='documents', order__strided_start=0, order__segments_prob=0.5,
    train__accumulation=2,
  ),
  'esolm': train_config(
    model__family='esolm', model__num_layers=2, model__diffusion={'esolm_diffused': 0.4},
    train__accumulation=2,
  ),
  'bd3lm': train_config(
    model__num_layers=2, model__family='bd3lm', model__num_kv_heads=1, model__vocab_multiple=8,
  ),
  'setdlm': train_config(
    model__num_layers=2, model__family='setdlm', model__vocab_multiple=8, train__accumulation=2
  ),
}  # fmt: skip


@functools.cache
def on_one_device(network):
  """Loss and gradients of one step, without a mesh and in one piece."""
  return gradients((1, 1, 1), NETWORKS['plain' if network == 'micro-batches' else network])


# Every network and every mesh once in `make test`; the other pairs are drills.
CHOSEN = {
  'plain': (8, 1, 1),
  'micro-batches': (2, 2, 2),
  'one key head': (1, 4, 2),  # on two devices
  'llama': (2, 2, 2),
  'lora': (1, 8, 1),
  'documents': (1, 4, 2),
  'esolm': (2, 2, 2),
  'bd3lm': (1, 4, 2),
  'setdlm': (1, 8, 1),
}


@pytest.mark.parametrize(
  ('network', 'mesh_sizes'),
  [
    pytest.param(network, sizes, marks=() if CHOSEN[network] == sizes else pytest.mark.drill)
    for network, sizes in itertools.product(NETWORKS, on_mesh.MESHES)
    if math.prod(sizes) > 1 or network == 'micro-batches'
  ],
  ids=str,
)
def test_loss_and_gradients(eight_devices, network, mesh_sizes):
  """With dropout and shuffled orders, however many devices and micro-batches share the batch."""
  found = eight_devices(gradients, mesh_sizes, NETWORKS[network])
  assert_same(found, on_one_device(network))


def gradients_looked_up_in_pieces(mesh_sizes, config):
  # Five sequences, then five, then the rest.
  with mock.patch.object(vocabulary, 'LOOKED_UP_AT_ONCE', 80):
    return gradients(mesh_sizes, config)


def test_rows_looked_up_in_pieces_are_the_same(eight_devices):
  found = eight_devices(gradients_looked_up_in_pieces, (1, 4, 2), NETWORKS['plain'])
  assert_same(found, on_one_device('plain'))


def gradients_as_gpus_compute_them(mesh_sizes, config):
  with device.compiling_for(device.HOPPER):  # float32, so that attention's kernels take no part
    return gradients(mesh_sizes, config)


def test_loss_and_gradients_as_gpus_compute_them(eight_devices):
  """Layers without a loop, which the backward pass runs again in part; half of the devices hold
  nothing but the padding of the vocabulary."""
  config = train_config(model__remat='dots')
  found = eight_devices(gradients_as_gpus_compute_them, (2, 2, 2), config)
  assert_same(found, on_one_device('plain'))


# ----- what devices tell each other


def collectives(text):
  """(kind, bytes of the result, times it runs) of a compiled program's collectives; none of them is
  of groups of one device."""
  text = re.sub(r'/\*.*?\*/', '', text)
  bodies, name = collections.defaultdict(list), None
  for line in text.splitlines():
    if header := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      name = 'ENTRY' if header[1] else header[2]
    bodies[name].append(line)

  def walk(name, times):
    for line in bodies[name]:
      if loop := re.search(r' while\(.*body=%?([\w.\-]+)', line):
        count = int(re.search(r'known_trip_count[^}]*?"n":"(\d+)"', line)[1])
        yield from walk(loop[1], times * count)
      kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'
      if call := re.search(rf'= (.*?) ({kinds})(-start)?\(', line):
        groups = re.search(r'replica_groups=(\S+)', line)[1]
        assert not re.fullmatch(r'\{(\{\d+\},?)*\},?|\[\d+,1\]\S*', groups), line
        yield call[2], num_bytes(call[1]), times
      for call in re.findall(r'(?:calls|to_apply)=%?([\w.\-]+)', line):
        yield from walk(call, times)

  return list(walk('ENTRY', 1))


def num_bytes(shapes):
  sizes = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'pred': 1}
  found = re.findall(r'(\w+)\[([\d,]*)\]', shapes)
  return sum(sizes[kind] * math.prod(int(n) for n in dims.split(',') if n) for kind, dims in found)


def program(mesh_sizes, config):
  return compile_gradients(on_mesh.mesh(mesh_sizes), config).as_text()


def test_loss_chunks_add_nothing_but_two_small_sums(eight_devices):
  """Four loss chunks instead of one: two sums over the tensor axis for each, of as many numbers in
  all, and not one byte more of anything else."""
  calls, amounts = [], []
  for chunk in (16, 4):
    calls.append(collections.Counter())
    amounts.append(collections.Counter())
    program_text = eight_devices(program, (2, 2, 2), train_config(train__loss_chunk=chunk))
    for kind, size, times in collectives(program_text):
      calls[-1][kind] += times
      amounts[-1][kind] += times * size
  assert set(calls[0]) == {'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all'}
  assert amounts[0] == amounts[1]
  assert calls[1] - calls[0] == {'all-reduce': 2 * 3}


def test_no_table_and_no_logits_travel(eight_devices):
  """A vocabulary of 4096 and few tokens: only the loss gathers the table, over fsdp alone, and only
  its gradient is added up; neither logits nor the looked-up table ever cross the tensor axis."""
  config = train_config(model__vocab_multiple=4096)
  found = collectives(eight_devices(program, (1, 4, 2), config))
  part = 4096 // 2 * 32 * 4  # bytes of what a device's half of the vocabulary is wide
  large = collections.Counter(kind for kind, size, _ in found if size >= part // 4)
  assert large == {'all-gather': 1, 'reduce-scatter': 1}


def test_looked_up_rows_travel_in_the_compute_dtype():
  """And so do their gradients, which are then added up in float32."""
  config = train_config(model__dtype='bfloat16')
  params = jax.eval_shape(lambda: training.init_state(config, tiny.VOCAB).params)
  text = jax.ShapeDtypeStruct((16, 16), jnp.int32)
  run = lambda params, text: training.loss_and_gradients(config, tiny.VOCAB, params, 3, text)
  mesh = jax.sharding.AbstractMesh((1, 4, 2), ('data', 'fsdp', 'tensor'))
  with jax.sharding.use_abstract_mesh(mesh):
    jaxpr = jax.make_jaxpr(run)(params, text)
  dtypes = collections.defaultdict(list)
  for eqn, _ in test_axes.equations(jaxpr.jaxpr):
    dtypes[eqn.primitive.name] += [x.aval.dtype for x in eqn.outvars]
  assert dtypes['all_to_all'] == [jnp.bfloat16] * 2
  assert dtypes['scatter-add'] == [jnp.float32]


def trace_for_chip(chip):
  """Of all kernels of the training step, whether they stand inside shard_map."""
  mesh = on_mesh.mesh((2, 2, 2))
  config = train_config(model__embed_dim=256, model__dtype='bfloat16', model__remat='dots')
  state = training.abstract_state(config, tiny.VOCAB, mesh)
  text = jax.ShapeDtypeStruct((16, 16), jnp.int32)
  with device.compiling_for(chip):
    jaxpr = training.train_step(config, tiny.VOCAB, mesh).trace(state, text).jaxpr
  return test_axes.kernels_of(jaxpr.jaxpr)


@pytest.mark.parametrize('chip', ['v5p', 'H100'])
def test_kernels_of_the_training_step_run_per_device(eight_devices, chip):
  inside = eight_devices(trace_for_chip, chip)
  assert len(inside) >= 4 and all(inside)  # two stacks and a layer, forward and backward


# ----- likelihood and decoding


def nats(mesh_sizes):
  config = tiny.model_config(vocab_multiple=8)
  mesh = on_mesh.mesh(mesh_sizes)
  params = jax.device_put(tiny.init(config)[1], sharding.tree_sharding(mesh, tiny.init(config)[1]))
  windows = np.random.default_rng(0).integers(0, tiny.VOCAB, (20, 16))
  protocols = likelihood.UNIFORM, *likelihood.strided_protocols(4)
  model = models.build(config, tiny.VOCAB)
  run = lambda p: likelihood.nll(model, params, windows, p, mesh, batch_size=8)
  return [np.concatenate(list(run(protocol))) for protocol in protocols]


@pytest.mark.parametrize('mesh_sizes', [(8, 1, 1), (2, 2, 2)])
def test_likelihood(eight_devices, mesh_sizes):
  np.testing.assert_allclose(eight_devices(nats, mesh_sizes), nats((1, 1, 1)), rtol=1e-5)


def texts(mesh_sizes):
  """Tokens, lengths, steps and margins: a batch in step, and one of prompts, gaps and lengths."""
  config = tiny.model_config(num_kv_heads=2, vocab_multiple=8, query_seed='neighbours')
  mesh = on_mesh.mesh(mesh_sizes)
  model, params = tiny.init(config)
  params = jax.device_put(params, sharding.tree_sharding(mesh, params))
  text = np.random.default_rng(0).integers(0, tiny.VOCAB, (5, 16))
  empty, ragged = np.zeros((5, 16), bool), np.zeros((5, 16), bool)
  ragged[1, :5] = True
  ragged[2, [0, 3, 4, 9]] = True
  ragged[4, 3:] = True
  found = []
  for given, length in ((empty, np.full(5, 16)), (ragged, np.array([16, 16, 16, 11, 16]))):
    for streams in (1, 4):
      task = task_of(given, length, streams)
      run = generate(model, params, task, text, Sampling(seed=2, stop=3), mesh=mesh)
      found.append(jax.device_get(run))
  return found


ON_MESHES = [
  pytest.param(sizes, marks=() if sizes == (2, 2, 2) else pytest.mark.drill)
  for sizes in on_mesh.MESHES[1:]
]


@pytest.mark.parametrize('mesh_sizes', ON_MESHES, ids=str)
def test_decoding(eight_devices, mesh_sizes):
  """Prompts, gaps, early stops; five texts, which eight devices cannot share evenly."""
  for found, expected in zip(eight_devices(texts, mesh_sizes), texts((1, 1, 1)), strict=True):
    closest = f'the closest decisions: {expected.margin_B} nats'
    np.testing.assert_array_equal(found.tokens_BxN, expected.tokens_BxN, err_msg=closest)
    np.testing.assert_array_equal(found.length_B, expected.length_B)
    assert found.steps == expected.steps
    np.testing.assert_allclose(found.margin_B, expected.margin_B, atol=1e-4)


def denoised(mesh_sizes, family):
  """A diffusion baseline's bound of texts, and five texts it generates."""
  config = tiny.model_config(family=family, num_layers=1, vocab_multiple=8)
  mesh = on_mesh.mesh(mesh_sizes)
  model, params = tiny.init(config)
  params = jax.device_put(params, sharding.tree_sharding(mesh, params))
  text = np.random.default_rng(0).integers(0, tiny.VOCAB, (8, 16))
  bound = likelihood.nll(model, params, text, likelihood.DENOISING, mesh, batch_size=8)
  infills = families.of(config).infills
  given = text[:5] < 2 if infills else np.arange(16) < np.array([[0], [3], [9], [4], [1]])
  length = np.array([16, 16, 16, 11, 16])
  request = Request(text[:5], given, length)
  decoder = Decoder(model, params, ByteTokenizer(), mesh)
  _, run = families.of(config).generate(decoder, request, Sampling(), steps=6)
  return next(bound), jax.device_get(run)


@pytest.mark.parametrize('family', ['sedd', 'bd3lm', 'setdlm'])
def test_denoising(eight_devices, family):
  nats, run = denoised((1, 1, 1), family)
  found_nats, found = eight_devices(denoised, (2, 2, 2), family)
  np.testing.assert_allclose(found_nats, nats, rtol=1e-5)
  closest = f'the closest decisions: {run.margin_B} nats'
  np.testing.assert_array_equal(found.tokens_BxN, run.tokens_BxN, err_msg=closest)
  assert found.steps == run.steps


def in_phases(mesh_sizes):
  """Eso-LM's bound of texts, and five texts it generates, of which one has a prompt."""
  config = tiny.model_config(
    family='esolm', num_layers=2, vocab_multiple=8, diffusion={'esolm_diffused': 0.5}
  )
  mesh = on_mesh.mesh(mesh_sizes)
  model, params = tiny.init(config)
  params = jax.device_put(params, sharding.tree_sharding(mesh, params))
  text = np.random.default_rng(0).integers(0, tiny.VOCAB, (8, 16))
  bound = likelihood.nll(model, params, text, likelihood.DENOISING, mesh, batch_size=8)
  request = Request(text[:5], text[:5] < 2, np.array([16, 16, 16, 11, 16]))
  decoder = Decoder(model, params, ByteTokenizer(), mesh)
  _, run = FAMILIES['esolm'].generate(decoder, request, Sampling(), streams=3)
  return next(bound), jax.device_get(run)


@pytest.mark.parametrize('mesh_sizes', ON_MESHES, ids=str)
def test_phases(eight_devices, mesh_sizes):
  nats, run = in_phases((1, 1, 1))
  found_nats, found = eight_devices(in_phases, mesh_sizes)
  np.testing.assert_allclose(found_nats, nats, rtol=1e-5)
  closest = f'the closest decisions: {run.margin_B} nats'
  np.testing.assert_array_equal(found.tokens_BxN, run.tokens_BxN, err_msg=closest)
  np.testing.assert_array_equal(found.step_BxN, run.step_BxN)
  assert found.steps == run.steps


# ----- what a mesh cannot share


@pytest.mark.parametrize(
  ('sizes', 'model', 'message'),
  [
    (
      (1, 8, 1),
      dict(embed_dim=36, num_heads=2),
      'embed_dim is 36, which config.mesh.fsdp = 8 does not divide',
    ),
    ((1, 1, 8), {}, 'num_heads is 4, which config.mesh.tensor = 8 does not divide; write a multip'),
    ((1, 1, 4), dict(mlp_dim=66), 'mlp_dim is 66, which config.mesh.tensor = 4 does not divide'),
    ((1, 1, 4), dict(num_heads=12, num_kv_heads=3, embed_dim=48), 'num_kv_heads is 3, neither a'),
    ((1, 1, 4), {}, 'of 7 entries cannot be cut into config.mesh.tensor = 4'),
  ],
)
def test_what_a_mesh_cannot_share_is_refused(sizes, model, message):
  mesh = jax.sharding.AbstractMesh(sizes, ('data', 'fsdp', 'tensor'))
  with pytest.raises(UserError, match=re.escape(message)):
    sharding.check_model(tiny.model_config(**model), tiny.VOCAB, mesh)


def test_one_key_head_on_four_devices_is_fine():
  mesh = jax.sharding.AbstractMesh((1, 1, 4), ('data', 'fsdp', 'tensor'))
  sharding.check_model(tiny.model_config(num_kv_heads=1, vocab_multiple=8), tiny.VOCAB, mesh)
