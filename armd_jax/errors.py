"""How a program ends: bad input, told to the user in one sentence, and exit codes."""


class UserError(ValueError):
  """Something the user can fix: its text is one sentence naming the cause and the fix.

  Programs print it without a traceback and exit with code 1 (see `armd_jax.cli`).
  """


# Exit codes beside 0 and the 1 of a UserError; launchers start the job again after both.
STOPPED = 75  # told to stop by SIGTERM, and saved (EX_TEMPFAIL)
CRASHED = 70  # one of several processes met an error of its own, or lost another (EX_SOFTWARE)
