"""Experiment files are valid, and their models have the published sizes."""

import dataclasses
import math
import pathlib
import runpy

import jax
import numpy as np
import pytest

from armd_jax import config as config_lib
from armd_jax import recipes, training
from armd_jax.bench import scaling
from armd_jax.data import tokenizers
from armd_jax.errors import UserError
from armd_jax.parallel import sharding
from armd_jax.training import workdir as workdir_lib

DRILL_ALSO = ('experiments/*.py',)
NAMES = [path.stem for path in pathlib.Path('experiments').glob('*.py')]


@pytest.mark.parametrize('name', NAMES)
def test_files_are_valid(name):
  scaling.experiment(name)


@pytest.mark.parametrize(
  'name, millions', [('owt_small', 125), ('owt_medium', 345), ('owt_7b', 6600)]
)
def test_number_of_parameters(name, millions):
  """GPT-2's counts; a few percent lie in biases and position tables, which GPT-2 has."""
  config = scaling.experiment(name)
  vocab_size = tokenizers.vocab_size(config.data.tokenizer)
  params = jax.eval_shape(lambda: training.init_state(config, vocab_size).params)
  found = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  assert found == pytest.approx(millions * 1e6, rel=0.03)


RECIPES = ('owt_small', 'owt_medium', 'lm1b_small', 'text8')
FAMILIES = (*config_lib.FAMILIES,)


def recipe(name, options):
  """As `--config=experiments/NAME.py:OPTIONS` reads it."""
  raw = runpy.run_path(f'experiments/{name}.py')['get_config'](options)
  return config_lib.parse(raw)


@pytest.mark.parametrize('name', RECIPES)
def test_twins_differ_by_their_family_alone(name):
  armd = recipe(name, '')
  for family in FAMILIES:
    twin = recipe(name, f'family={family}')
    same = dataclasses.replace(armd, model=dataclasses.replace(armd.model, family=family))
    assert twin.model == config_lib.parse(config_lib.to_dict(same)).model
    assert (twin.model == same.model) == (not config_lib.FAMILIES[family].own_orders)
    assert (twin.data, twin.optimizer, twin.train) == (armd.data, armd.optimizer, armd.train)


@pytest.mark.parametrize('name', RECIPES)
def test_blocks_are_cut_as_published(name):
  base = recipe(name, 'family=bd3lm').model
  for length, ends in ((4, (0.45, 0.95)), (16, (0.3, 0.8)), (8, (0.45, 0.95))):
    d = recipe(name, f'family=bd3lm,block={length}').model.diffusion
    assert (d.block_length, d.clip_low, d.clip_high) == (length, *ends)
    assert (
      dataclasses.replace(base, diffusion=d) == recipe(name, f'family=bd3lm,block={length}').model
    )
  d = recipe(name, 'family=setdlm,block=16').model.diffusion
  assert (d.set_policy, d.set_size, d.set_reach) == ('staggered', 16, 32)
  with pytest.raises(UserError, match=r"block=8 is for families .* 'mdlm' does not"):
    recipe(name, 'family=mdlm,block=8')


@pytest.mark.parametrize('name', RECIPES)
def test_fine_tunes_go_on_from_the_base(name):
  base, tuned = recipe(name, ''), recipe(name, 'strided_steps=50000')
  assert tuned.order.strided_start == base.train.steps and tuned.order.strided_streams == (1, 2, 4)
  assert tuned.train.steps == base.train.steps + 50_000
  assert tuned.init_from == f'work/{name}'
  assert (tuned.model, tuned.optimizer) == (base.model, base.optimizer)
  with pytest.raises(UserError, match='has no strided orders'):
    recipe(name, 'family=radd,strided_steps=10000')


def test_options_that_mean_nothing_are_refused():
  for text in ('family', 'strided_steps=many', 'runlocally', 'family=', 'runlocal=1'):
    with pytest.raises(
      UserError, match='takes family=NAME, block=NUMBER, strided_steps=NUMBER, paper and'
    ):
      recipes.options(text)
  with pytest.raises(UserError, match="family is 'sed'; write one of"):
    recipe('text8', 'family=sed')


@pytest.mark.parametrize('name', RECIPES)
def test_small_versions_keep_the_schedule_and_need_nothing(name):
  whole, small = recipe(name, ''), recipe(name, 'runlocal')
  assert (small.data.source, small.data.tokenizer) == ('stdlib', 'bytes')
  for field in ('ar_steps', 'perm_steps'):
    share = getattr(small.order, field) / getattr(whole.order, field)
    assert share == pytest.approx(small.train.steps / whole.train.steps, rel=0.05)
  assert small.model.num_two_stream_layers == 1
  tuned = recipe(name, 'strided_steps=50000,runlocal')
  assert tuned.order.strided_start == small.train.steps < tuned.train.steps < 1000


@pytest.mark.parametrize('name', RECIPES)
def test_the_published_recipe_is_to_the_letter(name):
  ours, paper = recipe(name, ''), recipe(name, 'paper')
  m, o = paper.model, paper.order
  assert (m.query_seed, m.query_seed_norm, m.position_rows) == ('prefix', 'none', 'sinusoidal')
  assert (m.num_two_stream_layers, o.segments_prob) == (m.num_layers // 2, 0)
  assert (ours.model.query_seed, ours.model.num_two_stream_layers) == ('neighbours', 1)
  assert ours.order.segments_cuts == ours.model.length // 8 and ours.order.segments_prob == 0.5
  assert (ours.data, ours.optimizer, ours.train) == (paper.data, paper.optimizer, paper.train)


def test_adapting_goes_on_from_a_run(tmp_path):
  found = config_lib.parse({'model': {'embed_dim': 48, 'num_heads': 4, 'query_seed': 'warm'}})
  found = dataclasses.replace(found, data=dataclasses.replace(found.data, source='mine'))
  workdir_lib.write_config(tmp_path / 'run', found)
  tuned = recipe('adapt', f'run={tmp_path}/run')
  assert (tuned.init_from, tuned.data) == (f'{tmp_path}/run', found.data)
  assert tuned.model == dataclasses.replace(found.model, remat='dots')
  assert tuned.optimizer.skip_above == 10
  scratch = recipe('adapt', f'run={tmp_path}/run,scratch')
  assert scratch == dataclasses.replace(tuned, init_from='')
  short = recipe('adapt', f'run={tmp_path}/run,steps=40')
  assert (short.train.steps, short.order.perm_steps, short.order.strided_start) == (40, 10, 20)
  for text, message in (
    ('x', "run=DIR, steps=N and scratch, but no 'x'"),
    ('run=x', 'x holds no run'),
    ('steps=3', 'steps=3; write a whole number from 4 on'),
    ('steps=many', 'steps=many; write'),
  ):
    with pytest.raises(UserError, match=message):
      recipe('adapt', text)


def take_a_step(config):
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  state = training.new_state(config, 257, mesh)
  text = np.random.RandomState(0).randint(257, size=(config.train.batch_size, config.model.length))
  before = jax.device_get(state.params)
  state, metrics = training.train_step(config, 257, mesh)(state, text.astype(np.int32))
  assert np.isfinite(metrics['loss']) and metrics['skipped'] == 0
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
  assert max(jax.tree.leaves(moved)) > 0


def test_a_small_version_trains():
  take_a_step(recipe('text8', 'family=radd,runlocal'))


@pytest.mark.drill
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', RECIPES)
def test_every_small_version_trains(name, family):
  take_a_step(recipe(name, f'family={family},runlocal'))
  if family == 'armd':
    take_a_step(recipe(name, 'strided_steps=10000,runlocal'))
