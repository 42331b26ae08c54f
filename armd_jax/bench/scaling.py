"""What training and decoding need from one chip to a pod, compiled, none of it run.

    python -m armd_jax.bench.scaling [--json=docs/scaling.json] [--only=small] [--table]

Needs `pip install -e '.[aot]'`. Every program is lowered, and compiled if the file does not hold it
yet: results are written after each, and a second run goes on where the first one stopped. TPU
programs are compiled at the compiler's lowest effort, in a quarter of the time; at the effort that
training runs with they need somewhat less memory. Every row is stamped with hashes of the sources
of its program and of what reads it; after a change of the first, rows whose program is the same are
stamped anew.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from absl import flags

from armd_jax import aot, cli, sharding, targets, train
from armd_jax import config as config_lib
from armd_jax.attention import tpu_blocks
from armd_jax.chips import GIB
from armd_jax.config import Config, MeshConfig
from armd_jax.data import tokenizers

ROOT = pathlib.Path(__file__).parents[2]
# What a program is made of beside its configuration: any; those of a kind; kernels of a GPU or not.
PROGRAMS = (
  'armd_jax/attention/__init__.py', 'armd_jax/attention/device.py', 'armd_jax/attention/tiles.py',
  'armd_jax/axes.py', 'armd_jax/models/armd.py', 'armd_jax/models/layers.py',
  'armd_jax/models/prefix_aggregation.py', 'armd_jax/order.py', 'armd_jax/sharding.py',
  'armd_jax/training.py',
)  # fmt: skip
KINDS = {
  'train': ('armd_jax/objectives/armd.py', 'armd_jax/objectives/cross_entropy.py'),
  'generate': (
    'armd_jax/decode/generate.py', 'armd_jax/decode/sampling.py', 'armd_jax/decode/state.py',
  ),
}  # fmt: skip
KERNELS = {True: ('armd_jax/attention/hopper*.py',), False: ('armd_jax/attention/tpu*.py',)}
# What compiles programs and reads them.
READERS = (
  'armd_jax/aot.py', 'armd_jax/attention/aot_hopper.py', 'armd_jax/chips.py', 'armd_jax/flops.py',
  'armd_jax/hlo.py', 'armd_jax/roofline.py', 'armd_jax/targets.py',
)  # fmt: skip
MODELS = {'small': 'owt_small', 'medium': 'owt_medium', '7b': 'owt_7b'}
EFFORT = -1.0
LADDER_SEQUENCES = 4  # per chip
# Chips, slice shape, and how many of the chips lie along fsdp, the others along data.
LADDER = (
  (1, '2x2x1', 1), (4, '2x2x1', 4), (16, '2x2x4', 16), (64, '4x4x4', 64), (256, '4x8x8', 256),
  (1024, '8x8x16', 256),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
  """One program: a model, a target, the batch and the mesh."""

  key: str
  kind: str  # 'train' or 'generate'
  model: str
  target: str
  batch_size: int = 512
  accumulation: int = 1
  mesh: MeshConfig | None = None
  num_devices: int = 0  # fewer than the target has; 0: all

  def config(self) -> Config:
    config = experiment(MODELS[self.model])
    changes = {'batch_size': self.batch_size, 'accumulation': self.accumulation}
    return dataclasses.replace(
      config,
      train=dataclasses.replace(config.train, **changes),
      mesh=self.mesh or config.mesh,
    )


def experiment(name: str) -> Config:
  """The config of an experiment file."""
  path = ROOT / 'experiments' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config_lib.parse(module.get_config())


def rows() -> Iterator[Row]:
  """All programs, training first."""
  pod, slice_, tensor = 'v5p:8x8x16', 'v5e:16x16', MeshConfig(1, 256, 4)
  # Of one H100, what fits; of 7B nothing does, and the last row of it tells what would.
  accumulation = {'small': 16, 'medium': 32, '7b': 512}
  for model in MODELS:
    for batch_size in (512, 4096):
      yield Row(f'{model} {pod} {batch_size}', 'train', model, pod, batch_size, 1, tensor)
    yield Row(f'{model} {slice_} 512', 'train', model, slice_, 512, 1, MeshConfig(1, 256, 1))
    yield Row(
      f'{model} h100 512', 'train', model, 'h100', 512, accumulation[model], MeshConfig(1, 1, 1)
    )
  for chips, shape, fsdp in LADDER:
    yield Row(
      f'ladder {chips}', 'train', 'small', f'v5p:{shape}', LADDER_SEQUENCES * chips, 1,
      MeshConfig(-1, fsdp, 1), chips,
    )  # fmt: skip
  for model in MODELS:
    yield Row(f'{model} {pod} generate', 'generate', model, pod, mesh=tensor)
    yield Row(f'{model} {slice_} generate', 'generate', model, slice_, mesh=MeshConfig(1, 64, 4))
    yield Row(f'{model} h100 generate', 'generate', model, 'h100', mesh=MeshConfig(1, 1, 1))


def stamps(row: Row) -> dict[str, str]:
  """Hashes of what a result depends on: what the program is made of, and what reads it."""
  c, is_gpu = row.config(), row.target.startswith('h100')
  sources = *PROGRAMS, *KINDS[row.kind], *KERNELS[is_gpu]
  used = (row, c.model, c.order, c.optimizer, c.train.loss_chunk, c.data.tokenizer)
  tuned = None if is_gpu else tpu_blocks.tuned()
  return {
    'stamp': _digest(f'{EFFORT} {used} {tuned}', sources),
    'readers': _digest('', READERS),
  }


def _digest(text: str, sources: Iterable[str]) -> str:
  digest = hashlib.sha256(text.encode())
  for path in sorted({path for pattern in sources for path in ROOT.glob(pattern)}):
    digest.update(f'{path.relative_to(ROOT)}\0'.encode() + path.read_bytes())
  return digest.hexdigest()[:16]


@functools.cache
def target_of(name: str) -> targets.Target:
  """The target of a row."""
  return targets.gpu(name) if name.startswith('h100') else targets.tpu(name, EFFORT)


def measure(row: Row, known: dict[str, Any] | None) -> dict[str, Any]:
  """Numbers of one program; `known`, numbers that today's readers gave, if they are of the same."""
  config, target = row.config(), target_of(row.target)
  vocab_size = tokenizers.vocab_size(config.data.tokenizer)
  devices = list(target.devices)[: row.num_devices or None]
  target = dataclasses.replace(target, devices=tuple(devices))
  mesh = sharding.make_mesh(config.mesh, devices)
  if row.kind == 'train':
    train.check_batch(config, mesh)
  lower, report = {
    'train': (aot.lower_train, aot.train_report),
    'generate': (aot.lower_decode, aot.decode_report),
  }[row.kind]
  lowered = lower(config, vocab_size, mesh, target)
  program = aot.fingerprint(lowered, target)
  if known is not None and known['program'] == program:
    return known
  compiled = aot.compile_program(lowered, target)
  result = {'program': program, 'model': row.model, 'target': row.target, 'kind': row.kind}
  result |= report(config, vocab_size, mesh, target, compiled)
  if row.kind == 'train' and not result['memory']['fits']:
    result['fix'] = aot.find_fix(config, vocab_size, mesh, target, print)
  return result


