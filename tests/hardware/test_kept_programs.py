"""Compiled programs are kept and found again, within bounds; a folder that will not do is told."""

import os
import subprocess
import sys
import time
import types

import pytest

from armd_jax import flags, judge
from armd_jax.errors import UserError
from armd_jax.hardware import kept_programs, starts

CODE = """
import sys
from armd_jax.hardware import kept_programs
kept_programs._SECONDS = 0.0
kept_programs.keep(sys.argv[1])
import jax
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(jax.jit(lambda x: x * 3)(2.0))
print(hits.count('/jax/compilation_cache/cache_hits') > 0)
"""


def run(folder, **variables):
  """What a process prints of a product, and whether it read its program."""
  kept = {name: x for name, x in os.environ.items() if 'COMPILATION_CACHE' not in name}
  env = kept | {'JAX_PLATFORMS': 'cpu'} | variables
  command = [sys.executable, '-c', CODE, str(folder)]
  return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


def test_a_second_start_reads_what_the_first_has_compiled(tmp_path):
  assert [run(tmp_path / 'kept').stdout.split()[1] for _ in range(2)] == ['False', 'True']
  (folder,) = (tmp_path / 'kept').iterdir()
  assert folder.name == kept_programs._cpu() and any(folder.iterdir())


def test_home_none_and_jax_own_variables(tmp_path):
  home = {'HOME': str(tmp_path / 'home')}
  run(kept_programs.NONE, **home)
  run('', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'own'), **home)
  assert not (tmp_path / 'home').exists() and any((tmp_path / 'own').iterdir())
  run('', **home)
  assert any((tmp_path / 'home/.cache/armd_jax/compiled').iterdir())


def test_a_folder_that_cannot_be_written_to_is_a_note(tmp_path):
  (tmp_path / 'file').touch()
  done = run(tmp_path / 'file')
  assert done.stdout.split() == ['6.0', 'False']
  assert 'note: compiled programs are not kept in' in done.stderr and 'or none' in done.stderr
  with pytest.raises(UserError, match=r"^--compilation_cache is 's3://b'"):
    kept_programs.keep('s3://b')


def test_a_bucket_keeps_programs_too(bucket):
  """Under the name of the CPU; one that cannot be read is told."""
  where = bucket.folder('compiled')
  assert [run(where).stdout.split()[1] for _ in range(2)] == ['False', 'True']
  assert {name.partition('/')[0] for name in bucket.names(where)} == {kept_programs._cpu()}
  with pytest.raises(UserError, match=r"^--compilation_cache is .* the bucket 'nowhere' cannot be"):
    kept_programs.keep('gs://nowhere/compiled')


def test_the_oldest_go_where_there_are_too_many(tmp_path):
  for i in range(6):
    (tmp_path / str(i)).write_bytes(b'x' * 100)
    os.utime(tmp_path / str(i), (1000 - i, 1000 - i))
  kept_programs._remove_old(tmp_path, 350)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['0', '1', '2']


def test_programs_that_measure_compile_for_themselves(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name='armd_jax.bench.decode'))
  monkeypatch.setitem(sys.modules, '__main__', main)
  kept_programs.keep('')
  assert not list(tmp_path.iterdir())


def test_every_program_has_the_flag():
  from absl import flags as absl_flags

  values = absl_flags.FlagValues()
  argv = ['judge', '--samples=a', '--judge=b', '--compilation_cache=x']
  assert flags.parse(judge.Options, argv, values) == judge.Options(samples='a', judge='b')
  assert values[flags.CACHE].value == 'x'
  assert flags.describe(judge.Options).count('--compilation_cache') == 1


def test_the_begin_of_a_process_is_told_once(monkeypatch):
  monkeypatch.setattr(starts, '_of_program', None)
  assert starts.take() is None
  starts.program_begins()
  began = starts.take()
  assert starts.take() is None
  # `ps` counts whole seconds.
  asked = subprocess.run(['ps', '-o', 'etimes=', str(os.getpid())], capture_output=True, text=True)
  assert abs(time.time() - began - int(asked.stdout)) < 2.5
