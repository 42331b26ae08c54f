"""What a terminal shows while text is generated."""

import io
import re

import jax.numpy as jnp
import numpy as np

from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import live
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
