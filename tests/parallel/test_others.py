"""Processes of a job meet before jax connects them, and hear of each other's end."""

import re
import socket
import threading
import time

import pytest
import tiny_run

from armd_jax.errors import UserError
from armd_jax.parallel import others


def meet(who, port, before=0.0):
  """What became of each process of `who`, pairs of number and size of the job: '', or a reason."""
  found = {}

  def hold(key, process, processes):
    time.sleep(before * key)
    try:
      others.Meeting(f'127.0.0.1:{port}', processes, process, f'n{key}').hold()
      found[key] = ''
    except UserError as error:
      found[key] = str(error)

  threads = [
    threading.Thread(target=hold, args=(key, *pair), daemon=True) for key, pair in enumerate(who)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  return [found.get(key) for key in range(len(who))]


@pytest.mark.parametrize('size', [1, 2, 5])
@pytest.mark.parametrize('before', [0, 0.3, -0.3])
def test_all_that_are_of_one_job_meet(size, before):
  """In whatever order they come, and again on the same port."""
  port = tiny_run.free_port()
  who = [(process, size) for process in range(size)]
  for _ in range(2):
    assert meet(who if before >= 0 else who[::-1], port, abs(before)) == [''] * size


@pytest.mark.parametrize(
  ('who', 'reason'),
  [
    (
      [(0, 3), (1, 3), (1, 3)],
      'two processes were started with --process_id=1, on n. and on n.; g',
    ),
    (
      [(0, 2), (1, 3)],
      'process 1 on n1 was started with --num_processes=3, process 0 on n0 with 2',
    ),
    ([(0, 3), (1, 2), (2, 3)], 'process 1 on n1 was started with --num_processes=2'),
    ([(0, 4), (1, 4), (2, 4), (2, 4)], '--process_id=2'),
  ],
)
@pytest.mark.parametrize('before', [0, 0.3])
def test_all_that_are_not_are_told(who, reason, before):
  found = meet(who, tiny_run.free_port(), before)
  assert len(set(found)) == 1 and found[0]
  assert re.search(reason, found[0])


def test_a_port_in_use_is_a_sentence():
  with socket.create_server(('', 0), reuse_port=True) as taken:
    port = taken.getsockname()[1]
    message = rf'process 0 on me cannot listen on port {port} \(Address already in use\); end'
    with pytest.raises(UserError, match=message):
      others.Meeting(f'127.0.0.1:{port}', 2, 0, 'me').hold()


def test_strangers_and_the_dead_are_passed_over():
  """One that speaks another language, one that says nothing, and a process that came and died."""
  port = tiny_run.free_port()
  found = {}
  first = others.Meeting(f'127.0.0.1:{port}', 2, 0, 'n0')
  assert first.missing() == [1]
  hold = threading.Thread(target=lambda: found.setdefault('done', first.hold()), daemon=True)
  hold.start()
  while True:  # until it listens
    assert hold.is_alive()
    try:
      socket.create_connection(('127.0.0.1', port)).close()
      break
    except ConnectionRefusedError:
      time.sleep(0.01)
  for words in (b'PRI * HTTP/2.0\r\n\r\n', b'[1]\n', b'{"process": 1}\n', b'\xff' * 10**5, b''):
    with socket.create_connection(('127.0.0.1', port)) as stranger:
      stranger.sendall(words)
  address = '127.0.0.1', port
  # It hears the first one until the second has died.
  with socket.create_connection(address), socket.create_connection(address) as died:
    died.sendall(b'{"process": 1, "processes": 2, "host": "n1"}\n')
  others.Meeting(f'127.0.0.1:{port}', 2, 1, 'n1').hold()
  hold.join(30)
  assert found == {'done': None} and first.missing() == []
