"""The page of what adapting gives: every number is the one that its own program tells."""

import json

import pytest

from armd_jax import config as config_lib
from armd_jax.artifacts import weights
from armd_jax.bench import adapted
from armd_jax.data import corpus
from armd_jax.errors import UserError
from armd_jax.evaluation import order_costs
from armd_jax.parallel import sharding
from armd_jax.training.loop import train
from tests import tiny_run


def made(folder, name, **model):
  raw = tiny_run.config(folder)
  raw.model.update(**model)
  raw.train.update(steps=2, eval_every=1, checkpoint_every=2)
  raw.train.eval_streams = (2,) if raw.model.family == 'armd' else ()
  train(config_lib.parse(raw), folder / name)
  return f'{folder}/{name}'


def test_the_page_has_the_numbers_of_every_run(tmp_path, capsys):
  runs = made(tmp_path, 'start'), made(tmp_path, 'end', query_seed='neighbours')
  options = adapted.Options(
    run=runs, streams=(1, 4), windows=3, prompt='alpha', out=f'{tmp_path}/docs'
  )
  adapted.main(options)
  numbers = json.loads((tmp_path / 'docs/records/adapted.json').read_text())
  page = (tmp_path / 'docs/adapted.md').read_text()
  for run, of_run in zip(runs, numbers['runs'], strict=True):
    config, tokenizer, params, step = weights.load_ema(run)
    windows_WxN = corpus.load(config.data, config.model.length).held_out_WxN[:3]
    model = adapted.families.build(config.model, tokenizer.vocab_size)
    mesh = sharding.make_mesh(config.mesh)
    one, four = order_costs.order_costs(model, params, windows_WxN, (1, 4), mesh)
    assert [row['nats'] for row in of_run['costs']] == pytest.approx([one['nats'], four['nats']])
    assert f'{four["nats"]:.4f}' in page and of_run['step'] == step == 2
    assert (
      [at for at, _ in of_run['curves']['2']] == [1, 2] == [at for at, _ in of_run['curves']['1']]
    )
    assert of_run['texts']['4'].startswith('alpha') and of_run['texts']['4'] in page
  assert numbers['scored'] == '3 held-out windows' and '| start |' in page
  assert (tmp_path / 'docs/adapted.png').stat().st_size > 10_000
  assert 'wrote' in capsys.readouterr().out


def test_runs_that_do_not_compare_are_refused(tmp_path):
  first = made(tmp_path, 'start')
  out = f'{tmp_path}/docs'
  with pytest.raises(UserError, match="is of family 'ar'; give ARMD runs"):
    adapted.main(adapted.Options(run=(made(tmp_path, 'ar', family='ar'),), windows=2, out=out))
  longer = made(tmp_path, 'longer', length=24)
  with pytest.raises(UserError, match=r'has 24 tokens of bytes, and .* has 16 of bytes; compare'):
    adapted.main(adapted.Options(run=(first, longer), windows=2, out=out))
  assert not (tmp_path / 'docs').exists()
