"""What a terminal shows while text is generated."""

import io
import re

import jax.numpy as jnp
import numpy as np
import tiny

from armd_jax import config as config_lib
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import live, race, requests
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.step import Generated

TEXT = np.frombuffer(b'Once upon a time there was one. ', np.uint8).astype(np.int32)[None]


def report(known_1xN, steps):
  generated = Generated(jnp.asarray(TEXT), jnp.array([32]), jnp.int32(steps), jnp.zeros(1))
  return generated, known_1xN


def test_streams_grow_on_lines_of_their_own_over_what_was_drawn(monkeypatch):
  now = iter([0.0, 10.0, 12.0])  # the first chunk compiles
  monkeypatch.setattr(live.time, 'perf_counter', lambda: next(now))
  out = io.StringIO()
  screen = live.Live(ByteTokenizer(), out)
  for step in (0, 4, 8):
    screen(*report(np.arange(32)[None] % 16 < step, step))
  assert screen.tokens_per_second() == 8 / 2
  empty, first, second = re.split(r'\x1b\[(?:1|3)F\x1b\[J', out.getvalue())
  assert empty == '0 tokens in 0 steps, 0.0 tokens/s\n'
  assert first == '    1| Once\n   17|  the\n8 tokens in 4 steps, 0.0 tokens/s\n'
  assert second == '    1| Once upo\n   17|  there w\n16 tokens in 8 steps, 4.0 tokens/s\n'
  screen.clear()
  assert out.getvalue().endswith('\x1b[3F\x1b[J')


def test_only_the_end_of_a_long_piece_is_shown_and_line_breaks_do_not_break_it():
  text = np.frombuffer(b'a long\nstory', np.uint8)
  assert live.pieces(ByteTokenizer(), text, np.ones(12, bool), 13) == ['    1|  story']


def test_slowly_means_every_step_and_a_pause(monkeypatch):
  pauses = []
  monkeypatch.setattr(live.time, 'sleep', pauses.append)
  screen = live.Live(ByteTokenizer(), io.StringIO(), slow=True)
  screen(*report(np.arange(32)[None] < 4, 1))
  assert screen.chunk == 1 and pauses == [0.1]
  assert live.Live(ByteTokenizer(), io.StringIO()).chunk == 8


class Terminal(io.StringIO):
  """One that a person looks at."""

  def isatty(self):
    return True


def test_a_race_shows_both_texts_to_their_ends(monkeypatch):
  config = config_lib.parse({'model': SIZES, 'order': {'max_shuffled': 0}}).model
  tokenizer = ByteTokenizer()
  decoder = requests.Decoder(*tiny.init(config, tokenizer.vocab_size), tokenizer, None)
  request = requests.continue_prompts(['ab'], 16, tokenizer)
  monkeypatch.setattr(race, '_SECONDS', 0.5)
  out = Terminal()
  told = race.run(decoder, request, (1, 2), Sampling(seed=1), out)
  found = re.fullmatch(r'S = 1 took (\d+) ms, S = 2 took (\d+) ms: (\d+\.\d) times as fast', told)
  first, second, faster = map(float, found.groups())
  assert (
    (first - 0.5) / (second + 0.5) - 0.1 < faster < (first + 0.5) / max(second - 0.5, 0.1) + 0.1
  )
  last = out.getvalue().rpartition('\x1b[J')[2]
  assert len(re.findall(r'S = [12] +\[#{30}\]    16 tokens, \d+ ms', last)) == 2
  assert race.run(decoder, request, (1, 2), Sampling(seed=1), io.StringIO()).startswith('S = 1')


SIZES = dict(length=16, num_layers=1, embed_dim=16, num_heads=2, dtype='float32', position_dim=8)
