"""One program at a time; a lock ends with its process, however that ends."""

import os
import signal
import subprocess
import sys
import threading

import forbidden
import pytest

from armd_jax.errors import UserError
from armd_jax.files import lock

HOLD = """
import pathlib, sys
from armd_jax.files import lock
with lock.held(pathlib.Path(sys.argv[1]), 'it'):
  print('held', flush=True)
  sys.stdin.read()
"""
COUNT = """
import pathlib, sys, time
from armd_jax.errors import UserError
from armd_jax.files import lock
folder = pathlib.Path(sys.argv[1])
done = 0
while done < 20:
  try:
    with lock.held(folder / lock.FOLDER_LOCK, 'it'):
      number = int((folder / 'number').read_text())
      (folder / 'number').write_text(str(number + 1))
      done += 1
  except UserError:
    time.sleep(0.001)
"""


def start(script, path):
  """A process; one that reads to the end of its input ends with the `with` block around it."""
  return subprocess.Popen(
    [sys.executable, '-c', script, path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


def test_the_second_is_told_who_holds_it(tmp_path):
  path = lock.beside(tmp_path / 'out.json')
  with start(HOLD, path) as holder:
    assert holder.stdout.readline() == 'held\n'
    message = rf'^--out x is in use by .* \(process {holder.pid} on {os.uname().nodename}\); wait'
    with pytest.raises(UserError, match=message), lock.held(path, '--out x'):
      pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
  assert path.exists()  # nobody could remove it, and nobody has to
  with lock.held(path, '--out x'):
    pass
  assert list(tmp_path.iterdir()) == []


def test_a_thread_of_the_same_process_is_another_holder(tmp_path):
  path, found = tmp_path / 'new' / lock.FOLDER_LOCK, []

  def second():
    try:
      with lock.held(path, 'it'):
        found.append('held')
    except UserError:
      found.append('refused')

  with lock.held(path, 'it'):
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
  second()
  assert found == ['refused', 'held']


def test_it_ends_with_an_error(tmp_path):
  path = tmp_path / lock.FOLDER_LOCK
  for _ in range(2):
    with pytest.raises(ZeroDivisionError), lock.held(path, 'it'):
      print(1 / 0)


def test_no_two_are_ever_inside(tmp_path):
  (tmp_path / 'number').write_text('0')
  processes = [start(COUNT, tmp_path) for _ in range(3)]
  assert [process.wait() for process in processes] == [0] * 3
  assert (tmp_path / 'number').read_text() == '60'


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(UserError, match=r'^cannot write to .*file/x \(Not a directory\); make it'),
    lock.held(tmp_path / 'file' / 'x' / lock.FOLDER_LOCK, 'it'),
  ):
    pass


def test_what_is_no_lock_of_ours_stays_as_it_is(tmp_path):
  path, theirs = tmp_path / 'new' / '.out.lock', tmp_path / 'theirs'
  path.parent.mkdir()
  theirs.write_text('dear diary')
  os.mkfifo(tmp_path / 'fifo')
  puts = (
    lambda: path.symlink_to(theirs),
    lambda: path.symlink_to(tmp_path / 'none'),
    lambda: path.hardlink_to(theirs),
    lambda: path.hardlink_to(tmp_path / 'fifo'),
    lambda: path.write_text('{"process": 3}'),
    lambda: path.mkdir(),
  )
  for put in puts:
    put()
    before = path.lstat()
    message = r'lock is in the place of a lock, .*; move it away, or'
    with pytest.raises(UserError, match=message), lock.held(path, '--out x'):
      pass
    assert path.lstat().st_ino == before.st_ino and path.lstat().st_size == before.st_size
    assert theirs.read_text() == 'dear diary' and not (tmp_path / 'none').exists()
    path.rmdir() if path.is_dir() else path.unlink()
  path.write_text('')  # of one that was killed as it took it
  with lock.held(path, '--out x'):
    pass


def test_a_folder_that_nothing_was_put_into_is_gone_again(tmp_path):
  path = tmp_path / 'a' / 'b' / lock.FOLDER_LOCK
  with lock.held(path, 'it'):
    assert path.exists()
  assert list(tmp_path.iterdir()) == []
  with lock.held(path, 'it'):
    (tmp_path / 'a' / 'kept').write_text('')
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['kept']


def test_a_place_that_may_not_be_looked_into_is_a_sentence(tmp_path):
  closed = tmp_path / 'alice'
  closed.mkdir()
  code = f"""
import pathlib
from armd_jax.errors import UserError
from armd_jax.files import lock
try:
  with lock.held(pathlib.Path({str(closed / 'run' / lock.FOLDER_LOCK)!r}), '--workdir'):
    pass
except UserError as error:
  print(error)
"""
  with forbidden.Closed(closed):
    done = forbidden.python(code)
  assert done.stdout.startswith(f'cannot write to {closed}/run (Permission denied); '), done.stderr
