"""Starts a run from other weights: an open model's, or an AR run's as ARMD.

  armd convert --hf=FOLDER --workdir=DIR
  armd convert --warm_start=AR_RUN --workdir=DIR

FOLDER holds a Llama, SmolLM2, Mistral, Qwen2.5, Qwen3 or GPT-2: config.json, model.safetensors (or
its shards) and tokenizer.json, as Hugging Face keeps them, or one file of GGUF. DIR then holds a
run at step 0, which `evaluate` and `sample` read, and from which another run can start:

  armd train --config=experiments/adapt.py:run=DIR --workdir=NEW

A warm start predicts at step 0 what the AR run predicts.
"""

from __future__ import annotations

import dataclasses

from armd_jax import cli
from armd_jax.artifacts import starts
from armd_jax.config import DataConfig
from armd_jax.errors import UserError
from armd_jax.files import paths
from armd_jax.flags import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  workdir: str = flag('Where the new run goes.', is_path=True)
  hf: str | None = flag(
    "Folder of an open model, as Hugging Face keeps it, or GGUF's file.", None, is_path=True
  )
  source: str = flag('With --hf: config.data.source.', DataConfig.source)
  tokenizer: str = flag("With --hf: its tokenizer, if it is not the folder's own.", '')
  length: int = flag('With --hf: tokens of a text; 0: up to 1024.', 0, at_least=0)
  warm_start: str | None = flag('An AR run, to go on from as ARMD.', None, is_path=True)
  two_stream_layers: int = flag(
    'With --warm_start: layers with a content stream; -1: half of them.', -1
  )


def main(options: Options) -> None:
  if options.warm_start is not None and options.hf is None:
    start = starts.from_ar(options.warm_start, options.two_stream_layers)
  elif options.hf is not None and options.warm_start is None:
    start = starts.from_hugging_face(options.hf, options.source, options.tokenizer, options.length)
  else:
    raise UserError('write either --hf=FOLDER or --warm_start=AR_RUN')
  starts.write(start, paths.given(options.workdir, '--workdir'))
  print(f'{options.workdir} holds a run of family {start.config.model.family!r} at step 0')


if __name__ == '__main__':
  cli.run(main, Options)
