"""Hooks of the site: links to sources become links to the API reference, whose pages list the
modules of a room; two pages come from the repository's root."""

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
  return re.sub(r'\[([^\]]*)\]\((?:\.\./|records/)[^)]*\)', r'\1', markdown)


def _module(match):
  return f'][{match[1].replace("/", ".")}]'


def _room(match):
  """The reference of a room and of every module in it; an empty `__init__.py` is left out."""
  files = sorted((ROOT / 'armd_jax' / match[1]).glob('*.py'))
  names = [f'armd_jax.{match[1]}.{file.stem}' for file in files if file.stat().st_size]
  return '\n\n'.join(f'::: {name.removesuffix(".__init__")}' for name in names)
