"""Optimizers and schedules: what each does to a matrix, a rate, memory, and on meshes."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import on_mesh
import optax
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import families, models, training
from armd_jax.config import OptimizerConfig
from armd_jax.errors import UserError
from armd_jax.parallel import axes, sharding
from armd_jax.training import optimizers

# ----- schedules


def rates(steps, **fields):
  rate = training.learning_rate_at(OptimizerConfig(learning_rate=1.0, warmup_steps=4, **fields))
  return np.array([float(rate(step)) for step in steps])


def test_a_schedule_warms_up_falls_and_ends():
  steps = [0, 3, 4, 8, 12, 20, 99]
  up = [0.25, 1.0]
  np.testing.assert_allclose(rates(steps), [*up, 1, 1, 1, 1, 1])
  linear = rates(steps, schedule='linear', schedule_steps=20)
  np.testing.assert_allclose(linear, [*up, 1, 0.75, 0.5, 0, 0], atol=1e-7)
  cosine = rates(steps, schedule='cosine', schedule_steps=20, final_share=0.1)
  quarter = 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2
  np.testing.assert_allclose(cosine, [*up, 1, quarter, 0.55, 0.1, 0.1], rtol=1e-6)
  decay = {'schedule': 'warmup_stable_decay', 'schedule_steps': 20, 'decay_steps': 10}
  np.testing.assert_allclose(rates([3, 10, 15, 20, 30], **decay), [1, 1, 0.5, 0, 0], atol=1e-7)


def parsed(init_from='', init_step=-1, steps=100, **optimizer):
  raw = {'init_from': init_from, 'init_step': init_step, 'train': {'steps': steps}}
  return config_lib.parse(raw | {'optimizer': {'warmup_steps': 5} | optimizer}).optimizer


def test_a_schedule_ends_with_the_run_unless_it_says_otherwise():
  ends = lambda **fields: (
    (found := parsed(**fields)).schedule_steps, found.decay_steps
  )  # fmt: skip
  assert ends() == (-1, -1)  # so that longer training is the same run
  assert ends(schedule='linear') == (100, -1)
  assert ends(schedule='warmup_stable_decay') == (100, 20)
  assert ends(schedule='warmup_stable_decay', schedule_steps=50, final_share=0.1) == (50, 10)
  again = config_lib.parse(
    config_lib.to_dict(config_lib.parse({'optimizer': {'schedule': 'cosine'}}))
  )
  assert again.optimizer.schedule_steps == again.train.steps


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'schedule_steps': 9}, "schedule_steps is 9 but config.optimizer.schedule is 'constant'"),
    ({'schedule': 'linear', 'schedule_steps': 5}, 'write more than warmup_steps = 5'),
    ({'schedule': 'cosine', 'decay_steps': 5}, "write 'warmup_stable_decay', or -1"),
    ({'schedule': 'warmup_stable_decay', 'decay_steps': 96}, 'write at most the 100 steps'),
    ({'schedule_restarts': True}, 'init_from is empty, so that there is nothing'),
    ({'init_step': 3}, 'init_step is 3 but config.init_from is empty'),
    (
      {'schedule': 'linear', 'schedule_restarts': True, 'init_from': 'x'},
      'write the number of steps from there',
    ),
    ({'schedule': 'linear', 'schedule_steps': 99}, 'the last steps would change nothing'),
    ({'kind': 'muon', 'lora_rank': 2}, 'of which adapters alone are trained; write another kind'),
    ({'kind': 'sgd'}, "write one of 'adamw', 'muon', 'adafactor'"),
  ],
)
def test_a_schedule_that_cannot_be_is_a_sentence(fields, message):
  with pytest.raises(UserError, match=message):
    parsed(**fields)


def test_the_metric_is_the_rate_that_was_used():
  """Also where a step was skipped before, and where the schedule began anew."""
  schedule = {'schedule': 'linear', 'schedule_steps': 10, 'learning_rate': 1.0, 'warmup_steps': 0}
  config = tiny.train_config(
    train__steps=10, **{f'optimizer__{name}': x for name, x in schedule.items()}
  )
  anew = dataclasses.replace(
    config, optimizer=dataclasses.replace(config.optimizer, schedule_restarts=True)
  )
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  text = np.zeros((8, 16), np.int32)
  for of, expected in ((config, [0.5, 0.4]), (anew, [1.0, 0.9])):
    state = training.new_state(of, tiny.VOCAB, mesh)
    state = state.replace(step=state.step + 6, skipped=state.skipped + 1)
    state = training.taken_over(of, config.optimizer, state, tiny.VOCAB, mesh)
    step = training.train_step(of, tiny.VOCAB, mesh)
    for rate in expected:
      before = int(optimizers.steps_taken(state.opt_state))
      state, metrics = step(state, text)
      np.testing.assert_allclose(metrics['learning_rate'], rate, rtol=1e-6)
      np.testing.assert_allclose(training.learning_rate_at(of.optimizer)(before), rate, rtol=1e-6)


# ----- optimizers


def updates(kind, gradients, params, **fields):
  """Of the first step at a rate of 1."""
  fields = {'learning_rate': 1.0, 'warmup_steps': 0, 'clip_norm': 1e9} | fields
  optimizer = training.make_optimizer(OptimizerConfig(kind=kind, **fields))
  return optimizer.update(gradients, optimizer.init(params), params)[0]


def drawn(family='armd', **changes):
  """Parameters and gradients of a model."""
  model = families.build(tiny.model_config(family=family, **changes), tiny.VOCAB)
  params = jax.jit(lambda: models.init(model, jax.random.key(0)))()
  key = lambda path: jax.random.key(zlib.crc32(axes.path_name(path).encode()))
  draw = lambda path, x: jax.random.normal(key(path), x.shape)
  return params, jax.tree_util.tree_map_with_path(draw, params)


def as_matrices(name, x):
  """The matrices that products with a parameter are of, [count, in, out]; None of what is none."""
  if name in ('query', 'up', 'down'):
    *_, rows = (size for size in x.shape[: -2 if name == 'query' else -1])
    return x.reshape(-1, rows, np.prod(x.shape[-2:] if name == 'query' else x.shape[-1:]))
  if name in ('key_value', 'gate_up'):
    heads = x.shape[-2:] if name == 'key_value' else x.shape[-1:]
    pairs = np.moveaxis(x, -2 - len(heads), -1 - len(heads))  # of keys and values, side by side
    return pairs.reshape(-1, pairs.shape[-1 - len(heads)], np.prod(heads))
  return x.reshape(-1, np.prod(x.shape[-3:-1]), x.shape[-1]) if name == 'out' else None


@pytest.mark.parametrize('changes', [{}, dict(mlp='swiglu', scan_layers=False, num_kv_heads=2)])
def test_muon_moves_every_matrix_of_a_layer_in_all_its_directions(changes):
  params, gradients = drawn(**changes)
  found, adam = (updates(kind, gradients, params) for kind in ('muon', 'adamw'))
  pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(adam), strict=True)
  names = set()
  for (path, x), same in pairs:
    name = path[-2].key
    if path[-1].key != 'kernel':
      np.testing.assert_array_equal(x, same)
      continue
    names.add(name)
    spread = lambda x, name=name: np.linalg.svd(as_matrices(name, np.asarray(x)), compute_uv=False)
    # Newton's and Schulz's five steps bring most singular values to 0.7 ... 1.2.
    values = spread(x) / (0.2 * max(as_matrices(name, x).shape[1:]) ** 0.5)
    assert np.median(values) > 0.6 and values.max() < 1.3 and values.min() > 0.1, path
    assert spread(same).max() > 1.4 * np.median(spread(same))
  up = 'gate_up' if changes else 'up'
  assert names == {'query', 'key_value', 'out', up, 'down'}


def test_rates_of_adamw_suit_all():
  """Updates of like size, so that a rate, and weight decay beside it, mean the same."""
  params, gradients = drawn()
  sizes = {}
  for kind in ('adamw', 'muon', 'adafactor'):
    matrices = [
      x for path, x in jax.tree_util.tree_leaves_with_path(updates(kind, gradients, params))
      if optimizers._axes_of(path)
    ]  # fmt: skip
    sizes[kind] = float(jnp.sqrt(jnp.mean(jnp.concatenate([x.ravel() ** 2 for x in matrices]))))
  # The first update of Adam has entries of 1; those of later ones are about a fifth of it.
  assert sizes['adamw'] == pytest.approx(1, rel=0.01)
  assert 0.1 < sizes['muon'] < 0.3
  assert 0.01 < sizes['adafactor'] < 0.3  # its average begins at 0
  decayed = updates('muon', gradients, params, weight_decay=0.5)
  plain = updates('muon', gradients, params)
  kernel = lambda tree: tree['two_stream']['layers']['up']['kernel']
  np.testing.assert_allclose(
    kernel(decayed), kernel(plain) - 0.5 * kernel(params), rtol=1e-4, atol=1e-6
  )


def test_adafactor_keeps_a_quarter_of_what_adamw_keeps():
  shapes = lambda kind: jax.eval_shape(
    training.make_optimizer(OptimizerConfig(kind=kind)).init, drawn(embed_dim=128, mlp_dim=512)[0]
  )
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  assert size(shapes('adafactor')) < 0.35 * size(shapes('adamw'))
  assert size(shapes('muon')) < 0.65 * size(shapes('adamw'))


@pytest.mark.parametrize('kind', ['muon', 'adafactor'])
def test_a_step_that_is_skipped_changes_nothing_of_any_state(kind):
  config = tiny.train_config(optimizer__kind=kind)
  large = dataclasses.replace(config.optimizer, learning_rate=1e39)
  config = dataclasses.replace(config, optimizer=large)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  state = training.new_state(config, tiny.VOCAB, mesh)
  before = jax.device_get(state.opt_state)
  state, metrics = training.train_step(config, tiny.VOCAB, mesh)(state, np.zeros((8, 16), np.int32))
  assert not metrics['finite']
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.opt_state))


def trained(mesh_sizes, kind):
  """Losses of five steps."""
  config = tiny.train_config(
    optimizer__kind=kind, train__batch_size=16, train__loss_chunk=4, model__embed_dim=64
  )
  mesh = on_mesh.mesh(mesh_sizes)
  state = training.new_state(config, tiny.VOCAB, mesh)
  step, losses = training.train_step(config, tiny.VOCAB, mesh), []
  text = np.full((16, 16), 3, np.int32)
  for _ in range(5):
    state, metrics = step(state, sharding.put(text, sharding.batch_sharding(mesh)))
    losses.append(float(metrics['loss']))
  return losses


@pytest.mark.parametrize(
  ('kind', 'mesh_sizes'),
  [
    ('muon', (2, 2, 2)),
    ('adafactor', (1, 4, 2)),
    pytest.param('muon', (1, 4, 2), marks=pytest.mark.drill),
    pytest.param('adafactor', (2, 2, 2), marks=pytest.mark.drill),
  ],
  ids=str,
)
def test_meshes_change_nothing(eight_devices, kind, mesh_sizes):
  expected = trained((1, 1, 1), kind)
  assert expected[-1] < expected[0] - 0.1
  np.testing.assert_allclose(eight_devices(trained, mesh_sizes, kind), expected, rtol=2e-4)


def test_a_run_that_goes_on_with_another_optimizer_begins_it():
  other = tiny.train_config()
  config = tiny.train_config(optimizer__kind='muon')
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  state = training.new_state(other, tiny.VOCAB, mesh)
  state = state.replace(step=state.step + 3)
  found = training.taken_over(config, other.optimizer, state, tiny.VOCAB, mesh)
  wanted = training.abstract_state(config, tiny.VOCAB, mesh)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  assert int(optimizers.steps_taken(found.opt_state)) == 3
  said = optimizers.taken_over(config.optimizer, other.optimizer, 3)
  assert said.startswith(
    'muon begins, since it was trained with adamw, and the learning rate at st'
  )
  same = training.taken_over(other, other.optimizer, state, tiny.VOCAB, mesh)
  jax.tree.map(np.testing.assert_array_equal, same.params, state.params)
  assert isinstance(optax.tree.get(same.opt_state, 'mu'), dict)
