"""What a launcher prints with --dry-run does, given to a shell, what was asked for: every program
gets exactly the words that were given, whatever they hold.
"""

import contextlib
import io
import os
import pathlib
import subprocess
import tempfile

import common
import jobset
import local
import pytest
import skypilot
import slurm
import tpu_vm
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from armd_jax.errors import UserError

HARD = [
  '', "it's", '"', '$(touch harm)', '`touch harm`', '${HOME}', '$HOME', '$$', '$', '$$(HOME)', '!!',
  'END', "'\nEND\ntouch harm\n'", 'END\nEND_\ntouch harm', '\nEND\n', '\n#SBATCH --hold\n', '\\',
  '\\\n', 'a b', '*', '~', '--', '-n', '; touch harm', '| touch harm', '&', '# no', '%x', '{a,b}',
  'A=b', '\t', '\r', '\x07\x1b', 'é', '\u2028', '😀', '$(JOB_COMPLETION_INDEX)', ': [', '- x',
  '--workdir=/runs/a b/$(date)',
]  # fmt: skip
PIECES = st.one_of(
  st.sampled_from(HARD), st.text(st.characters(exclude_characters='\0'), max_size=8)
)
UTF8 = st.lists(st.lists(PIECES, max_size=4).map(''.join), max_size=6)
# As a file's name may be that was never text.
WORDS = st.one_of(UTF8, st.lists(st.sampled_from([*map(os.fsdecode, [b'\xff', b'a\x80']), *HARD])))
SIZES = ['--processes=1', '--devices-per-process=1', '--dry-run']
EXPECTED = ['--num_processes=1', '--devices_per_process=1']


def encodable(words):
  """Without surrogates that stand for no byte, which no program's arguments hold."""
  with contextlib.suppress(UnicodeEncodeError):
    return bool(os.fsencode(''.join(words))) or True
  return False


def printed(launcher, *flags, words):
  """Bytes that a launcher prints."""
  raw = io.BytesIO()
  # An encoding that holds none of the words, as of a terminal without a locale.
  with contextlib.redirect_stdout(io.TextIOWrapper(raw, 'ascii')) as out:
    assert launcher.main([*SIZES, *flags, '--', 'program', *words]) == 0
    out.flush()
  return raw.getvalue()


def pasted(text, programs, shell='bash'):
  """Runs it in a folder of its own, with stand-ins for programs; returns what `program` was given
  and what the last stand-in that keeps its input has read."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    home = folder / 'home' / 'armd_jax'
    home.mkdir(parents=True)
    keep = f'printf \'%s\\0\' "$@" > {folder}/seen'
    for program, body in {'program': keep, **programs}.items():
      (folder / program).write_text(f'#!/bin/bash\n{body.format(folder=folder)}\n')
      (folder / program).chmod(0o755)
    variables = {'PATH': f'{folder}:/usr/bin:/bin', 'SLURM_JOB_ID': '1', 'HOME': str(folder)}
    script = folder / 'pasted'
    script.write_bytes(text)
    done = subprocess.run([shell, script], cwd=home, env=variables, capture_output=True)
    assert not list(folder.rglob('harm')), done
    assert done.returncode == 0, done
    found = [folder / 'seen', folder / 'input']
    seen, given_ = (path.read_bytes() if path.exists() else None for path in found)
    return seen and [os.fsdecode(word) for word in seen.split(b'\0')[:-1]], given_


bounded = settings(max_examples=40, deadline=None, derandomize=True)
all_hard = example(HARD)


@bounded
@given(WORDS.filter(encodable))
@all_hard
def test_slurm(words):
  """sbatch runs what it reads, and srun what it is given."""
  programs = {'sbatch': 'bash', 'srun': 'while [ "${{1#--}}" != "$1" ]; do shift; done; "$@"'}
  words_seen, _ = pasted(printed(slurm, words=words), programs)
  assert words_seen == [*words, '--cluster=slurm', *EXPECTED]


@bounded
@given(WORDS.filter(encodable))
@all_hard
@pytest.mark.parametrize('shell', ['bash', 'sh'])
def test_local(shell, words):
  words_seen, _ = pasted(printed(local, '--port=7', words=words), {}, shell)
  assert words_seen == [*words, '--coordinator=127.0.0.1:7', '--process_id=0', *EXPECTED]


@bounded
@given(WORDS.filter(encodable))
@all_hard
def test_tpu_vm(words):
  """gcloud hands its --command to a shell on the worker, in a home folder."""
  remote = (
    'cd {folder}/home && for a; do case $a in --command=*) bash -c "${{a#--command=}}";; esac; done'
  )
  text = printed(tpu_vm, '--zone=z', words=words)
  words_seen, _ = pasted(text, {'gcloud': remote})
  assert words_seen == [*words, '--cluster=tpu', *EXPECTED]


def filled_in(word, variables):
  """What Kubernetes makes of a word of a container's command (its `expansion.Expand`)."""
  result, i = '', 0
  while i < len(word):
    if word[i] != '$' or i + 1 == len(word):
      result, i = result + word[i], i + 1
    elif word[i + 1] == '$':
      result, i = result + '$', i + 2
    elif word[i + 1] == '(' and ')' in word[i:]:
      end = word.index(')', i)
      name = word[i + 2 : end]
      result, i = result + variables.get(name, f'$({name})'), end + 1
    else:
      result, i = result + word[i : i + 2], i + 2
  return result


