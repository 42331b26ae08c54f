"""The training step: randomness, memory, and that meshes and micro-batches change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import other_values
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import families, models, training
from armd_jax.config import OptimizerConfig
from armd_jax.hardware import device
from armd_jax.parallel import sharding


def run(config, steps=3, mesh_config=None):
  mesh = sharding.make_mesh(mesh_config or config.mesh, jax.devices()[:1])
  state = training.new_state(config, tiny.VOCAB, mesh)
  step = training.train_step(config, tiny.VOCAB, mesh)
  metrics = []
  for i in range(steps):
    text = jax.random.randint(jax.random.key(i), (8, 16), 0, tiny.VOCAB)
    state, m = step(state, text)
    metrics.append(jax.device_get(m))
  return state, metrics


def assert_close(a, b, rtol):
  scale = jax.tree.map(lambda x: float(np.abs(x).max()), a)
  jax.tree.map(lambda x, y, s: np.testing.assert_allclose(x, y, atol=rtol * s), a, b, scale)


@pytest.mark.parametrize(
  ('chip', 'platform', 'kernel'),
  [('H100', 'cuda', 'mosaic_gpu'), ('v5e', 'tpu', 'tpu_custom_call')],
)
def test_the_step_is_lowered_for_chips_that_are_not_here(chip, platform, kernel):
  """All of it, kernels included, as far as it goes without the chip's compiler."""
  sizes = dict(model__length=128, model__embed_dim=128, model__num_heads=2)
  config = tiny.train_config(**sizes, model__dtype='bfloat16')
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  state = training.abstract_state(config, tiny.VOCAB, mesh)
  text = jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=sharding.batch_sharding(mesh))
  training._train_step.cache_clear()  # which keeps the kernels that it was traced with
  jax.clear_caches()
  with device.compiling_for(chip):
    step = training.train_step(config, tiny.VOCAB, mesh)
    lowered = step.trace(state, text).lower(lowering_platforms=(platform,))
  training._train_step.cache_clear()
  jax.clear_caches()
  assert kernel in lowered.as_text()


def test_learns_a_constant_text():
  config = tiny.train_config(model__dropout=0.0)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  state = training.new_state(config, tiny.VOCAB, mesh)
  step = training.train_step(config, tiny.VOCAB, mesh)
  losses = []
  for _ in range(40):
    state, metrics = step(state, np.full((8, 16), 3))
    losses.append(float(metrics['loss']))
  assert abs(losses[0] - np.log(tiny.VOCAB)) < 0.5
  assert losses[-1] < 0.05


def test_accumulation_adds_up_to_the_same_gradient():
  """Dropout included: it depends on a sequence's index in the batch, not on its micro-batch."""
  config = tiny.train_config()
  _, whole = run(config)
  _, parts = run(
    dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=4))
  )
  for a, b in zip(whole, parts, strict=True):
    np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)
    np.testing.assert_allclose(a['gradient_norm'], b['gradient_norm'], rtol=1e-4)


@pytest.mark.parametrize(('times', 'is_taken'), [(9, True), (11, False)])
def test_a_gradient_far_above_the_recent_ones_is_left_out(times, is_taken):
  config = tiny.train_config(optimizer__skip_above=10.0)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  step = training.train_step(config, tiny.VOCAB, mesh)
  text = np.random.default_rng(0).integers(0, tiny.VOCAB, (8, 16))
  first, metrics = step(training.new_state(config, tiny.VOCAB, mesh), text)
  assert metrics['finite'] and jnp.isfinite(first.opt_state[0].norms).sum() == 1  # none before
  norm = step(jax.tree.map(jnp.copy, first), text)[1]['gradient_norm']
  few = jnp.full(64, jnp.nan).at[-5:].set(norm / times * jnp.array([1, 1, 1, 9, 1 / 9]))
  recent = (training.RecentNorms(few), *first.opt_state[1:])
  before = jax.device_get(first.params)
  state, metrics = step(first.replace(opt_state=recent), text)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
  assert (max(jax.tree.leaves(moved)) > 0) == is_taken == bool(metrics['finite'])
  assert state.skipped == 1 - is_taken and state.step == 2


