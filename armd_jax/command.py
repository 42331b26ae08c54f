"""The program `armd`: `armd train ...` is `python -m armd_jax.train ...`, and so on.

What --help prints is kept in files beside this module, because importing a program takes seconds
and reading its help must not; `make help` writes them, and a test compares them with the flags.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import pathlib
import re
import runpy
import sys

from armd_jax.errors import USER_ERROR
from armd_jax.parallel import ends

HELP = ('--help', '-help', '-h', '-?', '--helpfull', '--helpshort')
FOLDER = pathlib.Path(__file__).with_name('help')

# In the order in which a user meets them; others come behind.
_FIRST = (
  'quickstart', 'train', 'evaluate', 'sample', 'report', 'export', 'prepare', 'judge', 'convert',
  'sweep', 'reproduce', 'aot',
)  # fmt: skip

_COMPLETION = """\
_armd() {
  local IFS=$'\\n'
  COMPREPLY=($(armd --complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
  if [ ${#COMPREPLY[@]} -eq 1 ] && [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _armd armd
"""


def programs() -> dict[str, str]:
  """Names of modules by names of subcommands."""
  found = {}
  for path in sorted(FOLDER.glob('*.txt')):
    short = path.stem.removeprefix('armd_jax.').removesuffix('.__main__').removeprefix('data.')
    found[short] = path.stem
  return {name: found[name] for name in sorted(found, key=_rank)}


def help_of(module: str) -> str | None:
  """What --help of a module prints; None if it is no program."""
  for name in (module, f'{module}.__main__'):
    if (path := FOLDER / f'{name}.txt').is_file():
      return path.read_text('utf-8')
  return None


def leave_with_help(words: list[str]) -> None:
  """Prints the help and ends, where `python WORDS` starts a program of ours to ask for it."""
  at = words.index('-m') + 1
  text = help_of(words[at]) if set(HELP) & set(words[at + 1 :]) else None
  if text is not None:
    _print(text)
    raise SystemExit(0)


def overview() -> str:
  """What `armd --help` prints."""
  lines = ['Trains, measures and runs ARMD language models.', '', 'Programs:']
  for name, module in programs().items():
    if '.' not in name:
      first = (help_of(module) or '').splitlines()[0]
      lines.append(f'  armd {name:11} {re.sub(r":?( `.*|:)$", "", first).rstrip(".")}')
  lines += [
    '',
    'armd PROGRAM --help lists its flags, and armd --version prints the version. More programs: '
    + ', '.join(name for name in programs() if '.' in name and name.count('.') == 1)
    + '.',
    'Tab completion: eval "$(armd --completion)" in ~/.bashrc; for zsh, put',
    'autoload -U bashcompinit && bashcompinit before it.',
    '',
    'Example:',
    '  armd train --config=experiments/quickstart.py --workdir=work/mine',
  ]
  return '\n'.join(lines) + '\n'


def complete(line: str) -> list[str]:
  """What may complete the last word of a command line."""
  *before, word = line.split(' ')
  before = [*filter(None, before)]
  if len(before) < 2:
    return [name for name in programs() if before and name.startswith(word)]
  # A shell that cuts words at = wants what comes behind.
  if '=' in word or before[1] not in programs():
    return []
  text = help_of(programs()[before[1]]) or ''
  flags = re.findall(r'^  (--[^\s]+)$', text, re.M)
  names = []
  for flag in flags:
    names += [f'--{flag[6:]}', f'--no{flag[6:]}'] if flag.startswith('--[no]') else [flag]
  names = [name.split('=')[0] + ('=' if '=' in name else '') for name in names]
  names = [name.removesuffix('FIELD=') for name in names]
  return sorted({name for name in names if name.startswith(word)})


def main() -> None:
  """Runs the program that the first word names."""
  ends.leave_on_interrupt()
  words = sys.argv[1:]
  if words[:1] == ['help']:  # armd help train
    words = [*words[1:], '--help']
  if not words or words[0] in HELP:
    _print(overview())
    return
  if words[0] == '--version':
    _print(f'armd_jax {importlib.metadata.version("armd_jax")}\n')
    return
  if words[0] == '--completion':
    _print(_COMPLETION)
    return
  if words[0] == '--complete':
    _print('\n'.join(complete(' '.join(words[1:]))) + '\n')
    return
  known = programs()
  if words[0] not in known:
    close = [name for name in known if name.rpartition('.')[0] == words[0]]
    close = close or difflib.get_close_matches(words[0], known, n=1)
    hint = f'write {" or ".join(close)}' if close else 'armd --help lists them'
    ends.leave(USER_ERROR, f'error: there is no program {words[0]!r}; {hint}')
  module = known[words[0]]
  if set(HELP) & set(words[1:]):
    _print(help_of(module) or '')
    return
  sys.argv = [f'armd {words[0]}', *words[1:]]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def write_help() -> None:
  """Writes what --help of all programs prints."""
  from armd_jax import flags

  package = pathlib.Path(__file__).parent
  FOLDER.mkdir(exist_ok=True)
  for path in FOLDER.glob('*.txt'):
    path.unlink()
  for path in sorted(package.rglob('*.py')):
    if path.read_text('utf-8').endswith('  cli.run(main, Options)\n'):
      name = '.'.join(path.relative_to(package.parent).with_suffix('').parts)
      text = flags.describe(importlib.import_module(name).Options)
      (FOLDER / f'{name}.txt').write_text(text + '\n', 'utf-8')


def _print(text: str) -> None:
  try:
    print(text, end='', flush=True)
  except OSError as error:
    ends.leave(USER_ERROR, f'error: this cannot be printed ({error.strerror}); send it elsewhere')


def _rank(name: str) -> tuple[int, str]:
  return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
