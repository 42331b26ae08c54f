"""How a program ends: bad input, told to the user in one sentence, and exit codes."""


class UserError(ValueError):
  """Something the user can fix: its text is one sentence naming the cause and the fix.

  Programs print it without a traceback and exit with code 1 (see `armd_jax.cli`).
  """


class MetByAll(UserError):
  """One that all processes of a job meet alike, so that the first one alone tells it."""


USER_ERROR = 1  # exit code of a UserError

# Other exit codes; launchers start the job again after the first two.
STOPPED = 75  # told to stop by SIGTERM or Ctrl-C, and saved (EX_TEMPFAIL)
CRASHED = 70  # an error of the program's own, another process lost, or a hung step (EX_SOFTWARE)
INTERRUPTED = 130  # stopped by Ctrl-C, where there was nothing to save


def sentence(error: BaseException) -> str:
  """The first line of what an error of a library says, short enough for a sentence of ours."""
  return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')[:200]