def test_an_optimizer_goes_on_with_a_guard_and_without():
  plain, guarded = tiny.train_config(), tiny.train_config(optimizer__skip_above=10.0)
  mesh = sharding.make_mesh(plain.mesh, jax.devices()[:1])
  shape = lambda config, opt_state: jax.tree.map(
    jnp.shape, training.with_guard(config.optimizer, opt_state, mesh)
  )
  states = [training.new_state(c, tiny.VOCAB, mesh).opt_state for c in (plain, guarded)]
  for opt_state in states:
    assert shape(plain, opt_state) == jax.tree.map(jnp.shape, states[0])
    assert shape(guarded, opt_state) == jax.tree.map(jnp.shape, states[1])


def test_every_sequence_draws_its_own_dropout():
  """Equal sequences, left-to-right: with one draw for all, a batch would give the loss of one."""
  config = tiny.train_config(model__dropout=0.5, order__ar_steps=10**6, order__perm_steps=10**6)
  text = jnp.tile(jax.random.randint(jax.random.key(0), (1, 16), 0, tiny.VOCAB), (8, 1))
  params = training.init_state(config, tiny.VOCAB).params

  @jax.jit
  def loss(text):
    return training.loss_and_gradients(config, tiny.VOCAB, params, 0, text)[0][0]

  losses = [float(loss(text[:count])) for count in (1, 2, 4, 8)]
  assert len({round(x, 5) for x in losses}) == 4


def test_randomness_follows_seed_and_step():
  config = tiny.train_config()
  params = training.init_state(config, tiny.VOCAB).params
  text = jax.random.randint(jax.random.key(0), (8, 16), 0, tiny.VOCAB)

  @functools.partial(jax.jit, static_argnums=0)
  def loss(config, step):
    return training.loss_and_gradients(config, tiny.VOCAB, params, step, text)[0][0]

  assert loss(config, 1) == loss(config, 1)
  assert loss(config, 1) != loss(config, 2)
  assert loss(config, 1) != loss(dataclasses.replace(config, seed=1), 1)


def test_losses_by_kind_of_order_add_up_to_the_loss():
  """Also over micro-batches; each sequence counts once."""
  for accumulation in (1, 4):
    config = tiny.train_config(order__uniform_order_prob=0.5, train__accumulation=accumulation)
    for metrics in run(config)[1]:
      nats_K, count_K = metrics['kinds_2xK']
      assert count_K.sum() == 8 and count_K[1] > 0 and count_K[2] > 0 and count_K[3] == 0
      np.testing.assert_allclose(nats_K.sum() / 8, metrics['loss'], rtol=1e-5)
      assert (nats_K[count_K == 0] == 0).all()


