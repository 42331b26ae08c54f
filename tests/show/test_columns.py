"""Numbers that are missing or not finite are dashes in tables, and no points of pictures."""

import math
import pathlib

import pytest

from armd_jax.show import columns, fronts, plots

ROW = {'way': 'a, S = 1', 'kind': 'exact', 'tokens_per_second': {'1': 10.0}}
COST = {'streams': 1, 'nats': 2.0, 'order_cost': 0.0, 'independence_cost': 0.0}
SPEED = {
  'system': 'ARMD S=1', 'streams': 1, 'batch_size': 1, 'seconds': 1.0, 'tokens_per_second': 16.0,
}  # fmt: skip


def test_a_table_has_dashes_for_them():
  table = columns.table([{'a': None, 'b': math.nan, 'c': 'nan', 'd': 0.5, 'e': math.inf}])
  assert table.splitlines()[1].split() == ['-', '-', 'nan', '0.5', 'inf']


@pytest.mark.parametrize('number', [None, math.nan, math.inf, 3.0])
def test_a_front_is_drawn_of_the_others(tmp_path, number):
  rows = [ROW | {'nats_per_byte': number, 'judge_perplexity': number}]
  rows += [ROW | {'way': 'b, S = 1', 'nats_per_byte': 2.0, 'judge_perplexity': 9.0}]
  for drawn in (rows, rows[:1]):
    fronts.draw(drawn, str(tmp_path / 'a.png'))
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('name', ['nats', 'order_cost', 'independence_cost'])
def test_speed_alone_is_drawn_of_a_model_that_diverged(tmp_path, monkeypatch, name):
  shown = []
  monkeypatch.setattr(plots, 'front_panel', lambda *_: shown.append('front'))
  for number in (None, math.nan):
    plots.decoding([SPEED], [COST | {name: number}], str(tmp_path / 'a.svg'))
  assert not shown and '<svg' in pathlib.Path(tmp_path / 'a.svg').read_text()
