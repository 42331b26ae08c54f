"""Files are UTF-8 wherever a program runs, and no terminal is too poor for what it prints."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  path for room in ('armd_jax', 'launch', 'experiments') for path in (ROOT / room).rglob('*.py')
)
# They read tables that `bench.attention` writes by json.dumps: ASCII, the same in every encoding.
ASCII = {'armd_jax/attention/hopper_blocks.py', 'armd_jax/attention/tpu_blocks.py'}
# Modules whose `open` reads bytes unless told otherwise.
OF_BYTES = {'os', 'lzma', 'gzip', 'bz2'}


def without_encoding(code):
  """Lines of a module that open a file as text and leave the encoding to the system."""
  found = []
  for node in ast.walk(ast.parse(code)):
    if not isinstance(node, ast.Call) or any(k.arg == 'encoding' for k in node.keywords):
      continue
    is_method = isinstance(node.func, ast.Attribute)
    name = node.func.attr if is_method else getattr(node.func, 'id', '')
    if is_method and name in ('read_text', 'write_text'):
      if len(node.args) <= (name == 'write_text'):
        found.append(node.lineno)
    elif name == 'open' and not (is_method and getattr(node.func.value, 'id', '') in OF_BYTES):
      modes = node.args[not is_method :][:1] + [k.value for k in node.keywords if k.arg == 'mode']
      mode = modes[0] if modes else ast.Constant('r')
      # A mode that is a name is looked at where it is given.
      if isinstance(mode, ast.Constant) and 'b' not in mode.value:
        found.append(node.lineno)
  return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_as_utf8(path):
  lines = without_encoding(path.read_text('utf-8'))
  allowed = str(path.relative_to(ROOT)) in ASCII
  assert len(lines) == allowed, f'{path.relative_to(ROOT)}, lines {lines}: write the encoding'


def test_one_that_leaves_it_to_the_system_is_seen():
  bad = [
    "open('x')",
    "open('x', 'w')",
    'p.open()',
    "p.open('a')",
    'p.read_text()',
    "p.write_text('x')",
  ]
  good = [
    "open('x', 'rb')",
    "p.open(mode='wb')",
    "p.read_text('utf-8')",
    "p.write_text('x', 'utf-8')",
  ]
  good += ["p.open(encoding='utf-8')", 'os.open(p, 0)']
  assert [without_encoding(code) for code in bad] == [[1]] * len(bad)
  assert [without_encoding(code) for code in good] == [[]] * len(good)


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252', 'utf-8'])
def test_a_terminal_that_cannot_spell_a_text_shows_its_codes(encoding):
  code = (
    "from armd_jax import cli; cli.run(lambda _: print('na\\xefve 東京 \\ufffd'), cli.OnCluster)"
  )
  variables = os.environ | {'PYTHONIOENCODING': encoding, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, env=variables)
  assert done.returncode == 0, done.stderr
  expected = 'naïve 東京 \ufffd\n'.encode(encoding, 'backslashreplace')
  assert done.stdout.replace(b'\r\n', b'\n') == expected