@pytest.mark.parametrize('poison', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_only_counts(monkeypatch, poison):
  """Poisoned at step 1: nothing but the counters moves, and training goes on from there."""
  config = tiny.train_config()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  genuine = training.loss_and_gradients

  def poisoned(config, vocab_size, params, step, text_BxN):
    (loss, kinds_2xK), gradients = genuine(config, vocab_size, params, step, text_BxN)
    bad = jnp.where(step == 1, jnp.nan, 1.0)
    if poison == 'loss':
      return (loss * bad, kinds_2xK), gradients
    spread = lambda path, x: x * bad if path[-1].key == 'bos' else x
    return (loss, kinds_2xK), jax.tree_util.tree_map_with_path(spread, gradients)

  monkeypatch.setattr(training, 'loss_and_gradients', poisoned)
  training._train_step.cache_clear()
  step = training.train_step(config, tiny.VOCAB, mesh)
  states = [training.new_state(config, tiny.VOCAB, mesh)]
  for i in range(3):
    text = jax.random.randint(jax.random.key(i), (8, 16), 0, tiny.VOCAB)
    state, metrics = step(jax.tree.map(jnp.copy, states[-1]), text)
    states.append(state)
    assert metrics['skipped'] == (i > 0)
  training._train_step.cache_clear()
  _, first, second, third = states
  assert [int(s.step) for s in states] == [0, 1, 2, 3]
  assert [int(s.skipped) for s in states] == [0, 0, 1, 1]
  jax.tree.map(np.testing.assert_array_equal, second.replace(step=1, skipped=0), first)
  # Two updates have been made: the third step's rate is that of the second.
  assert metrics['learning_rate'] == training.learning_rate_at(config.optimizer)(1)
  moved = jax.tree.map(lambda x, y: bool((x != y).any()), third.params, second.params)
  assert all(jax.tree.leaves(moved))


def nothing_but_counters_moves(config):
  """Three steps; returns the states and the last metrics."""
  training._train_step.cache_clear()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  step = training.train_step(config, tiny.VOCAB, mesh)
  states = [training.new_state(config, tiny.VOCAB, mesh)]
  for i in range(3):
    text = jax.random.randint(jax.random.key(i), (8, 16), 0, tiny.VOCAB)
    state, metrics = step(jax.tree.map(jnp.copy, states[-1]), text)
    assert bool(metrics['finite']) == (state.skipped == states[-1].skipped)
    if not metrics['finite']:
      counted = states[-1].replace(step=state.step, skipped=state.skipped)
      jax.tree.map(np.testing.assert_array_equal, state, counted)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    states.append(state)
  training._train_step.cache_clear()
  return int(states[-1].skipped)


@pytest.mark.parametrize(
  'change',
  [
    {'beta1': 1.0},
    {'eps': np.nan},
    {'clip_norm': np.nan},
    {'weight_decay': 1e39},
    {'ema_decay': np.nan},
    {'eps': 0.0, 'clip_norm': 0.0},  # 0 / 0 in every element
  ],
  ids=str,
)
def test_an_update_that_is_not_finite_changes_nothing(change):
  """Of numbers that no config file may hold: whatever reaches the step, the state stays finite."""
  config = tiny.train_config(model__num_layers=1)
  optimizer = dataclasses.replace(config.optimizer, **change)
  assert nothing_but_counters_moves(dataclasses.replace(config, optimizer=optimizer)) == 3


@pytest.mark.parametrize(
  ('where', 'bad'), [('updates', np.nan), ('state', np.inf), ('one element', -np.inf)]
)
def test_an_optimizer_that_fails_once_is_passed_over(monkeypatch, where, bad):
  """At its second update: that step only counts, the others move everything."""
  genuine = training.make_optimizer

  def failing(config):
    inner = genuine(config)

    def update(gradients, state, params):
      inner_state, count = state
      updates, inner_state = inner.update(gradients, inner_state, params)
      poison = jnp.where(count == 1, bad, 0.0)
      if where == 'updates':
        updates = jax.tree.map(lambda x: x + poison, updates)
      elif where == 'one element':
        updates['vocabulary']['bos'] = updates['vocabulary']['bos'].at[3].add(poison)
      else:
        floats = lambda x: x + poison if jnp.issubdtype(x.dtype, jnp.floating) else x
        inner_state = jax.tree.map(floats, inner_state)
      return updates, (inner_state, count + 1)

    return optax.GradientTransformation(lambda p: (inner.init(p), jnp.zeros((), jnp.int32)), update)

  monkeypatch.setattr(training, 'make_optimizer', failing)
  # Its count, too, is state, so that every later step meets the same failure.
  assert nothing_but_counters_moves(tiny.train_config(model__num_layers=1)) == 2


def test_recipe():
  config = OptimizerConfig(learning_rate=3e-4, warmup_steps=2500)
  rate = training.learning_rate_at(config)
  assert [round(float(rate(i)) / 3e-4, 4) for i in (0, 1249, 2499, 10**5)] == [
    0.0004,
    0.5,
    1.0,
    1.0,
  ]
  decay = [float(training.ema_decay_at(config, i)) for i in (0, 90, 10**6)]
  np.testing.assert_allclose(decay, [0.1, 0.91, 0.9999], rtol=1e-6)


def test_every_field_of_the_optimizer_matters():
  def after_three_steps(**fields):
    config = OptimizerConfig(**{'warmup_steps': 2, 'learning_rate': 1e-2} | fields)
    optimizer, params = training.make_optimizer(config), {'kernel': jnp.arange(1.0, 5.0)}
    state = optimizer.init(params)
    for step in range(3):
      gradients = {'kernel': jnp.roll(jnp.array([3.0, -2.0, 1.0, 0.5]), step) * (step + 1)}
      updates, state = optimizer.update(gradients, state, params)
      params = optax.apply_updates(params, updates)
    return np.asarray(params['kernel'])

  plain = after_three_steps()
  for fields in (
    {'learning_rate': 2e-2},
    {'warmup_steps': 1},
    {'clip_norm': 5.0},
    {'weight_decay': 1.0},
    {'beta1': 0.0},
    {'beta2': 0.5},
    {'eps': 1.0},
  ):
    assert not np.allclose(plain, after_three_steps(**fields), rtol=1e-5, atol=0), fields


def test_weights_of_layers_decay_and_no_others():
  seen = set()
  for changes in (
    {'position_rows': 'learned'}, {'query_seed': 'warm', 'scan_layers': False},
    {'architecture': 'gpt2'}, {'query_seed': 'mask_embedding'}, {'family': 'sedd'},
  ):  # fmt: skip
    model = families.build(tiny.model_config(**changes), tiny.VOCAB)
    shapes = jax.eval_shape(lambda key, model=model: models.init(model, key), jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape), shapes)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = training.decayed_kernels(0.5).update(zeros, None, params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
      assert (update == (0.5 if path[-1].key == 'kernel' else 0)).all(), path
      seen.add(path[-1].key)
  others = {
    'scale',
    'bias',
    'embedding',
    'positions',
    'bos',
    'mask',
    'pe',
    'gain',
    'neighbours',
    'unknown',
  }
  assert seen == {'kernel', *others}


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_the_optimizer_is_adamw_with_a_state_that_older_checkpoints_hold(weight_decay):
  config = OptimizerConfig(weight_decay=weight_decay, warmup_steps=0)
  rate = training.learning_rate_at(config)
  decay = {'weight_decay': weight_decay, 'eps': config.eps}
  whole = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, 0.9, 0.999, **decay))
  params = {'kernel': jnp.arange(1.0, 5.0), 'scale': jnp.ones(3)}
  gradients = jax.tree.map(lambda x: x / 7, params)
  optimizer = training.make_optimizer(config)
  old, new = whole.init(params), optimizer.init(params)
  assert jax.tree.structure(old) == jax.tree.structure(new)
  expected, found = (o.update(gradients, old, params)[0] for o in (whole, optimizer))
  np.testing.assert_array_equal(found['kernel'], expected['kernel'])
  assert bool(weight_decay) == bool((found['scale'] != expected['scale']).any())


