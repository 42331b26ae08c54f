"""What a program prints beside its own lines: warnings of orbax that are news, and no others."""

import pathlib
import re
import subprocess
import sys

import forbidden
import pytest

from armd_jax import cli
from armd_jax.errors import UserError

PROGRAM = """
import dataclasses, resource, sys
import jax
from absl import logging
from armd_jax import cli
from armd_jax.training import checkpoint

@dataclasses.dataclass(frozen=True)
class Options:
  pass

def in_orbax(code):
  exec(compile(code, '/site-packages/orbax/checkpoint/new.py', 'exec'), {'logging': logging})

def save(largest):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (largest or limits[0], limits[1]))
  state = {f'x{i}': jax.random.normal(jax.random.key(i), (999,)) for i in range(9)}
  saves = checkpoint.Checkpoints(WORKDIR)
  saves.save(1, state, 0, None)
  saves.close()
  saves.restore(state)

def main(_):
  CALL

cli.run(main, Options)
"""


def run(tmp_path, call):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM.replace('CALL', call).replace('WORKDIR', repr(str(tmp_path / 'run'))))
  done = subprocess.run([sys.executable, program], capture_output=True, text=True)
  return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize('level', ['warning', 'error'])
def test_a_warning_of_orbax_that_nobody_knows_is_printed(tmp_path, level):
  call = f'in_orbax(\'logging.{level}("[process=0] some arrays were left out")\')'
  code, told = run(tmp_path, call)
  assert code == 0 and len(told) == 1 and told[0].endswith('[process=0] some arrays were left out')


@pytest.mark.parametrize('thread', ['write', 'Thread-7 (_target_setting_result)'])
def test_what_orbax_raises_as_well_is_not_printed(tmp_path, thread):
  what = f'[process=0][thread={thread}][operation_id=2] _SignalingThread.run() raised an exception'
  assert run(tmp_path, f'in_orbax(\'logging.error("{what}: 503")\')') == (0, [])


def test_an_ordinary_save_prints_nothing(tmp_path):
  assert run(tmp_path, 'save(None)') == (0, [])
  assert pathlib.Path(tmp_path / 'run/checkpoints/1').is_dir()


def test_a_disk_that_is_full_is_told_once(tmp_path):
  code, told = run(tmp_path, 'save(2_000)')
  assert code == 1 and len(told) == 1, told
  assert told[0].startswith('error: cannot save in ') and '(File too large)' in told[0]


def test_numbers_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write .*file/a.json \(.*\); give another --json'):
    cli.write_json(tmp_path / 'file/a.json', {})


@pytest.mark.parametrize(
  ('raised', 'reason'),
  [
    ("gcsfs.retry.HttpError({'code': 503, 'message': 'busy'})", 'HttpError: busy, 503'),
    (
      """ValueError("ABORTED: All 32 retry attempts failed: busy [http_response_code='503']")""",
      'ABORTED: All 32 retry attempts failed: busy',
    ),
  ],
)
def test_an_answer_of_a_store_is_told_once(tmp_path, raised, reason):
  """Wherever it was met, and behind whatever other error."""
  pytest.importorskip('gcsfs')
  raises = f'exec("import gcsfs.retry\\ntry: raise " + {raised!r} + '
  call = raises + '"\\nexcept Exception as error: raise RuntimeError from error")'
  code, told = run(tmp_path, call)
  assert code == 1 and len(told) == 1, told
  assert told[0].startswith(f'error: a bucket did not do what it was asked ({reason}')


@pytest.mark.parametrize('words', ['print("x" * 10**6)', 'print("x")', 'print("x", flush=True)'])
def test_a_full_disk_under_what_is_printed_is_a_sentence(tmp_path, words):
  (tmp_path / 'a.py').write_text(PROGRAM.replace('CALL', words))
  done = subprocess.run(
    f'{sys.executable} {tmp_path}/a.py > /dev/full', shell=True, capture_output=True, text=True
  )
  assert done.returncode == 1 and done.stderr == (
    'error: what this program prints cannot be written (No space left on device); free space, or '
    'send it to another place\n'
  )