def run(path: pathlib.Path, only: str) -> None:
  """Measures what `path` does not hold for these sources; writes after each row."""
  results = json.loads(path.read_text()) if path.exists() else {'rows': {}}
  results |= {'jax': jax.__version__, 'effort': EFFORT}
  every = [row.key for row in rows()]
  for row in rows():
    known, here = results['rows'].get(row.key), stamps(row)
    if only not in row.key or (known and known.items() >= here.items()):
      continue
    if known and known.get('readers') != here['readers']:
      known = None
    results['rows'][row.key] = measure(row, known) | here
    results['rows'] = {key: results['rows'][key] for key in every if key in results['rows']}
    _write(path, results)
    print(row.key, _short(results['rows'][row.key]), flush=True)
    jax.clear_caches()
    gc.collect()


def _short(result):
  needs = result['memory']
  return f'{needs["total"] / GIB:.2f} GiB of {needs["usable"] / GIB:.2f}'


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
  """JSON, one program a line."""
  lines = ',\n'.join(f'  {json.dumps(k)}: {json.dumps(v)}' for k, v in results['rows'].items())
  head = ''.join(f'{json.dumps(k)}: {json.dumps(v)},\n' for k, v in results.items() if k != 'rows')
  path.write_text(f'{{\n{head}"rows": {{\n{lines}\n}}\n}}\n')


# ----- tables


