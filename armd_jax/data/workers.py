"""What worker processes of the data code have in common."""

from __future__ import annotations

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
  """Ends this process as soon as the one that started it has ended, killed or not.

  Without it the workers of a process killed with -9 would wait for work for ever.
  """
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
