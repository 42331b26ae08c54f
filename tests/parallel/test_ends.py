"""A process ends within seconds, with one sentence, whatever its threads and libraries wait for."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

from armd_jax.parallel import ends

PROGRAMS = ('train', 'sample', 'evaluate', 'judge', 'export', 'convert', 'quickstart', 'sweep')
SECONDS = 30  # far less than what anything here waits for
_HEAD = """
import atexit, multiprocessing, os, signal, sys, threading, time
from armd_jax.parallel import ends
"""


def start(script, *arguments):
  return subprocess.Popen(
    [sys.executable, '-c', _HEAD + script, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process, seconds=SECONDS):
  """Exit code, output and errors of a process that ends soon."""
  begin = time.monotonic()
  out, err = process.communicate(timeout=10 * SECONDS)
  assert time.monotonic() - begin < seconds
  return process.returncode, out, err


def interrupt(process, after='up'):
  """Ctrl-C, as soon as it has printed a line."""
  assert process.stdout.readline() == f'{after}\n', process.stderr.read()
  process.send_signal(signal.SIGINT)


STUCK = {
  'a thread': 'threading.Thread(target=time.sleep, args=(300,)).start()',
  'an exit function': 'atexit.register(time.sleep, 300)',
  'a worker': 'multiprocessing.Process(target=time.sleep, args=(300,)).start()',
}


@pytest.mark.parametrize('stuck', STUCK)
def test_nothing_keeps_a_process_that_leaves(stuck):
  code, out, err = end(start(f'{STUCK[stuck]}\nprint("text", end="")\nends.leave(3, "why")'))
  assert (code, out, err) == (3, 'text', 'why\n')


def test_of_several_that_leave_the_first_counts():
  """The main thread leaves while another one does, which takes its time to part."""
  script = """
leaving = threading.Event()
ends.before_leaving(lambda code: (leaving.set(), time.sleep(1)))
threading.Thread(target=ends.leave, args=(4, 'first')).start()
leaving.wait()
ends.leave(5, 'second')
"""
  assert end(start(script)) == (4, '', 'first\n')


def test_an_abort_of_a_library_is_a_sentence():
  script = 'ends.leave_if_aborted(lambda: "error: lost")\nos.abort()'
  assert end(start(script)) == (70, '', 'error: lost\n')


def test_an_abort_on_the_way_out_changes_nothing():
  script = """
ends.leave_if_aborted(lambda: 'error: lost')
ends.before_leaving(lambda code: os.abort())
ends.leave(1, 'error: bad')
"""
  assert end(start(script)) == (1, '', 'error: bad\n')


def test_the_end_of_a_job_whose_error_another_process_tells_is_silent():
  """Also where that one is gone before this one has left by itself, and jax aborts."""
  script = 'ends.leave_if_aborted(lambda: "error: lost")\nends.expect(1)\nos.abort()'
  assert end(start(script)) == (1, '', '')


# ----- Ctrl-C

# Main threads get less time to unwind than those of users.
_UP = """
ends._SECONDS_TO_UNWIND = 1
ends.limit_interrupts()
"""
WAITS = {
  'a call of Python': 'time.sleep(300)',
  'a clause that waits': 'try:\n  time.sleep(300)\nfinally:\n  time.sleep(300)',
  # It neither looks for signals nor holds the lock of Python, like a compilation.
  'a call of C': 'import hashlib; hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)',
}


@pytest.mark.parametrize('wait', WAITS)
def test_ctrl_c_ends_a_program_within_seconds(wait):
  script = f"""{_UP}
def main():
  print('up', flush=True)
  exec({WAITS[wait]!r})
try:
  main()
except KeyboardInterrupt:
  ends.interrupted()
"""
  process = start(script)
  interrupt(process)
  code, _, err = end(process)
  assert code == 130
  assert err == f'{ends._BY_CTRL_C}\n'


def test_a_second_ctrl_c_ends_at_once_what_the_first_lets_save():
  """Also while the main thread is where no handler runs."""
  script = f"""{_UP}
signal.signal(signal.SIGINT, lambda *_: None)
print('up', flush=True)
{WAITS['a call of C']}
"""
  process = start(script)
  interrupt(process)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(3)
  process.send_signal(signal.SIGINT)
  assert end(process)[0] == 130


@pytest.mark.parametrize('program', PROGRAMS)
def test_ctrl_c_while_a_program_is_imported(program, tmp_path):
  (tmp_path / 'numpy.py').write_text('import time\nprint("up", flush=True)\ntime.sleep(300)\n')
  paths = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
  process = subprocess.Popen(
    [sys.executable, '-m', f'armd_jax.{program}'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=tiny_run.ROOT,
    env=os.environ | {'PYTHONPATH': paths},
  )
  interrupt(process)
  code, _, err = end(process)
  assert (code, err) == (130, f'{ends._BY_CTRL_C}\n')


def test_importing_the_package_changes_no_handler():
  script = 'import armd_jax\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler'
  assert end(start(script)) == (0, '', '')


def test_a_program_in_the_background_ignores_ctrl_c():
  """As shells start those."""
  script = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
ends.leave_on_interrupt()
ends.limit_interrupts()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.5)
print('still there')
"""
  assert end(start(script)) == (0, 'still there\n', '')


# ----- a program that runs another

_CHILD = 'trap "sleep 1; echo saved; exit 75" INT TERM; echo up; while :; do sleep 0.05; done'


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['ctrl-c', 'sigterm']
)
def test_a_command_saves_before_what_runs_it_ends(number, code):
  script = """
ends.limit_interrupts()
try:
  ends.run(['sh', '-c', sys.argv[1]])
except KeyboardInterrupt:
  ends.interrupted()
"""
  process = start(script, _CHILD)
  assert process.stdout.readline() == 'up\n'
  process.send_signal(number)
  assert end(process)[:2] == (code, 'saved\n')


def test_a_command_ends_with_a_second_ctrl_c():
  process = start(
    "ends.limit_interrupts()\nends.run(['sh', '-c', sys.argv[1]])",
    'trap "echo heard" INT; echo up; while :; do sleep 0.05; done',
  )
  interrupt(process)
  interrupt(process, 'heard')
  assert end(process)[0] == 130  # and nothing holds its output open


def test_the_code_of_a_command():
  assert ends.run(['sh', '-c', 'exit 7']) == 7


# ----- training

_DENIED = """
import os, runpy
make = os.mkdir

def mkdir(path, *args, **more):
  if '.part' in str(path):
    raise PermissionError(13, 'Permission denied', str(path))
  return make(path, *args, **more)

os.mkdir = mkdir
runpy.run_module('armd_jax.train', run_name='__main__', alter_sys=True)
"""


def test_a_folder_that_cannot_be_made_ends_training_within_seconds(tmp_path):
  """Threads of orbax wait five minutes for it."""
  flags = ['--config.train.steps=1', '--config.train.eval_windows=1']
  command = tiny_run.train(tiny_run.write_experiment(tmp_path), tmp_path / 'run', *flags)
  process = subprocess.Popen(
    [sys.executable, '-c', _DENIED, *command[3:]],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  line = next(line for line in process.stderr if line.startswith('error: '))
  assert 'cannot save in ' in line and '(Permission denied)' in line
  code, _, err = end(process)
  assert (code, err) == (1, '')