@bounded
@given(UTF8.filter(encodable))
@all_hard
def test_jobset(words):
  text = printed(jobset, '--image=IMAGE', '--platform=cpu', words=words)
  _, applied = pasted(text, {'kubectl': 'cat > {folder}/input'})
  job = yaml.safe_load(applied)['spec']['replicatedJobs'][0]['template']['spec']
  (container,) = job['template']['spec']['containers']
  variables = {'JOB_COMPLETION_INDEX': '0', 'HOME': '/root', 'date': 'today'}
  command = [filled_in(word, variables) for word in container['command']]
  coordinator = '--coordinator=armd-slice-job-0-0.armd:8476'
  assert command == ['program', *words, coordinator, '--process_id=0', *EXPECTED]


@bounded
@given(UTF8.filter(encodable))
@all_hard
def test_skypilot(words):
  """sky reads the file that was written, and a node's shell runs its lines."""
  text = printed(skypilot, '--platform=cpu', words=words)
  _, task = pasted(text, {'sky': 'for file; do :; done; cat "$file" > {folder}/input'})
  lines = 'SKYPILOT_NODE_RANK=0 SKYPILOT_NODE_IPS=10.0.0.1\n' + yaml.safe_load(task)['run']
  words_seen, _ = pasted(os.fsencode(lines), {})
  assert words_seen == [*words, '--coordinator=10.0.0.1:8476', '--process_id=0', *EXPECTED]


@bounded
@given(st.lists(PIECES).map(''.join))
def test_here_document(text):
  """Whatever line the text may hold; none of it ends the document early."""
  if '\0' not in text and encodable(text):
    script = common.here_document('cat', f'{text}\n')
    done = subprocess.run(['bash'], input=os.fsencode(f'{script}\necho after'), capture_output=True)
    assert done.stdout == os.fsencode(f'{text}\nafter\n') and not done.stderr


@pytest.mark.parametrize(
  ('launcher', 'flags', 'words', 'message'),
  [
    (slurm, ['--partition=a\n#SBATCH --exclusive'], ['x'], 'sbatch takes no'),
    (slurm, ['--time=\x1b'], ['x'], 'sbatch takes no'),
    (slurm, ['--sbatch=account'], ['x'], "sbatch takes no 'account'"),
    (jobset, ['--image=I', '--platform=cpu'], ['x', os.fsdecode(b'\xff')], 'no UTF-8'),
    (jobset, [f'--image={os.fsdecode(bytes([255]))}', '--platform=cpu'], ['x'], 'no UTF-8'),
    (local, [], ['A=b', 'x'], "starts with 'A=b', which no shell takes for a program"),
    (tpu_vm, ['--zone=z'], ['-x'], "starts with '-x'"),
    (slurm, [], [''], "starts with ''"),
    (local, ['--port=65536'], ['x'], '--port is 65536; write one below 65536'),
  ],
)
def test_what_no_line_can_hold_is_a_sentence(launcher, flags, words, message):
  with pytest.raises(UserError, match=message.replace('(', r'\(')) as refused:
    launcher.main([*SIZES, *flags, '--', *words])
  str(refused.value).encode()


def test_options_of_sbatch_are_quoted():
  text = printed(slurm, '--sbatch=--comment=a b', words=[]).decode()
  assert "#SBATCH '--comment=a b'\n" in text and '\n#SBATCH --job-name=armd\n' in text
