"""Flags of a program, as fields of a frozen dataclass, which is what the program's `main` takes.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
      workdir: str = flag('Where the run is kept.')
      streams: tuple[int, ...] = flag('Stride counts S.', (2, 4, 8), at_least=1)

The type of a field decides what its flag takes: str, int, float, bool, a tuple of str or int, or a
ConfigDict, which is an experiment file with overrides. `| None` allows None as a default. Nothing
is defined on import, so that one process can import all programs and call them with values.
"""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from armd_jax import config as config_lib
from armd_jax.config import RENAMED
from armd_jax.errors import UserError, sentence
from armd_jax.files import paths

HELP = ('--help', '-help', '-h', '-?')
_NO_FILE = 'names no experiment file; write the path of one, like experiments/quickstart.py'

CACHE = 'compilation_cache'  # of every program
_CACHE_HELP = (
  'Folder of compiled programs, from which a later start reads them; none: keep none. Left out: '
  '~/.cache/armd_jax/compiled, or what JAX_COMPILATION_CACHE_DIR says.'
)

Options = TypeVar('Options')


def flag(
  help_text: str,
  default: Any = dataclasses.MISSING,
  *,
  choices: Sequence[str] = (),
  at_least: int | None = None,
  at_most: int | None = None,
  repeated: bool = False,
  is_path: bool | str = False,
  writes: str = '',
  parse: Callable[[str], Any] | None = None,
) -> Any:
  """A field whose flag has the field's name.

  Args:
    help_text: a sentence for --help.
    default: left out: the flag is required.
    choices: all values that a string may have.
    at_least: the least number that is allowed, alone or in a tuple.
    at_most: the largest number that is allowed, alone.
    repeated: a flag of a tuple of texts is given once for each; else it holds them with commas.
    is_path: True for a place on a disk, 'or a bucket' for one there as well, 'NAME=FILE' for such
      a one behind a name: anything else is refused before the program begins.
    writes: of a file that the program writes its kind, of `paths.KINDS`: what is there is
      replaced if it is of that kind, and no other flag names it.
    parse: makes the value out of the text of the flag; it raises UserError for a wrong one.
  """
  told: dict[str, Any] = {
    'help': help_text,
    'choices': list(choices),
    'at_least': at_least,
    'parse': parse,
  }
  told |= {'at_most': at_most, 'repeated': repeated, 'is_path': is_path, 'writes': writes}
  return dataclasses.field(default=default, metadata=told)


def experiment(default: str | None = None) -> Any:
  """The field of --config=FILE, a ConfigDict, with overrides like --config.train.steps=9.

  Args:
    default: the file that is read if the flag is left out; None: the flag is required.
  """
  told = {'help': 'Experiment file.', 'file': default}
  return dataclasses.field(metadata=told)


def parse(
  options: type[Options], argv: Sequence[str], values: absl_flags.FlagValues | None = None
) -> Options:
  """The values that a command line gives; --help prints all flags and exits.

  Args:
    options: the dataclass.
    argv: the program's name, then its flags.
    values: where the flags are defined; None: in a place of their own.
  Raises:
    UserError: a flag is missing, unknown or wrong.
  """
  if set(HELP) & set(argv[1:]):
    print(describe(options))
    sys.exit()
  _check_flagfiles(argv)
  values = absl_flags.FlagValues() if values is None else values
  kinds = _kinds(options)
  try:
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
      _define(field, kinds[field.name], argv, values)
    absl_flags.DEFINE_string(CACHE, '', _CACHE_HELP, flag_values=values)
    rest = values(argv)
  except (
    absl_flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError,
  ) as error:  # fmt: skip
    if isinstance(error.__context__, UserError):  # of a parser, as which absl raises its own
      raise error.__context__ from None
    if isinstance(error, OSError):  # of an override, whose experiment file is not there
      (name,) = (name for name, kind in kinds.items() if kind is ConfigDict)
      raise UserError(f'--{name} {_NO_FILE}') from error
    # ml_collections raises Python's own errors for a config file or field that is not there.
    if isinstance(error, absl_flags.UnrecognizedFlagError):
      text = str(error).rstrip('.? ').replace('. Did', '; did')
      raise UserError(f'{text}{_fields_named(error.flagname, kinds)}; see --help') from error
    is_text = isinstance(error, UnicodeError)  # whose first argument is the encoding
    text = (
      str(error.args[0] if error.args and not is_text else error)
      .replace('\\n', ' ')
      .replace("\\'", "'")
    )
    text = ' '.join(text.split()).rstrip('.?')
    # Which absl raises with a pair of arguments.
    text = re.sub(r"\('Non-boolean argument to boolean flag', .*\)", 'write true or false', text)
    if isinstance(error, (AttributeError, KeyError)):
      text = text.strip('"\'').rstrip('.?')
      name, _, guess = text.replace("'", '').partition(' ')
      guess = f' ({guess}?)' if guess else ''
      hint = 'armd_jax/config.py lists all fields'
      if name in RENAMED:
        guess, hint = '', f'its name is {RENAMED[name]!r} now'
      raise UserError(f'the config has no field {name!r}{guess}; {hint}') from error
    raise UserError(f'{text}; see --help') from error
  if len(rest) > 1:
    raise UserError(f'{rest[1]!r} is no flag; flags look like --name=value')
  for field in dataclasses.fields(options):  # type: ignore[arg-type]
    name = field.name
    if values[name].value is None and _is_required(field):
      fix = '=experiments/quickstart.py' if kinds[name] is ConfigDict else '=...'
      about = field.metadata['help'].rstrip('.')
      raise UserError(f'--{name} is missing ({about}); write --{name}{fix}')
  given = {name: _read(options, name, kind, values[name].value) for name, kind in kinds.items()}
  fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]
  for name, field in fields.items():
    if (kind := field.metadata.get('writes')) and given[name]:
      others = {other: _places(fields[other], given[other]) for other in fields.keys() - {name}}
      paths.check_result(given[name], f'--{name}', kind, others)
  return options(**given)


