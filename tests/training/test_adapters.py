"""Parts of a network that are trained, whole or by adapters: nothing else moves or is lost."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_run
from flax import traverse_util

import armd_jax
from armd_jax import config as config_lib
from armd_jax import evaluate, export, flags, training
from armd_jax.artifacts import weights
from armd_jax.config import UserError
from armd_jax.parallel import sharding
from armd_jax.show import history
from armd_jax.training import adapters, checkpoint
from armd_jax.training import workdir as workdir_lib
from armd_jax.training.loop import train

MESH = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
# Of every kind of matrix: of one input axis and of two, in a scan and not, tied and not.
ALL = dict(
  model__num_layers=2, model__mlp='swiglu', model__tied_head=False, model__dropout=0.0,
  model__query_seed='warm',
)  # fmt: skip
LORA = dict(optimizer__lora_rank=2, optimizer__lora_alpha=6.0)


def config_of(**changes):
  return tiny.train_config(**ALL | changes)


def leaves(tree):
  return traverse_util.flatten_dict(tree, sep='/').items()


def names(tree):
  return {name for name, _ in leaves(tree)}


def text(seed=0):
  return jnp.array(np.random.default_rng(seed).integers(0, tiny.VOCAB, (8, 16)), jnp.int32)


def moved_adapters(config):
  """A state whose adapters and seed all count."""
  state = training.new_state(config, tiny.VOCAB, MESH)
  starts_at_zero = lambda path: path[-1].key.endswith('_out') or path[-1].key == 'gain'
  move = lambda path, x: (
    x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape) if starts_at_zero(path) else x
  )
  return state.replace(params=jax.tree_util.tree_map_with_path(move, state.params))


def test_all_of_a_network_is_trained_unless_told_otherwise():
  config = config_of()
  state = training.new_state(config, tiny.VOCAB, MESH)
  assert names(state.params) == names(state.ema)
  assert training.network_params(config, state) is state.ema
  assert training.network_params(config, state, averaged=False) is state.params


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    (dict(optimizer__trained='^causal'), lambda name: name.startswith('causal/')),
    (dict(optimizer__trained='norm|gain'), lambda name: 'norm' in name or name == 'gain'),
    (
      LORA | dict(optimizer__trained='query/|key_value/|gain'),
      lambda name: re.search(r'^gain$|(query|key_value)/kernel_(in|out)$', name),
    ),
    (
      LORA,  # every matrix by its adapters, all else whole
      lambda name: name.split('/')[-1] not in ('kernel', 'embedding', 'head'),
    ),
  ],
)  # fmt: skip
def test_what_is_trained_moves_and_nothing_else(changes, expected):
  config = config_of(**changes)
  state = training.new_state(config, tiny.VOCAB, MESH)
  trained = {name for name in names(state.params) if expected(name)}
  assert names(state.ema) == trained != names(state.params)
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.float32]
  assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(state.ema))
  before = jax.device_get(state.params)
  step = training.train_step(config, tiny.VOCAB, MESH)
  for seed in range(2):
    state, metrics = step(state, text(seed))
    assert metrics['finite']
  after = dict(leaves(jax.device_get(state.params)))
  for name, x in leaves(before):
    assert (x == after[name]).all() == (name not in trained), name


def test_adapters_change_nothing_at_first():
  plain, lora = config_of(), config_of(**LORA)
  of = lambda config: training.new_state(config, tiny.VOCAB, MESH)
  jax.tree.map(
    np.testing.assert_array_equal,
    training.network_params(lora, of(lora)),
    training.network_params(plain, of(plain)),
  )
  # A of another seed, and of another matrix, is another.
  drawn = dict(leaves(of(lora).params))
  assert not np.allclose(
    drawn['causal/layers/query/kernel_in'], drawn['causal/layers/key_value/kernel_in']
  )
  other = dataclasses.replace(lora, seed=1)
  assert not np.allclose(
    drawn['vocabulary/embedding_in'], of(other).params['vocabulary']['embedding_in']
  )


def test_a_merged_matrix_is_the_sum_of_both():
  """W + alpha / rank A B, layer by layer, over all axes of the inputs."""
  config = config_of(**LORA)
  state = moved_adapters(config)
  found = dict(leaves(training.network_params(config, state, averaged=False)))
  assert found.keys() == names(training.init_params(config, tiny.VOCAB))
  params = {name: np.asarray(x, np.float64) for name, x in leaves(state.params)}
  equations = {
    'query/kernel': 'er,rhd->ehd', 'key_value/kernel': 'er,rkgd->ekgd', 'out/kernel': 'hdr,re->hde',
    'gate_up/kernel': 'er,rkf->ekf', 'down/kernel': 'fr,re->fe', 'embedding': 'vr,re->ve',
    'head': 'vr,re->ve',
  }  # fmt: skip
  seen = set()
  for name, x in found.items():
    expected = params[name]
    for end, equation in equations.items():
      if f'/{name}'.endswith(f'/{end}'):
        if x.ndim > len(equation.partition('>')[2]):  # a scan's
          equation = 'l' + equation.replace(',', ',l').replace('->', '->l')
        both = np.einsum(equation, params[f'{name}_in'], params[f'{name}_out'])
        expected = expected + 3 * both
        assert np.abs(both).max() > 1e-3
        seen.add((end, equation[0] == 'l'))
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6, err_msg=name)
  assert {end for end, _ in seen} == set(equations) and len(seen) > len(equations)


@pytest.mark.parametrize('accumulation', [1, 2])
def test_gradients_are_those_of_the_network_by_the_chain_rule(accumulation):
  lora = config_of(**LORA, train__accumulation=accumulation)
  state = moved_adapters(lora)
  merged = training.network_params(lora, state, averaged=False)
  run = jax.jit(training.loss_and_gradients, static_argnums=(0, 1))
  (loss, _), found = run(lora, tiny.VOCAB, state.params, 0, text())
  (expected, _), whole = run(config_of(), tiny.VOCAB, merged, 0, text())
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  part = adapters.trained(lora.optimizer, state.params)
  _, pull = jax.vjp(functools.partial(adapters.whole, lora.optimizer, state.params), part)
  for (name, x), (_, y) in zip(leaves(found), leaves(pull(whole)[0]), strict=True):
    assert np.abs(y).max() > 0, name
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * np.abs(y).max(), err_msg=name)
  norm = optax.tree.norm(found)
  _, metrics = training.train_step(lora, tiny.VOCAB, MESH)(state, text())
  np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'trained': 'qery'},
      "trained is 'qery', which no name of a parameter has in it; write a part",
    ),
    ({'trained': 'gain', 'lora_rank': 2}, "trained is 'gain', which no name of a matrix has in it"),
    ({'trained': '('}, r"config.optimizer.trained is '\(', no regular expression \("),
  ],
)
def test_what_trains_nothing_is_refused(fields, message):
  with pytest.raises(UserError, match=message) as error:
    config = config_of(**{f'optimizer__{name}': value for name, value in fields.items()})
    training.abstract_state(config, tiny.VOCAB, MESH)
  assert '\n' not in str(error.value)


# ----- runs


def run_config(folder, **fields):
  raw = tiny_run.config(folder)
  raw.optimizer.update(ema_decay=0.5, **fields)
  return raw


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A run of a whole network, and one of adapters that starts from it."""
  folder = tmp_path_factory.mktemp('runs')
  config = run_config(folder)
  train(config_lib.parse(config), folder / 'base')
  lora = run_config(folder, lora_rank=2, trained='kernel|gain')
  lora.init_from = str(folder / 'base')
  train(config_lib.parse(lora), folder / 'lora')
  return folder, lora