def test_ema_follows_the_parameters():
  plain = run(tiny.train_config(), steps=2)[0]
  assert not np.allclose(*(jax.tree.leaves(t)[0] for t in (plain.ema, plain.params)))
  other = run(tiny.train_config(optimizer__ema_decay=0.0), steps=2)[0]
  jax.tree.map(np.testing.assert_array_equal, other.ema, other.params)


def temporaries(vocab_size, batch=4, length=256, width=64):
  config = config_lib.parse(
    {
      'model': dict(length=length, num_layers=2, embed_dim=width, num_heads=2, dtype='float32'),
      'train': dict(batch_size=batch, loss_chunk=8),
    }
  )
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  state = training.abstract_state(config, vocab_size, mesh)
  text = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  compiled = training.train_step(config, vocab_size, mesh).lower(state, text).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_logits_never_exist_at_once():
  """Doubling V adds less than 10% of 4 B N V bytes of temporaries beyond the V x E arrays. The
  shape keeps the published ratio of loss_chunk to N, 32 / 1024."""
  vocab, batch, length, width = 8192, 4, 256, 64
  small, large = temporaries(vocab), temporaries(2 * vocab)
  # gradient of the embedding, its update, and the new moments and average, before they replace
  # the donated ones
  vocab_arrays = 5 * 4 * vocab * width
  assert large - small < 0.1 * 4 * batch * length * vocab + vocab_arrays


