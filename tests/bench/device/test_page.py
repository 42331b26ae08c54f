"""The page, the table and the picture hold what the rows hold, and call a dry run one."""

import made_rows
import matplotlib.image
import numpy as np
import pytest

from armd_jax.bench.device import cases, goals, page, picture
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.environment import ROOT


@pytest.fixture
def written(tmp_path):
  def write(rows):
    page.write(tmp_path, rows, goals.judge(rows))
    return [(tmp_path / name).read_text() for name in (page.TABLE, page.PAGE)]

  return write


def test_every_goal_and_number_is_on_the_page(written):
  rows = made_rows.rows()
  rows['numerics', cases.NUMERICS[2].key] |= {'ok': False, 'dq': 0.125}
  rows['process', 'suite: suite'] = made_rows.row(
    'process', 'suite: suite', error='killed after 80 s'
  )
  for text in written(rows):
    for goal in goals.judge(rows):
      assert goal.name in text and goal.detail in text
    for wanted in (made_rows.DEVICE, '13.0.88', '0.125', 'suite: suite', 'killed after 80 s'):
      assert wanted in text
    assert 'DRY' not in text
  assert '1 missed' in text and page.counted(goals.judge(rows)) in text
  # Every key of a stage that was measured has its line.
  assert all(f'| {key} |' in text for (stage, key), _ in rows.items() if stage == 'times')


def test_dry_run_is_called_one(written):
  rows = {key: row | {'dry': True} for key, row in made_rows.rows().items()}
  for text in written(rows):
    assert page.DRY in text
  assert f'{len(goals.judge(rows))} not measured' in text


def test_page_of_nothing(written):
  table, text = written({})
  assert 'not measured' in table and 'not measured' in text


def test_errors_and_what_was_skipped_are_told(written):
  rows = made_rows.rows()
  key = cases.STEPS[0].key
  rows['train', key] = made_rows.row('train', key, error='XlaRuntimeError: out of memory')
  key = cases.STEPS[1].key
  rows['train', key] = made_rows.row('train', key, skipped='no time left')
  for text in written(rows):
    assert 'XlaRuntimeError: out of memory' in text and 'no time left' in text


@pytest.mark.parametrize('rows', [made_rows.rows(), {}], ids=['full', 'empty'])
def test_picture(tmp_path, rows):
  picture.draw(rows, tmp_path / 'report.png')
  image = matplotlib.image.imread(tmp_path / 'report.png')
  assert image.shape[0] > 800 and image.shape[1] > 1200
  # The bars of our kernels are there where there are rows, and only there.
  ours = np.abs(image[..., :3] - matplotlib.colors.to_rgb(picture.COLORS[0])).sum(-1) < 0.02
  bars = (ours.sum(axis=0) > 100).sum()  # columns of pixels, none of a mere legend
  assert bars > 50 if rows else bars == 0


def test_the_page_of_what_was_measured_holds_what_its_rows_hold():
  folder = ROOT / 'docs/records/device_h200'
  rows = rows_lib.read(folder)
  assert (folder / page.PAGE).read_text() == page.as_markdown(rows, goals.judge(rows), True)
