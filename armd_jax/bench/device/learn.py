"""Trains a real model for the time that is left: `... learn [FOLDER OF TEXTS]`.

Base training, strided fine-tuning, exact scores and generation in one, by `armd_jax.quickstart`. If
it does not end in time it is stopped, and its row has what it has reached; a later call resumes it.
"""

from __future__ import annotations

import json
import lzma
import pathlib
import shutil
import signal
import subprocess
import sys

from armd_jax.bench.device import calls
from armd_jax.bench.device.environment import ROOT
from armd_jax.bench.device.rows import NO_TIME, Rows
from armd_jax.errors import STOPPED
from armd_jax.files import whole
from armd_jax.show import history

KEY = 'quickstart at 12 layers x 512'
MODEL = {
  'model.length': 1024, 'model.num_layers': 12, 'model.embed_dim': 512, 'model.num_heads': 8,
  'model.dtype': 'bfloat16', 'model.scan_layers': True, 'model.position_dim': 512,
  'train.batch_size': 32, 'train.steps': 2400, 'train.log_every': 100, 'train.eval_every': 800,
  'train.checkpoint_every': 800, 'order.ar_steps': 400, 'order.perm_steps': 1600,
  'order.strided_start': 2100, 'optimizer.learning_rate': 6e-4,
}  # fmt: skip
DRY_MODEL = {
  'model.length': 32, 'model.num_layers': 2, 'model.embed_dim': 32, 'model.num_heads': 2,
  'model.position_dim': 16, 'order.ar_steps': 2, 'order.perm_steps': 6, 'order.strided_start': 8,
  'train.steps': 12, 'train.log_every': 4, 'train.eval_every': 12, 'train.checkpoint_every': 12,
}  # fmt: skip
TO_SAVE = 8  # seconds between being stopped and having saved


def unpack(packed: pathlib.Path, folder: pathlib.Path) -> str:
  """Unpacks texts; returns the glob of them."""
  folder.mkdir(parents=True, exist_ok=True)
  for path in sorted(packed.glob('*.xz')):
    with lzma.open(path) as source, (folder / path.stem).open('wb') as target:
      shutil.copyfileobj(source, target)
  return str(folder / '*')


def train(rows: Rows, texts: str | None) -> dict:
  """The numbers of a row."""
  # Where rows are kept, so that it can be resumed after the folder of results was emptied.
  workdir = rows.job.kept / f'learn{"-dry" if rows.dry else ""}'
  command = [sys.executable, '-m', 'armd_jax.quickstart', f'--workdir={workdir}']
  command += [f'--text={unpack(pathlib.Path(texts), rows.job.kept / "text")}'] if texts else []
  command += ['--config=experiments/quickstart.py']
  changes = DRY_MODEL if rows.dry else MODEL
  command += [f'--config.{name}={value}' for name, value in changes.items()]
  started = subprocess.Popen(command, cwd=ROOT)
  try:
    code = started.wait(max(1, rows.left() - TO_SAVE))
  except subprocess.TimeoutExpired:
    started.send_signal(signal.SIGTERM)
    code = started.wait()
  logged = workdir / 'metrics.jsonl'
  if code not in (0, STOPPED, -signal.SIGTERM) or not logged.exists():
    return {'error': f'quickstart ended with {code}; see log.txt'}
  if code:
    return reached(history.read(logged)) | {'skipped': f'{NO_TIME}: stopped on the way'}
  results = (workdir / 'results.json').read_text('utf-8')
  whole.write_text(rows.job.out / 'learn.json', results)
  return reached(history.read(logged)) | learned(json.loads(results))


def reached(records: dict[int, dict]) -> dict:
  """The last of what training logged."""
  found = {'step': max(records, default=0)}
  for record in records.values():
    names = ('loss', 'held_out', 'tokens_per_second', 'mfu', 'memory_gib')
    found |= {name: record[name] for name in names if record.get(name) is not None}
  return found


def learned(results: dict) -> dict:
  """Exact nats per byte by protocol, and tokens per second by S."""
  nats = {score['name']: score['nats_per_byte'] for score in results['held_out']['after_sbp']}
  speeds = {f'S={s["streams"]}': s['tokens_per_second'] for s in results['generation']}
  return {'nats_per_byte': nats, 'generated_per_s': speeds}


def main(rows: Rows, arguments: list[str]) -> int:
  rows.measure(KEY, lambda: train(rows, *(arguments or [None])))  # type: ignore[list-item]
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))
