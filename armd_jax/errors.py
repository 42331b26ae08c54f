"""Bad input, told to the user in one sentence."""


class UserError(ValueError):
  """Something the user can fix: its text is one sentence naming the cause and the fix.

  Programs print it without a traceback and exit with code 1 (see `armd_jax.cli`).
  """