def with_remat(policy):
  """Bytes of temporaries of eight layers' gradients, and loss and gradients."""
  config = tiny.train_config(
    model__remat=policy, model__num_layers=8, model__num_two_stream_layers=0, model__length=64,
    train__batch_size=4,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: training.init_state(config, tiny.VOCAB).params)
  params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), shapes)
  text = rng.integers(0, tiny.VOCAB, (4, 64)).astype(np.int32)
  run = jax.jit(
    lambda params, text: training.loss_and_gradients(config, tiny.VOCAB, params, 0, text)
  )
  compiled = run.lower(params, text).compile()
  return compiled.memory_analysis().temp_size_in_bytes, jax.device_get(compiled(params, text))


def test_remat_policies_trade_memory_for_nothing_else(eight_devices):
  """15.1, 4.0 and 2.2 MiB when it was written; loss and gradients are the same bits, dropout
  included, and so to 1e-5 with other compilers."""
  policies = ('none', 'dots', 'full')
  none, dots, full = (eight_devices(with_remat, policy) for policy in policies)
  sizes = [f'{found[0] / 2**20:.1f}' for found in (none, dots, full)]
  print('MiB of temporaries:', dict(zip(policies, sizes, strict=True)))
  assert dots[0] < 0.5 * none[0] and full[0] < 0.8 * dots[0], (none[0], dots[0], full[0])
  assert_close(none[1], dots[1], 1e-5)
  assert_close(none[1], full[1], 1e-5)


def without_host_fields(section):
  """The config, whose fields that are marked `host_only` cannot be read."""
  marked = {name for name, field in config_lib.fields(section) if field.metadata['host_only']}
  if not marked:
    return section
  own = [f.name for f in dataclasses.fields(section) if f.name not in marked]
  values = {name: getattr(section, name) for name in own}
  values = {
    k: without_host_fields(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()
  }

  def refuse(_, name):
    raise AssertionError(f'the step reads {name}')

  hidden = {name: property(functools.partial(refuse, name=name)) for name in marked}
  made = object.__new__(type('Hidden', (type(section),), hidden))
  made.__dict__.update(values)
  return made


@pytest.mark.parametrize('family', ['armd', 'ar', 'mdlm', 'esolm'])
def test_the_step_reads_no_field_of_the_host(family):
  config = without_host_fields(tiny.train_config(model__family=family, train__accumulation=2))
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  step = training._train_step.__wrapped__(config, tiny.VOCAB, mesh)
  state = training.abstract_state(config, tiny.VOCAB, mesh)
  step.trace(state, jax.ShapeDtypeStruct((8, 16), jnp.int32))  # or raises
  with pytest.raises(AssertionError, match='the step reads log_every'):
    config.train.log_every  # noqa: B018


def test_fields_of_the_host_compile_nothing_anew():
  config = tiny.train_config()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  step = training.train_step(config, tiny.VOCAB, mesh)
  for name, field, other in other_values.one_by_one(config):
    if field.metadata['host_only']:
      assert training.train_step(other, tiny.VOCAB, mesh) is step, name
  assert training.train_step(tiny.train_config(train__loss_chunk=8), tiny.VOCAB, mesh) is not step


def test_sharding_is_strict():
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  with pytest.raises(ValueError, match="no row of PARAMETER_AXES matches 'new/thing'"):
    sharding.tree_sharding(mesh, {'new': {'thing': jnp.zeros((2, 2))}})
  with pytest.raises(config_lib.UserError, match='product is 1'):
    sharding.make_mesh(config_lib.MeshConfig(data=3), jax.devices()[:1])
