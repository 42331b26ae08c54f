"""How a program ends: errors of bad input, whose message is one sentence, and exit codes."""

import contextlib
import operator
import re
from collections.abc import Iterator

_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_LONGEST = 1000  # characters


class UserError(ValueError):
  """Something the user can fix: its text is one sentence naming the cause and the fix.

  Programs print it without a traceback and exit with code 1 (see `armd_jax.cli`). It may quote what
  a user wrote: line breaks and what else a terminal would obey are escaped, and what is very long
  loses its middle.

  Examples:
    >>> str(UserError('no file a\\nb; give another'))
    'no file a\\\\nb; give another'
  """

  def __init__(self, text: str):
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    if len(text) > _LONGEST:
      text = f'{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}'
    super().__init__(text)


class MetByAll(UserError):
  """One that all processes of a job meet alike, so that the first one alone prints it."""


USER_ERROR = 1  # exit code of a UserError

# Other exit codes; launchers start the job again after the first two.
STOPPED = 75  # stopped by SIGTERM or Ctrl-C, and saved (EX_TEMPFAIL)
CRASHED = 70  # an error of the program's own, another process lost, or a hung step (EX_SOFTWARE)
INTERRUPTED = 130  # stopped by Ctrl-C, where there was nothing to save


def is_whole(number: object) -> bool:
  """Whether an argument of a Python function is a whole number, of NumPy's types, too.

  Examples:
    >>> import numpy as np
    >>> [is_whole(number) for number in (3, 3.0, '3', True, np.int8(3), np.array([3]))]
    [True, False, False, False, True, False]
  """
  if isinstance(number, bool):
    return False
  try:
    operator.index(number)  # type: ignore[arg-type]
  except TypeError:  # arrays of NumPy have the method, whatever they hold
    return False
  return True


def quoted(value: object) -> str:
  """A value as an error quotes it: its `repr`, which Python refuses of the longest numbers.

  Examples:
    >>> quoted('a'), quoted(10**5000)
    ("'a'", 'a number of more than 4000 digits')
  """
  try:
    return repr(value)
  except ValueError:
    return 'a number of more than 4000 digits'


def check_seed(seed: int) -> None:
  """Refuses what is no seed: keys are made of 32 bits, and another number would repeat one's draws.

  Raises:
    UserError: naming the range.
  """
  if not is_whole(seed) or not 0 <= int(seed) < 2**32:
    raise UserError(f'seed is {quoted(seed)}; write a whole number from 0 to {2**32 - 1}')


class Panic(ValueError):
  """A library in Rust found itself in a state that it was not written for."""


@contextlib.contextmanager
def no_panics() -> Iterator[None]:
  """Raises `Panic` for a library's own, which is no Exception: nobody would expect it."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ == 'PanicException':  # of pyo3, a class for each library
      raise Panic(sentence(error)) from error
    raise


def sentence(error: BaseException) -> str:
  """The first line of a library's error message, short enough for a sentence of ours."""
  return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')[:200]
