"""Decoders of other packages beside ours: random weights of equal size."""

from __future__ import annotations

import os
from typing import Any

from armd_jax.config import ModelConfig
from armd_jax.errors import UserError


def gpt2(config: ModelConfig, vocab_size: int, batch_size: int) -> dict[str, Any]:
  """transformers' GPT-2, sampling with its key/value cache; the fields of `decode.Timed`.

  Its `run` takes a number of tokens, by default all of them.

  Raises:
    UserError: torch or transformers is not installed.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"--transformers: {error}; pip install -e '.[judge]'") from error
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  sizes = transformers.GPT2Config(
    n_layer=config.num_layers,
    n_embd=config.embed_dim,
    n_head=config.num_heads,
    n_inner=config.mlp_dim,
    n_positions=config.num_slots + 1,
    vocab_size=vocab_size,
    bos_token_id=0,
    eos_token_id=None,
    pad_token_id=0,
  )
  model = transformers.GPT2LMHeadModel(sizes).eval()
  model = model.to(device, getattr(torch, config.dtype))
  begin = torch.zeros((batch_size, 1), dtype=torch.long, device=device)

  @torch.inference_mode()
  def run(count=config.num_slots):
    tokens = model.generate(
      begin, max_new_tokens=count, min_new_tokens=count, do_sample=True, top_k=0
    )
    return tokens.cpu().numpy()

  return {'name': 'transformers GPT-2, cached', 'streams': 1, 'steps': config.num_slots, 'run': run}
