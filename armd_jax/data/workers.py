"""What worker processes of the data code have in common."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def shielded() -> Iterator[None]:
  """Processes started inside never see SIGTERM or SIGINT; this one does afterwards.

  Slurm sends SIGTERM to every process of a job, and a terminal SIGINT, but the process that waits
  for the workers' results still needs them.
  """
  resource_tracker.ensure_running()  # its start would end the block
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
  """Ends this process as soon as the one that started it has ended, killed or not.

  Without it the workers of a process killed with -9 would wait for work for ever.
  """
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
