"""Commands that README and docs print: every one is read by its program, and a drill runs them."""

import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import test_flags
from ml_collections import ConfigDict

from armd_jax import command, flags

ROOT = pathlib.Path(__file__).parents[1]
DRILL_ALSO = ('README.md', 'docs/*.md', 'armd_jax/*.py', 'Makefile', 'experiments/*.py')

# In the order in which the site shows them, which is the one in which they are run.
PAGES = ['README.md'] + [
  f'docs/{name}'
  for name in re.findall(r': (\w+\.md)$', (ROOT / 'mkdocs.yml').read_text('utf-8'), re.M)
  if name not in ('index.md', 'contribute.md') and (ROOT / 'docs' / name).is_file()
]

# What a page stands for is the reader's own, or what a reader has and this machine has not.
ELSEWHERE = {
  'FOLDER_WITH_MODEL_SAFETENSORS': 'a model of the reader',
  '--workdir=RUN': 'a run of the reader',
  '--hf=FOLDER': 'a model of the reader; see tests/models/test_llama.py',
  'work/open': 'what that makes',
  'work/warmed': 'what that makes',
  'work/adapted': 'what that makes',
  'armd_jax.artifacts.harness': 'the package of lm_eval',
  'hundred.txt': 'a text of 100 MB',
  'wiki.valid.raw': 'texts that are downloaded',
  '--texts=lambada': 'texts that are downloaded',
  'gpt2_books': "GPT-2's vocabulary and 36 MB of books",
  'work/straight': 'a text of 100 MB',
  'pip install': 'packages for other hardware',
  'hf:Skylion007': 'a download',
  'tfds:lm1b': 'a download',
  'text8.zip': 'a download',
  'text8_train': 'what that holds; see tests/data/test_prepare.py',
  'text8_test': 'what that holds',
  'openai-community/gpt2': 'a download',
  '--hf=gpt2': 'what that fetches; see tests/test_convert.py',
  'docker': 'a cluster',
  'launch/slurm.py': 'a cluster; see tests/launch/test_docs.py',
  'launch/jobset.py': 'a cluster; see tests/launch/test_docs.py',
  'launch/tpu_vm.py': 'a cluster; see tests/launch/test_docs.py',
  '--port 8476 --dry-run': 'see tests/launch/test_docs.py',
  'chromium': 'a browser',
  'make device': 'a GPU',
  'make reproduce-mini': 'hours; see tests/reproduce',
  'armd aot': 'compilers of other hardware; see tests/test_aot.py',
  'armd bench.': 'hours; see tests/bench',
  'work/reproduce': 'what those hours leave',
  '$AR': 'what those hours leave',
  'python -m pytest': 'this',
  'for run in': 'what those hours leave',
  '$run': 'what those hours leave',
  '--mesh=data': 'several devices',
}


def commands_of(text):
  """Commands of a page, joined where a line goes on; comments and output are left out."""
  found = []
  for kind, block in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S):
    if kind not in ('', 'sh', 'bash'):
      continue
    shows_output = block.startswith('$ ')
    for line in block.replace('\\\n', ' ').splitlines():
      if shows_output and not line.startswith('$ '):
        continue
      line = re.sub(r'  +#.*', '', line.removeprefix('$ ')).strip()
      if re.match(
        r'(make|armd|python|git|cd|\.|mkdir|pip|[A-Z_]+=|AR=|docker|chromium|for|curl|head|tail|hf)\b',
        line,
      ):
        found.append(re.sub(r' +', ' ', line))
  return found


PRINTED = [(page, line) for page in PAGES for line in commands_of((ROOT / page).read_text('utf-8'))]


def program_of(line):
  """Module and flags of a command that starts a program of ours, or None."""
  words = shlex.split(line)
  while words and re.match(r'[A-Z_]+=', words[0]):
    words.pop(0)
  if words[:1] == ['armd']:
    known = command.programs() | {'--help': ''}
    assert words[1] in known, line
    return known[words[1]], words[2:]
  if words[:2] == ['python', '-m'] and words[2].startswith('armd_jax'):
    return words[2], words[3:]
  return None


def test_there_are_many():
  assert len(PRINTED) > 60 and {page for page, _ in PRINTED} >= {'README.md', 'docs/start.md'}