def state_at(workdir, step=None):
  config = workdir_lib.read_config(workdir)
  return config, checkpoint.Checkpoints(workdir).restore(
    training.abstract_state(config, 257, MESH), step
  )


def test_adapters_start_from_the_averages_of_another_run_and_anew(runs):
  folder, _ = runs
  _, (base_state, _) = state_at(folder / 'base')
  config, (state, next_index) = state_at(folder / 'lora')
  assert state.step == 12 and next_index == 12 * 8  # of its own, not after the other's
  frozen = dict(leaves(state.params))
  for name, x in leaves(base_state.ema):
    np.testing.assert_array_equal(frozen[name], x, err_msg=name)
  merged = training.network_params(config, state)
  changed = {
    name for name, x in leaves(merged) if not np.array_equal(x, dict(leaves(base_state.ema))[name])
  }
  assert changed == {name for name in names(merged) if name.endswith('kernel')}


def test_adapters_go_on_bit_for_bit(runs, tmp_path):
  folder, lora = runs
  tiny_run.copy_at(folder / 'lora', tmp_path / 'copy', 6)
  train(config_lib.parse(lora), tmp_path / 'copy')
  (_, (found, _)), (_, (expected, _)) = state_at(tmp_path / 'copy'), state_at(folder / 'lora')
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert tiny_run.losses(tmp_path / 'copy') == tiny_run.losses(folder / 'lora')


