"""A report that cannot be written, and pieces that failed, are named in a sentence."""

import pathlib
import runpy

import pytest

from armd_jax.errors import UserError
from armd_jax.reproduce import __main__ as program
from armd_jax.reproduce import page


def test_a_page_that_cannot_be_written(tmp_path, monkeypatch):
  monkeypatch.setattr(page, '_rounded', lambda numbers: numbers)
  monkeypatch.setattr(page, 'Results', lambda numbers: None)
  monkeypatch.setattr(page.pictures, 'draw', lambda *_: [])
  monkeypatch.setattr(page, 'text', lambda *_: 'a page')
  (tmp_path / 'reproduction.md').mkdir()
  message = r'cannot write .*reproduction.md \(Is a directory\); give another --out'
  with pytest.raises(UserError, match=message):
    page.write({}, tmp_path)


def test_pieces_that_failed_are_named_after_the_page_is_written(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr(program.run, 'run', lambda *_: ['core.ar.0', 'cost'])
  monkeypatch.setattr(program.page, 'numbers', lambda *_: {'pieces': {}})
  monkeypatch.setattr(program.page, 'write', lambda *_: written.append(1))
  text = tmp_path / 'a.txt'
  text.write_text('\n\n'.join(f'the document of number {number} ' * 40 for number in range(90)))
  options = program.Options(
    config=experiment(), workdir=str(tmp_path / 'work'), text=str(text), out=str(tmp_path)
  )
  with pytest.raises(UserError, match=r'2 pieces failed: core\.ar\.0, cost; see .*logs, and give'):
    program.main(options)
  assert written


def experiment():
  path = pathlib.Path(__file__).parents[2] / 'experiments/miniature.py'
  return runpy.run_path(str(path))['get_config']()
