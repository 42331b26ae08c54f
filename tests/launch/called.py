"""Launchers called in this process, where the process is not the point."""

import contextlib
import io


def dry_run(launcher, *arguments):
  """What a launcher's module prints in place of running it."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    assert launcher.main(['--dry-run', *arguments]) == 0
  return printed.getvalue()
