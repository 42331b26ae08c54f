"""What training and decoding need from one chip to a pod, compiled, none of it run.

    python -m armd_jax.bench.scaling [--json=PATH] [--only=small] [--table]

Needs `pip install -e '.[aot]'`. Every program is lowered, and compiled if the file does not hold it
yet: results are kept in `armd_jax.records`, and a second run resumes one that was stopped. TPU
programs are compiled at the compiler's lowest effort, in a quarter of the time; at the effort that
training runs with they need somewhat less memory. After a change of the code, rows whose program is
the same are not compiled again.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from armd_jax import cli, records
from armd_jax import config as config_lib
from armd_jax.attention import tpu_blocks
from armd_jax.compiled import programs, targets
from armd_jax.config import Config, MeshConfig
from armd_jax.data import tokenizers
from armd_jax.flags import flag
from armd_jax.hardware.chips import GIB
from armd_jax.parallel import sharding
from armd_jax.training import loop

ROOT = pathlib.Path(__file__).parents[2]
PATH = pathlib.Path('docs/records/scaling.json')
# What programs of a kind are made of, beside their configuration.
PROGRAMS = {
  'train': ('armd_jax/training/__init__.py', 'armd_jax/families/armd.py'),
  'generate': ('armd_jax/decode/generate.py',),
}
# What those import and no program of the kind holds.
NOT_IN = {'train': ('armd_jax/decode/*.py',), 'generate': ()}
# No row compiles another chip's kernels, another family, or what only CPUs decode by.
KERNELS = {'gpu': 'armd_jax/attention/hopper*.py', 'tpu': 'armd_jax/attention/tpu*.py'}
OTHERS = (
  'armd_jax/decode/cpu.py', 'armd_jax/families/__init__.py', 'armd_jax/models/ar.py',
  'armd_jax/models/denoiser.py',
)  # fmt: skip
# What compiles programs and reads them, but for the programs themselves.
READERS = ('armd_jax/aot.py', 'armd_jax/compiled/targets.py')
NO_READERS = (
  'armd_jax/attention/*.py', 'armd_jax/data/*.py', 'armd_jax/decode/*.py', 'armd_jax/models/*.py',
  'armd_jax/cli.py', 'armd_jax/config.py', 'armd_jax/flags.py', 'armd_jax/parallel/sharding.py',
  'armd_jax/train.py', 'armd_jax/training/__init__.py',
)  # fmt: skip
MODELS = {'small': 'owt_small', 'medium': 'owt_medium', '7b': 'owt_7b'}
EFFORT = -1.0
LADDER_SEQUENCES = 4  # per chip
# Chips, slice shape, and over how many of the chips fsdp extends; data extends over the others.
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
    config = experiment(MODELS[self.model], 'paper')
    changes = {'batch_size': self.batch_size, 'accumulation': self.accumulation}
    return dataclasses.replace(
      config,
      train=dataclasses.replace(config.train, **changes),
      mesh=self.mesh or config.mesh,
    )


def experiment(name: str, *options: str) -> Config:
  """The config of an experiment file, with what may follow its name."""
  path = ROOT / 'experiments' / f'{name}.py'
  spec: Any = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config_lib.parse(module.get_config(*options))


def rows() -> Iterator[Row]:
  """All programs, training first."""
  pod, slice_, tensor = 'v5p:8x8x16', 'v5e:16x16', MeshConfig(1, 256, 4)
  # Of one H100, what fits; of 7B nothing does, and its last row shows what would.
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


def code(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """What a row's program is made of: the entries of `records.digest`, and what it leaves out."""
  other = 'tpu' if row.target.startswith('h100') else 'gpu'
  without = 'armd_jax/config.py', KERNELS[other], *OTHERS, *NOT_IN[row.kind]
  return PROGRAMS[row.kind], without


def stamp(row: Row) -> str:
  """A digest of a row's code and of all settings that its program depends on."""
  c = row.config()
  used = (row, c.model, c.order, c.optimizer, c.train.loss_chunk, c.data.tokenizer)
  tuned = None if row.target.startswith('h100') else tpu_blocks.tuned()
  return records.digest(*code(row), f'{EFFORT} {used} {tuned}')


def readers() -> str:
  """A digest of what compiles programs and reads them."""
  return records.digest(READERS, NO_READERS)


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
    loop.check_batch(config, mesh)
  lower, report = {
    'train': (programs.lower_train, programs.train_report),
    'generate': (programs.lower_decode, programs.decode_report),
  }[row.kind]
  lowered = lower(config, vocab_size, mesh, target)
  program = programs.fingerprint(lowered, target)
  if known is not None and known['program'] == program:
    return known
  compiled = programs.compile_program(lowered, target)
  result: dict[str, Any] = {
    'program': program,
    'model': row.model,
    'target': row.target,
    'kind': row.kind,
  }
  result |= report(config, vocab_size, mesh, target, compiled)
  if row.kind == 'train' and not result['memory']['fits']:
    result['fix'] = programs.find_fix(config, vocab_size, mesh, target, print)
  return result


def run(path: str | pathlib.Path, only: str) -> None:
  """Measures what `path` does not hold for this code; writes after each row."""
  kept, by_key = records.Records(path), {row.key: row for row in rows()}
  stamps = {key: stamp(row) for key, row in by_key.items() if only in key}
  known, read_by = kept.read(), readers()
  for key, today in stamps.items():
    before = known.get(key)
    if before and before['readers'] != read_by:
      before = None
    if before and before['stamp'] == today:
      continue
    found = measure(by_key[key], before)
    versions = {'readers': read_by, 'jax': jax.__version__}
    kept.add(key, today, found | versions)
    print(key, _short(found), flush=True)
    jax.clear_caches()
    gc.collect()


def _short(result):
  needs = result['memory']
  return f'{needs["total"] / GIB:.2f} GiB of {needs["usable"] / GIB:.2f}'


# ----- tables


def tables(results: dict[str, records.Record]) -> str:
  """All that docs/scaling.md shows, as Markdown, from the records by key."""
  found = {row.key: results[row.key] for row in rows() if row.key in results}
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str = flag('Where results are kept.', str(PATH))
  only: str = flag('Only rows whose name contains this.', '')
  table: bool = flag('Print the tables of what is there, compile nothing.', False)


def main(options: Options) -> None:
  if not options.table:
    run(options.json, options.only)
  print(tables(records.Records(options.json).read()))


if __name__ == '__main__':
  cli.run(main, Options)
