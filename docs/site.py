"""Hooks of the site: links to sources become links to the API reference; two pages come from the
repository's root."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def on_page_markdown(markdown, page, **_):
  """Pages link to files of the repository, which the site does not have."""
  if page.file.src_uri == 'index.md':
    markdown = (ROOT / 'README.md').read_text('utf-8').replace('](docs/', '](')
    markdown = re.sub(r'\]\(CONTRIBUTING\.md\)', '](contribute.md)', markdown)
    markdown = re.sub(r'(?<!!)\]\((armd_jax/|CITATION)', r'](../\1', markdown)
  if page.file.src_uri == 'contribute.md':
    markdown = (ROOT / 'CONTRIBUTING.md').read_text('utf-8')
  markdown = re.sub(r'\]\(\.\./(armd_jax/[\w/]+?)(?:/__init__)?\.py\)', _module, markdown)
  markdown = markdown.replace('](../README.md)', '](index.md)')
  return re.sub(r'\[([^\]]*)\]\((?:\.\./|records/)[^)]*\)', r'\1', markdown)


def _module(match):
  return f'][{match[1].replace("/", ".")}]'