@pytest.mark.parametrize('line', sorted({line for _, line in PRINTED if program_of(line)}))
def test_a_program_reads_its_flags(line, monkeypatch):
  module, words = program_of(line)
  names = {name.removesuffix('.__main__'): name for name in test_flags.PROGRAMS}
  if module not in test_flags.PROGRAMS and module not in names:
    pytest.skip('it reads its flags otherwise')
  if 'experiments/adapt.py' in line:
    pytest.skip('the experiment reads a run; see tests/test_experiments.py')
  monkeypatch.chdir(ROOT)
  options = importlib.import_module(names.get(module, module)).Options
  given = flags.parse(options, [module, *words])
  config = getattr(given, 'config', None)
  if isinstance(config, ConfigDict):
    assert config.train.steps > 0


def test_targets_are_in_the_makefile():
  targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text('utf-8'), re.M))
  named = {line.split()[1] for _, line in PRINTED if line.startswith('make ')}
  assert named and named <= targets


def test_what_runs_elsewhere_is_named():
  """No entry of the list is there for nothing."""
  lines = [line for _, line in PRINTED]
  unused = [mark for mark in ELSEWHERE if not any(mark in line for line in lines)]
  assert not unused
  assert len([line for line in lines if not any(mark in line for mark in ELSEWHERE)]) > 25


def test_no_two_pages_make_different_runs_in_one_folder():
  made = {}
  for _, line in PRINTED:
    if re.search(r'armd(_jax\.)? ?(train|quickstart)|convert|prepare', line):
      for folder in re.findall(r'(?:--workdir|--out)=(\S+)', line):
        made.setdefault(folder, set()).add(line)
  made.pop('DIR', None)
  twice = {folder: lines for folder, lines in made.items() if len(lines) > 1}
  # Those that show what is refused, or that a stopped command goes on.
  assert set(twice) <= {'work/gpt2_books'}, twice


SMALL = """
_published = get_config


def get_config(options=''):
  config = _published(options) if options else _published()
  config.model.update(length=64, num_layers=2, embed_dim=32, num_heads=2, position_dim=32)
  config.order.update(ar_steps=4, perm_steps=8, max_shuffled=4)
  if config.order.strided_start > 0:
    config.order.strided_start = 10
  config.train.update(steps=14, eval_every=7, checkpoint_every=7, log_every=7, loss_chunk=64)
  return config
"""


@pytest.mark.drill
def test_printed_commands_run_in_reading_order(tmp_path):
  """In one clone, with relative paths, in small sizes of the experiments."""
  clone = tmp_path / 'armd_jax'
  subprocess.run(['git', 'clone', '--quiet', str(ROOT), str(clone)], check=True)
  for name in ('quickstart', 'text8'):
    path = clone / 'experiments' / f'{name}.py'
    path.write_text(path.read_text() + SMALL)
  (clone / 'books').mkdir()
  for name in ('letters', 'stories'):
    lines = [f'It was the {name} number {n} of them all, to be or not to be.' for n in range(900)]
    (clone / 'books' / f'{name}.txt').write_text('\n\n'.join(lines))
  # What the pages call the reader's own files.
  row = {'question': 'To be?', 'text': 'Or not to be.'}
  (clone / 'rows.jsonl').write_text(f'{json.dumps(row)}\n' * 40)
  columns = ','.join(f'sentence{number}' for number in range(1, 6))
  (clone / 'stories.csv').write_text(f'{columns}\n' + 'It was.,To be.,Or not.,They are.,End.\n' * 3)
  tools = tmp_path / 'bin'
  tools.mkdir()
  for name, start in (('python', ''), ('armd', f' -c "{START}"')):
    (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable}{start} "$@"\n')
    (tools / name).chmod(0o755)
  (clone / '.venv' / 'bin').mkdir(parents=True)
  (clone / '.venv' / 'bin' / 'python').symlink_to(tools / 'python')
  (clone / '.venv' / 'bin' / 'activate').touch()
  (clone / '.venv' / '.installed').touch()
  variables = os.environ | {
    'PATH': f'{tools}:{os.environ["PATH"]}', 'PYTHONPATH': str(clone), 'HOME': str(tmp_path),
    'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'PYTHON': sys.executable,
  }  # fmt: skip
  failed, done = [], set()
  for page, line in PRINTED:
    if line in done or any(mark in line for mark in ELSEWHERE) or 'git clone' in line:
      continue
    done.add(line)
    ended = subprocess.run(
      ['bash', '-c', line], cwd=clone, env=variables, capture_output=True, text=True
    )
    print(f'{page}: {line}: {ended.returncode}', flush=True)
    if ended.returncode:
      failed.append(f'{page}: {line}\n{ended.stdout[-500:]}{ended.stderr[-1500:]}')
  shutil.rmtree(clone)
  assert not failed, '\n\n'.join(failed)
  assert len(done) > 25


START = 'from armd_jax import command; command.main()'