def test_all_that_comes_after_has_the_merged_network(runs, tmp_path):
  folder, _ = runs
  config, (state, _) = state_at(folder / 'lora')
  merged = training.network_params(config, state)
  for weights_name, expected in (
    ('ema', merged),
    ('raw', training.network_params(config, state, averaged=False)),
  ):
    out = str(tmp_path / f'{weights_name}.safetensors')
    arguments = [f'--workdir={folder / "lora"}', f'--out={out}', f'--weights={weights_name}']
    export.main(flags.parse(export.Options, ['export', *arguments]))
    jax.tree.map(np.testing.assert_array_equal, export.load(out, weights_name)[1], expected)
  jax.tree.map(np.testing.assert_array_equal, weights.load_ema(folder / 'lora')[2], merged)
  loaded = armd_jax.load(folder / 'lora')
  again = armd_jax.load(tmp_path / 'ema.safetensors')
  jax.tree.map(np.testing.assert_array_equal, loaded.params, again.params)
  assert loaded.generate('al', max_new_tokens=4, seed=1) == again.generate(
    'al', max_new_tokens=4, seed=1
  )
  logged = history.read(folder / 'lora' / 'metrics.jsonl')[12]['held_out']
  arguments = [f'--workdir={folder / "lora"}', '--streams=2', f'--json={tmp_path / "scores"}']
  evaluate.main(flags.parse(evaluate.Options, ['evaluate', *arguments, '--windows=12']))
  first, *_ = json.loads((tmp_path / 'scores').read_text())['scores']
  assert first['nats_per_token'] == pytest.approx(logged, rel=1e-5)


def test_from_adapters_to_a_whole_network_and_on(runs, tmp_path):
  """A run of other parameters takes the merged average; one of the same goes on with all."""
  folder, lora = runs
  config, (state, _) = state_at(folder / 'lora')
  whole = run_config(folder)
  whole.init_from, whole.train.steps, whole.optimizer.learning_rate = str(folder / 'lora'), 1, 0.0
  train(config_lib.parse(whole), tmp_path / 'whole')
  _, (found, _) = state_at(tmp_path / 'whole')
  merged = training.network_params(config, state)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found.params, dict(merged))
  longer = lora.copy_and_resolve_references()
  longer.init_from, longer.train.steps = str(folder / 'lora'), 13
  train(config_lib.parse(longer), tmp_path / 'longer')
  _, (more, next_index) = state_at(tmp_path / 'longer')
  assert more.step == 13 and next_index == 13 * 8
  jax.tree.map(
    np.testing.assert_array_equal,
    {name: x for name, x in leaves(more.params) if name.endswith('kernel')},
    {name: x for name, x in leaves(state.params) if name.endswith('kernel')},
  )