def tables(results: dict[str, Any]) -> str:
  """All that docs/scaling.md shows, as Markdown."""
  found = results['rows']
  train_rows = [r for k, r in found.items() if r['kind'] == 'train' and 'ladder' not in k]
  ladder = [r for k, r in found.items() if k.startswith('ladder')]
  generate = [r for r in found.values() if r['kind'] == 'generate']
  parts = [
    ('Training steps', [_train_row(r) for r in train_rows]),
    ('Bytes that each chip sends per training step', [_sent_row(r) for r in train_rows]),
    ('Small, four sequences per v5p chip', [_ladder_row(r) for r in ladder]),
    ('Generation: prefill of 512 tokens, then steps of 4', [_generate_row(r) for r in generate]),
  ]
  text = [f'{title}\n\n{_markdown(lines)}' for title, lines in parts if lines]
  fixes = [f'- {r["model"]} on {r["target"]}: {r["fix"]}' for r in train_rows if 'fix' in r]
  if fixes:
    text.append('What does not fit, and what to do\n\n' + '\n'.join(fixes))
  return '\n\n'.join(text)


def _markdown(lines: list[dict[str, Any]]) -> str:
  body = [' | '.join(map(str, line.values())) for line in lines]
  head = ' | '.join(lines[0])
  return '\n'.join(f'| {x} |' for x in [head, ' | '.join(['---'] * len(lines[0])), *body])


def _mesh_text(result):
  return ' x '.join(f'{k} {v}' for k, v in result['mesh'].items() if v > 1) or '1 chip'


def _gib(size):
  return f'{size / GIB:.2f}'


def _ms(seconds):
  return f'{seconds * 1e3:.4g}'


def _times(part):
  if 'seconds' not in part:
    return {'compute / memory / network, ms': '-', 'at least, ms': '-', 'MFU at most': '-'}
  s, mfu = part['seconds'], part['mfu']
  return {
    'compute / memory / network, ms': f'{_ms(s["compute"])} / {_ms(s["memory"])} / '
    f'{_ms(s["network"])}',
    'at least, ms': f'{_ms(s["overlapped"])} to {_ms(s["serial"])}',
    'MFU at most': f'{mfu["overlapped"]:.2f} to {mfu["serial"]:.2f}',
  }


def _train_row(r):
  needs = r['memory']
  state = sum(needs[k] for k in ('parameters', 'ema', 'optimizer'))
  return {
    'model': r['model'],
    'target': r['target'],
    'batch': r['batch_size'],
    'mesh': _mesh_text(r),
    'remat, accumulation': f'{r["remat"]}, {r["accumulation"]}',
    'state GiB': _gib(state),
    'temporary GiB': _gib(needs['temporary']) if 'temporary' in needs else '-',
    'all of usable GiB': f'{_gib(needs["total"])} of {_gib(needs["usable"])}',
    'fits': 'yes' if needs['fits'] else 'no',
    **_times(r),
  }


def _sent_row(r):
  by = {}
  for row in r.get('collectives', ()):
    if row['bytes'] >= 1e3:
      by.setdefault(row['kind'], []).append(f'{row["axis"]} {row["bytes"] / 1e6:.4g}')
  kinds = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
  return {
    'model': r['model'],
    'target': r['target'],
    'batch': r['batch_size'],
    **{f'{kind}, MB': '; '.join(by.get(kind, ['-'])) for kind in kinds},
  }


def _ladder_row(r):
  needs = r['memory']
  return {
    'chips': r['devices'],
    'batch': r['batch_size'],
    'mesh': _mesh_text(r),
    'state GiB': _gib(sum(needs[k] for k in ('parameters', 'ema', 'optimizer'))),
    'temporary GiB': _gib(needs['temporary']) if 'temporary' in needs else '-',
    'sent MB': f'{r["sent_bytes"] / 1e6:.4g}' if 'sent_bytes' in r else '-',
    **_times(r),
  }


def _generate_row(r):
  line = {
    'model': r['model'],
    'target': r['target'],
    'sequences': r['sequences'],
    'mesh': _mesh_text(r),
    'all of usable GiB': f'{_gib(r["memory"]["total"])} of {_gib(r["memory"]["usable"])}',
  }
  for name in ('prefill', 'decode'):
    part = r.get(name, {})
    line[f'{name} sent MB'] = f'{part["sent_bytes"] / 1e6:.4g}' if part else '-'
    line[f'{name} at least, ms'] = _times(part)['at least, ms']
  return line


def main() -> None:
  path = pathlib.Path(_JSON.value)
  if not _TABLE.value:
    run(path, _ONLY.value)
  print(tables(json.loads(path.read_text())))


if __name__ == '__main__':
  _JSON = flags.DEFINE_string('json', 'docs/scaling.json', 'Where results are kept.')
  _ONLY = flags.DEFINE_string('only', '', 'Only rows whose name contains this.')
  _TABLE = flags.DEFINE_bool('table', False, 'Print the tables of what is there, compile nothing.')
  cli.run(main)