def config_of(file: str, overrides: Mapping[str, Any]) -> config_lib.Config:
  """The config of an experiment file with overrides, as a program reads both.

  Raises:
    UserError: it has none, or with these it is no config.
  """
  given = [f'--config={file}', *(f'--config.{name}={value}' for name, value in overrides.items())]
  one = dataclasses.make_dataclass('One', [('config', ConfigDict, experiment())])
  return config_lib.parse(parse(one, ['', *given]).config)


def _check_flagfiles(argv: Sequence[str], seen: frozenset[pathlib.Path] = frozenset()) -> None:
  """Refuses a --flagfile, which absl reads, that would be read for ever; or one named in it."""
  for arg, after in zip(argv, [*argv[1:], ''], strict=True):
    name, equals, file = arg.partition('=')
    if name in ('-flagfile', '--flagfile'):
      place = paths.given((file if equals else after).strip(), '--flagfile')
      paths.check_file(place, '--flagfile')
      if place.is_file() and place not in seen:
        lines = place.read_bytes().decode(errors='replace').splitlines()
        _check_flagfiles([line.strip() for line in lines] or [''], seen | {place})


def describe(options: type) -> str:
  """What --help prints: the text of the program's module, and every flag."""
  lines = [(sys.modules[options.__module__].__doc__ or '').strip()]
  kinds, seen = _kinds(options), set()
  for group in options.__mro__:
    names = [n for n in vars(group).get('__annotations__', ()) if n in kinds and n not in seen]
    seen |= set(names)
    if names:
      title = 'Flags' if group is options else inspect.getdoc(group).splitlines()[0].rstrip('.')  # type: ignore[union-attr]
      lines += ['', f'{title}:']
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name in names:
      lines += _lines(fields[name], kinds[name])
  lines += ['', 'Of every program:', f'  --{CACHE}', *_wrapped(_CACHE_HELP)]
  return '\n'.join(lines)


def _kinds(options: type) -> dict[str, Any]:
  """The type of every field, without its None."""
  hints = typing.get_type_hints(options)
  return {f.name: _without_none(hints[f.name]) for f in dataclasses.fields(options)}


def _without_none(hint: Any) -> Any:
  some = [kind for kind in typing.get_args(hint) if kind is not type(None)]
  return some[0] if type(None) in typing.get_args(hint) else hint


def _define(
  field: dataclasses.Field, kind: Any, argv: Sequence[str], values: absl_flags.FlagValues
) -> None:
  told, name = field.metadata, field.name
  text, at_least = told['help'], told.get('at_least')  # type: str, Any
  default = None if field.default is dataclasses.MISSING else field.default
  here: dict[str, Any] = {'flag_values': values}
  if kind is ConfigDict:
    # ml_collections looks for overrides in the command line itself.
    file = told['file'] and paths.experiment(told['file'], f'--{name}')
    config_flags.DEFINE_config_file(name, file, text, sys_argv=list(argv), **here)
    parser = values[name].parser
    read = parser.parse
    parser.parse = lambda path: _run_experiment(  # type: ignore[method-assign, assignment]
      read, paths.experiment(path, f'--{name}')
    )
  elif told.get('repeated'):
    absl_flags.DEFINE_multi_string(name, default, text, **here)
  elif typing.get_origin(kind) is tuple:
    absl_flags.DEFINE_list(name, None if default is None else [*map(str, default)], text, **here)
    least = 1 if default else 0
    if int in typing.get_args(kind):
      message = f'must be whole numbers of at least {at_least}, like 2,4,8'
      fine = lambda texts: all(t.isdecimal() and int(t) >= at_least for t in texts)
    else:
      message, fine = 'must not be empty', all
    absl_flags.register_validator(
      name, lambda texts: texts is None or (len(texts) >= least and fine(texts)), message, **here
    )
  elif kind is bool:
    absl_flags.DEFINE_bool(name, default, text, **here)
  elif kind is int:
    most = told['at_most']
    absl_flags.DEFINE_integer(name, default, text, lower_bound=at_least, upper_bound=most, **here)
  elif kind is float:
    absl_flags.DEFINE_float(name, default, text, **here)
  elif told['choices']:
    absl_flags.DEFINE_enum(name, default, told['choices'], text, **here)
  else:
    absl_flags.DEFINE_string(name, default, text, **here)


