"""What the trained systems write: all of them on one front, and texts to read."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from armd_jax import families
from armd_jax.bench import front as front_lib
from armd_jax.config import DataConfig
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.decode.requests import Decoder, continue_prompts
from armd_jax.decode.sampling import Sampling
from armd_jax.evaluation import judging, quality
from armd_jax.families import asked
from armd_jax.hardware import machines
from armd_jax.reproduce import work
from armd_jax.reproduce.pieces import Piece

REPEATS, SAMPLES, BATCH_SIZES, GAPS = 5, 32, (1, 8), (8, 32)
# Likely tokens, which read best.
TEMPERATURE, TOP_P = 0.7, 0.95


@functools.lru_cache(maxsize=1)
def _judge(path: str) -> quality.Judge | None:
  return judging.open_judge(path) if path else None


def front(
  piece: Piece, folders: Mapping[str, pathlib.Path], data: DataConfig, judge: str
) -> dict[str, Any]:
  """All systems by all their ways to generate.

  Args:
    piece: with S of orders as its streams, and T of samplers as its steps.
    folders: runs, by system.
    data: where the text is.
    judge: path, or '': no text is judged.
  Returns:
    machine, judge (its name, or None), and ways: rows of `bench.front.measure`.
  """
  found: list[front_lib.Way] = []
  for system, folder in folders.items():
    config, decoder = _opened(folder)
    found += front_lib.ways(system, decoder, piece.streams, piece.steps)
  windows_WxN = work.spread(work.corpus_of(data, config.model.length).held_out_WxN, piece.windows)
  opened = _judge(judge)
  rows = front_lib.measure(
    found, windows_WxN, batch_sizes=BATCH_SIZES, repeats=REPEATS, warm_up=1, gap_sizes=GAPS,
    samples=SAMPLES, judge=opened,
  )  # fmt: skip
  return {'machine': machines.machine(), 'judge': opened and opened.name, 'ways': rows}


def texts(piece: Piece, folder: pathlib.Path, data: DataConfig, judge: str) -> dict[str, Any]:
  """The same prompts, gone on with at every S.

  Args:
    piece: with S as its streams; it has as many prompts as windows, the first quarter of each.
    folder, data, judge: as of `front`.
  Returns:
    judge, and rows: by S texts, junctions (characters before each, by text), entropy_nats, and,
    None without a judge, perplexity, and perplexity near junctions and elsewhere.
  """
  config, decoder = _opened(folder)
  tokenizer, slots = decoder.tokenizer, config.model.num_slots
  windows_WxN = work.spread(work.corpus_of(data, config.model.length).held_out_WxN, piece.windows)
  prompts = [tokenizer.decode(ids_N[: slots // 4]) for ids_N in windows_WxN]
  request = continue_prompts(prompts, slots, tokenizer)
  generate, opened, rows = families.of(config.model).generate, _judge(judge), []
  for streams in piece.streams:
    sampling = Sampling(temperature=TEMPERATURE, top_p=TOP_P)
    written, made = generate(decoder, request, sampling, streams=streams)
    junctions = asked.junctions_of(request, streams, made, tokenizer)
    verdict = opened and quality.judge_texts(opened, written, junctions)
    at = verdict and verdict.junctions
    ids = [np.asarray(tokenizer.encode(text)) for text in written]
    rows.append(
      {
        'streams': streams,
        'texts': written,
        'junctions': junctions,
        'entropy_nats': quality.statistics(ids).entropy_nats,
        'perplexity': verdict and verdict.corpus_perplexity,
        'near': at and at.perplexity,
        'elsewhere': at and at.elsewhere,
      }
    )
  return {'judge': opened and opened.name, 'rows': rows}


def _opened(folder):
  """The newest checkpoint of a run, ready to generate."""
  config, mesh, params = work.restored(folder, None)
  tokenizer = get_tokenizer(config.data.tokenizer)
  model = families.build(config.model, tokenizer.vocab_size)
  return config, Decoder(model, params, tokenizer, mesh)