@pytest.mark.parametrize('closed', ['0<&-', '1>&-', '2>&-', '0<&- 1>&- 2>&-'])
def test_closed_files_are_written_to_by_nobody(tmp_path, closed):
  """What is printed where nobody reads goes nowhere, and not into the next file that is opened."""
  call = (
    f'print("out"); print("err", file=sys.stderr); open({str(tmp_path / "file")!r}, "w").close()'
  )
  (tmp_path / 'a.py').write_text(PROGRAM.replace('CALL', call))
  done = subprocess.run(
    f'{sys.executable} {tmp_path}/a.py {closed}', shell=True, capture_output=True, text=True
  )
  assert done.returncode == 0
  assert done.stdout == ('' if '1>' in closed else 'out\n')
  assert done.stderr == ('' if '2>' in closed else 'err\n')
  assert (tmp_path / 'file').read_text() == ''


@pytest.mark.parametrize('code', ['1 / 0', 'raise SystemExit(0)', 'import nothing_of_this_name'])
def test_a_plugin_that_cannot_be_imported_is_a_sentence(tmp_path, monkeypatch, code):
  """And ends no program with code 0, as if all were done."""
  (tmp_path / 'mine_that_fails.py').write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv(cli.PLUGINS, 'mine_that_fails')
  with pytest.raises(UserError, match=r"'mine_that_fails', which cannot be imported \(.*; mend"):
    cli.load_plugins()


def test_a_file_that_may_not_be_used_is_told(tmp_path):
  """Where nobody has thought of it before; what names no file is a fault of the program."""
  (tmp_path / 'a.txt').write_text('')
  for call, code in (
    (f'open({str(tmp_path / "a.txt")!r})', 1),
    ('raise PermissionError(1, "Operation not permitted")', 70),
  ):
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM.replace('CALL', call).replace('WORKDIR', repr(str(tmp_path))))
    with forbidden.Closed(tmp_path / 'a.txt'):
      done = forbidden.run([sys.executable, str(program)])
    assert done.returncode == code, done.stderr
    is_sentence = done.stderr == (
      f'error: this user may not use {tmp_path}/a.txt so (Permission denied); ask its owner for '
      'the permission, or name another place\n'
    )
    assert is_sentence == (code == 1)


def test_what_flags_name_in_a_folder_of_another_user_is_a_sentence(tmp_path):
  closed = tmp_path / 'alice'
  closed.mkdir()
  run = str(closed / 'run')
  given = [
    ('train', '--config=experiments/quickstart.py', f'--workdir={run}'),
    ('train', f'--config={run}/a.py', f'--workdir={tmp_path}'),
    ('sample', f'--workdir={tmp_path}', f'--json={run}/a.json'),
    ('export', f'--workdir={tmp_path}', f'--out={run}'),
    ('convert', f'--workdir={tmp_path}', f'--hf={run}'),
    ('judge', f'--samples={run}/a.json', '--judge=x'),
    ('report', f'--workdir={run}'),
  ]
  code = f"""
import importlib
from absl import flags as absl_flags
from armd_jax import flags
for name, *argv in {given}:
  program = importlib.import_module('armd_jax.' + name)
  try:
    program.main(flags.parse(program.Options, ['', *argv], absl_flags.FlagValues()))
  except Exception as error:
    print(f'{{type(error).__name__}}: {{error}}')
"""
  with forbidden.Closed(closed):
    done = forbidden.python(code)
    started = forbidden.run([sys.executable, '-m', 'armd_jax.sample', f'--workdir={run}'])
  told = done.stdout.splitlines()
  assert len(told) == len(given), (told, done.stderr)
  for line in told:
    assert re.match(rf'UserError: --\w+ is {run}.*, which this user may not look into \(', line), (
      line
    )
  assert started.returncode == 1 and started.stderr == (
    f'error: --workdir is {run}, which this user may not look into (Permission denied); ask its '
    'owner for the permission, or write another\n'
  )