def _is_required(field: dataclasses.Field) -> bool:
  return field.default is dataclasses.MISSING and field.metadata.get('file') is None


def _fields_named(flag: str, kinds: dict[str, Any]) -> str:
  """Fields of a config whose last name is that of an unknown flag, as a hint."""
  configs = [name for name, kind in kinds.items() if kind is ConfigDict]
  last = flag.rpartition('.')[2]
  if not configs:
    return ''
  found = [f'--{configs[0]}.{n}' for n, _ in config_lib.fields() if n.rpartition('.')[2] == last]
  return f'; write {" or ".join(found)}' if found else ''


def _run_experiment(read: Callable[[str], Any], path: str) -> Any:
  """The config of an experiment file; whatever that raises becomes a UserError."""
  try:
    return read(path)
  except FileNotFoundError:
    raise
  except SyntaxError as error:
    raise UserError(f'{path} is no Python ({error.msg}, line {error.lineno}); mend it') from error
  except (Exception, SystemExit) as raised:
    # ml_collections puts the traceback of what it has caught into an error of the same type.
    is_wrapped = isinstance(raised, TypeError | ValueError)
    cause = (raised.__context__ if is_wrapped else None) or raised
    if isinstance(cause, UserError):
      raise cause from None
    file, _, given = path.partition(':')
    if not pathlib.Path(file).is_file():
      raise
    if given and 'get_config() takes 0 positional arguments' in str(cause):
      raise UserError(f'{file} takes no options; leave out :{given}') from cause
    raise UserError(
      f'{path} cannot be run ({type(cause).__name__}: {sentence(cause)}); mend it'
    ) from cause


def _read(options: type, name: str, kind: Any, value: Any) -> Any:
  if kind is ConfigDict and not isinstance(value, ConfigDict):
    raise UserError(f'--{name} {_NO_FILE}')
  if value is None or kind is ConfigDict:
    return value
  (field,) = (field for field in dataclasses.fields(options) if field.name == name)
  check = paths.given if field.metadata.get('is_path') is True else paths.kept
  for path in _places(field, value):
    if path or _is_required(field):
      check(path, f'--{name}')
  if typing.get_origin(kind) is tuple:
    return tuple(map(typing.get_args(kind)[0], value))
  return field.metadata['parse'](value) if field.metadata['parse'] else value


def _places(field: dataclasses.Field, value: Any) -> list[str]:
  """The paths that a flag names."""
  if not field.metadata.get('is_path') or value is None:
    return []
  values = [value] if isinstance(value, str) else value
  if field.metadata['is_path'] == 'NAME=FILE':
    return [text.partition('=')[2] for text in values]
  return [*values]


def _lines(field: dataclasses.Field, kind: Any) -> Iterator[str]:
  """A flag as lines of --help."""
  told, name = field.metadata, field.name
  default = told.get('file', field.default)
  text = told['help']
  if told.get('repeated'):
    text += ' May be given several times.'
  if choices := told.get('choices'):
    text += f' One of {", ".join(choices)}.'
  if default is dataclasses.MISSING or (kind is ConfigDict and default is None):
    text += ' Required.'
  elif default is not False and default not in (None, '', ()):
    shown = ','.join(map(str, default)) if isinstance(default, tuple) else default
    text += f' Default: {shown}.'
  left = {bool: f'--[no]{name}', ConfigDict: f'--{name}=FILE'}.get(kind, f'--{name}')
  flags_and_texts = [(left, text)]
  if kind is ConfigDict:
    flags_and_texts.append((
      f'--{name}.FIELD=VALUE', 'Changes a field of it; armd_jax/config.py lists them.'
    ))  # fmt: skip
  for left, text in flags_and_texts:
    yield f'  {left}'
    yield from _wrapped(text)


def _wrapped(text: str) -> list[str]:
  return textwrap.wrap(text, 94, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
