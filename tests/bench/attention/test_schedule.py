"""Reading of schedules: a synthetic kernel, parsed from its dump and executed step by step."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax import records
from armd_jax.attention import shapes, tiles, tpu_blocks
from armd_jax.bench.attention import compile_tpu, schedule

BLOCKS = tpu_blocks.Blocks(rows=4, keys=4, unit_rows=2, unit_keys=2)
# A kernel as nested parts: a number of bundles (negative: the matrix unit is busy in them), or
# (kind, name, parts). An 'if' takes a bundle more for its branch, a 'loop' one for its jump back.
ANY_SHAPE = (
  'if',
  'any_shape',
  [3, ('loop', 'rows', [2, ('if', 'one', [-10]), 1, ('if', 'two', [-17])]), 2],
)
COMPUTE = [('if', 'plain', [-31]), 2, ('if', 'masked', [4, ('if', 'stairs', [-23]), ANY_SHAPE])]
FORWARD = [5, ('loop', 'steps', [7, ('if', 'first', [11]), *COMPUTE, ('if', 'last', [13]), 3])]
# Nothing is prepared for a query tile: what stands before the scores is of every step.
TRANSPOSED = [
  5, ('loop', 'steps', [7, ('if', 'always', [6]), *COMPUTE, ('if', 'last', [13]), 3])
]  # fmt: skip
BACKWARD = [
  ('loop', 'steps', [('if', 'span', [19]), 5, ('if', 'idle', [6]), *COMPUTE, ('if', 'last', [8]),
                     ('if', 'flush', [29]), 1]),
]  # fmt: skip


def _emit(parts, lines=None):
  """Bundles as (busy, target of the branch or None), by address."""
  lines = [] if lines is None else lines
  for part in parts:
    if isinstance(part, int):
      lines += [(part < 0, None)] * abs(part)
      continue
    kind, _, inner = part
    start = len(lines)
    if kind == 'if':
      lines.append(None)
    _emit(inner, lines)
    if kind == 'if':
      lines[start] = (False, len(lines))
    else:
      lines.append((False, start))
  return lines


def _dump(folder: pathlib.Path, parts) -> None:
  bundles, usage = [], ['header', 'MXU, XLU', '2 1', 'rule']
  for address, (busy, target) in enumerate(_emit(parts)):
    place = hex(address) if address else '0'
    jump = '' if target is None else f'sbr.rel (%p1_p2) target bundleno = {target} (0x0), region 3'
    bundles.append(f'  {place}   : {{ {jump} }}')
    usage.append('2 0' if busy else '0 1')
  name = '17-prefix_attention_forward.1-0'
  (folder / f'{name}1-packed-bundles-post-ra.txt').write_text('\n'.join(bundles))
  (folder / f'{name}0-schedule-analysis_packed-bundles-post-ra.txt').write_text('not this one')
  usage_name = f'{name}2-pre-delay_hlo-static-per-bundle-utilization.txt'
  (folder / usage_name).write_text('\n'.join(usage) + '\n')


def _execute(parts, taken) -> int:
  """Bundles that run; `taken` says for each name how often (for a loop: the trips, as a list)."""
  total = 0
  for part in parts:
    if isinstance(part, int):
      total += abs(part)
      continue
    kind, name, inner = part
    if kind == 'if':
      total += 1 + (_execute(inner, taken) if taken[name] else 0)
    else:
      total += sum(1 + _execute(inner, taken | trip) for trip in taken[name])
  return total


def _steps(lengths, grid, stair):
  """What every step of the walk takes, from the mask itself."""
  count, codes = tiles.walk(jnp.asarray(lengths), grid)
  codes = np.asarray(codes)[: int(count)]
  for code in codes:
    tile = grid.span(code) * grid.span_tiles + grid.key(code)
    rows = lengths[:, :, grid.query(code) * 4 :][:, :, :4]
    visible = tile * 4 + np.arange(4) < rows[..., None]  # [1, streams, rows, keys]
    units = visible.reshape(1, -1, 2, 2, 2, 2).any((0, 1, 3, 5)).sum(1)
    first = grid.key(code) == 0
    if first and visible.any():
      units = np.maximum(units, 1)
    stairs = units.tolist() == [1, 2] and visible.sum(-1)[..., 2:].min() >= stair
    masked = bool(grid.partial(code))
    last = bool(grid.last(code))
    yield {
      'always': True,
      'first': first,
      'idle': first and not visible.any(),
      'span': first and grid.query(code) == 0,
      'flush': last and grid.query(code) == grid.query_tiles - 1,
      'last': last,
      'plain': not masked,
      'masked': masked,
      'stairs': stairs,
      'any_shape': not stairs,
      'rows': [{'one': n == 1, 'two': n == 2} for n in units],
    }


LENGTHS = {
  'left_to_right': [[range(1, 17)]],
  'two_streams': [[range(1, 17), range(16)]],
  'blocks': [[np.arange(16) // 3 * 3 + 3, np.arange(16) // 3 * 3]],
  'wide_blocks': [[[1, 1, 1, 3] * 4, np.r_[1, 1, 0, 4, [16] * 12]]],
  'sparse': [[np.r_[[0] * 6, 1, 3, 3, 4, 9, 9, 9, 9, 12, 16]]],
}


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('spans', [1, 2])
@pytest.mark.parametrize('name', LENGTHS)
def test_cycles_equal_a_run_step_by_step(tmp_path, monkeypatch, name, spans, transposed):
  monkeypatch.setattr(tpu_blocks, 'LANES', 1)  # so that units are wider than that
  lengths = np.minimum(np.array([[list(r) for r in LENGTHS[name][0]]], np.int32), 16)
  grid = tiles.Grid(batch=1, query_tiles=4, spans=spans, span_tiles=4 // spans, rows=4, keys=4)
  for backward, parts in enumerate((FORWARD, BACKWARD)):
    blocks = dataclasses.replace(BLOCKS, transposed=transposed and not backward)
    if blocks.transposed:
      parts = TRANSPOSED
    _dump(tmp_path, parts)
    regions = schedule.read(str(tmp_path), 'prefix_attention_forward')
    found = schedule.cycles(regions, blocks, grid, lengths.shape[1], lengths, bool(backward))
    steps = _execute(parts, {'steps': list(_steps(lengths, grid, blocks.stair(1)))})
    before = 0 if backward else 5  # bundles that precede the walk are not of a step
    assert found == steps - before


def test_regions_of_a_dump(tmp_path):
  _dump(tmp_path, [3, ('loop', 'a', [2, ('if', 'b', [-4, 1]), 1])])
  regions = schedule.read(str(tmp_path), 'prefix_attention_forward')
  assert [(r.kind, r.start, r.end, r.matrix) for r in regions] == [
    ('loop', 3, 13, 4.0),
    ('if', 6, 11, 4.0),
  ]


def test_missing_schedule_and_unknown_kernel_are_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match='no schedule of prefix_attention_forward'):
    schedule.read(str(tmp_path), 'prefix_attention_forward')
  _dump(tmp_path, [('loop', 'steps', [('if', 'a', [-4]), ('if', 'b', [-4]), ('if', 'c', [-4])])])
  regions = schedule.read(str(tmp_path), 'prefix_attention_forward')
  grid = tiles.Grid(batch=1, query_tiles=1, spans=1, span_tiles=1, rows=4, keys=4)
  with pytest.raises(ValueError, match='found 3 compute regions'):
    schedule.cycles(regions, BLOCKS, grid, 1, np.ones((1, 1, 4), np.int32), False)


def test_stamp_follows_kernels_and_table(monkeypatch):
  stamp = compile_tpu.stamp()
  monkeypatch.setattr(tpu_blocks, 'tuned', lambda: {'v5e': []})
  assert compile_tpu.stamp() != stamp
  covered = {path.stem for path in records.closure(('armd_jax/bench/attention/compile_tpu.py',))}
  assert {'tpu', 'tpu_blocks', 'tpu_call', 'tpu_forward', 'schedule', 'shapes', 'tiles'} <= covered


# ---- the committed results ---------------------------------------------------------------------

RESULTS = records.Records(pathlib.Path(__file__).parents[3] / compile_tpu.PATH)


def test_committed_schedules_are_complete_and_of_this_code():
  wanted = {f'{c} {name}' for c in tpu_blocks.CHIPS for name in compile_tpu.distinct(shapes.NAMED)}
  programs = {f'bfloat16 {name} x{n}' for name in wanted for n in (1, 2)}
  # float32 is compiled with the most streams alone, which need the most VMEM.
  programs |= {f'float32 {name} x2' for name in wanted}
  # What is left out fits VMEM, but its shares of dq, one for each span of keys, need 15.75 GB to
  # 31.5 GB of 15.25 GB of memory.
  programs -= {
    'bfloat16 v4 train_32768_32/8x128 x2',
    'float32 v4 train_32768_16x128 x2',
    'float32 v4 train_32768_32/8x128 x2',
  }
  assert set(RESULTS.read()) == programs
  missing = RESULTS.missing(dict.fromkeys(sorted(programs), compile_tpu.stamp()))
  assert not missing, f'{missing[:3]} are of other code; run `python -m {compile_tpu.__name__}`'


def test_useful_utilisation_is_at_least_that_of_the_best_peer():
  """At every training shape, one stream and two, both passes."""
  programs = RESULTS.read()
  peers = records.Records(RESULTS.path.with_name('attention_peers.json')).read()
  training = {n for n in compile_tpu.distinct(shapes.NAMED) if not shapes.NAMED[n].decodes}
  assert peers.keys() == {f'{chip} {name}' for chip in ('v5e', 'v6e') for name in training}
  for name, best in peers.items():
    for way in ('forward', 'backward'):
      ours = [programs[f'bfloat16 {name} x{streams}'][way]['useful'] for streams in (1, 2)]
      assert min(ours) >= best[way][0], (name, way, ours, best[way])
