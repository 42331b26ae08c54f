"""docs/launch.md shows what the launchers print."""

import re
import shlex
import subprocess
import sys

import pytest
import tiny_run

TEXT = (tiny_run.ROOT / 'docs' / 'launch.md').read_text()
BLOCKS = re.findall(r'^```\n\$ python (.*?[^\\])\n(.*?)^```$', TEXT, re.M | re.S)


def test_every_launcher_is_shown():
  shown = {block[0].split()[0] for block in BLOCKS}
  assert shown == {
    f'launch/{name}.py' for name in ('local', 'slurm', 'jobset', 'tpu_vm', 'skypilot')
  }


@pytest.mark.parametrize(('command', 'output'), BLOCKS, ids=[b[0].split()[0] for b in BLOCKS])
def test_dry_run_as_shown(command, output):
  words = shlex.split(command.replace('\\\n', ' '))
  done = subprocess.run(
    [sys.executable, *words], cwd=tiny_run.ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.replace(str(tiny_run.ROOT), '$HOME/armd_jax') == output
