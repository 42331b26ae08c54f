"""Launchers called in this process, where the process is not the point."""

import contextlib
import io
import os


def dry_run(launcher, *arguments):
  """What a launcher's module prints in place of running it."""
  printed = io.TextIOWrapper(io.BytesIO())  # which has the buffer of a standard output
  with contextlib.redirect_stdout(printed):
    assert launcher.main(['--dry-run', *arguments]) == 0
  printed.flush()
  return os.fsdecode(printed.buffer.getvalue())
