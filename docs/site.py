"""Hooks of the site: links to sources become links to the API reference, whose pages list the
modules of a room; two pages come from the repository's root."""

import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def on_page_markdown(markdown, page, **_):
  """Pages link to files of the repository, which the site does not have."""
  if page.file.src_uri == 'index.md':
    markdown = (ROOT / 'README.md').read_text('utf-8').replace('](docs/', '](')
    markdown = re.sub(r'^\[!\[CI\].*\n', '', markdown, flags=re.MULTILINE)  # a link within GitHub
    markdown = re.sub(r'\]\(CONTRIBUTING\.md\)', '](contribute.md)', markdown)
    markdown = re.sub(r'(?<!!)\]\((armd_jax/|CITATION|examples/)', r'](../\1', markdown)
  if page.file.src_uri == 'contribute.md':
    markdown = (ROOT / 'CONTRIBUTING.md').read_text('utf-8').replace('](docs/', '](')
  markdown = re.sub(r'^::: armd_jax\.(\w+)\.\*$', _room, markdown, flags=re.MULTILINE)
  markdown = re.sub(r'\]\(\.\./(armd_jax/[\w/]+?)(?:/__init__)?\.py\)', _module, markdown)
  markdown = markdown.replace('](../README.md', '](index.md')
  elsewhere = r'(?:\.\./|records/(?!device_h200/report\.md))[^)]*'
  return re.sub(rf'\[([^\]]*)\]\({elsewhere}\)', r'\1', markdown)


def _module(match):
  """A reference to a module that the API reference has; other links stay, and lose their target."""
  name = match[1].replace('/', '.')
  room = f'{name.rpartition(".")[0]}.*'
  return f'][{name}]' if {name, room} & _referenced() else match[0]


@functools.cache
def _referenced():
  """Modules, and rooms as `armd_jax.ROOM.*`, that pages of the API reference are of."""
  pages = [page.read_text('utf-8') for page in (ROOT / 'docs' / 'api').glob('*.md')]
  return {name for page in pages for name in re.findall(r'^::: (\S+)$', page, re.MULTILINE)}


def _room(match):
  """The reference of a room and of every module in it; an empty `__init__.py` is left out."""
  files = sorted((ROOT / 'armd_jax' / match[1]).glob('*.py'))
  names = [f'armd_jax.{match[1]}.{file.stem}' for file in files if file.stat().st_size]
  return '\n\n'.join(f'::: {name.removesuffix(".__init__")}' for name in names)
