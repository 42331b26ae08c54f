"""Any causal language model of Hugging Face as a judge, from local files: a folder or a GGUF file.

Needs torch and transformers, `pip install -e '.[judge]'` in a clone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from armd_jax.errors import UserError, sentence
from armd_jax.evaluation import quality

_TOKENS_AT_ONCE = 4096  # of padded windows, so that logits of large vocabularies fit
_CONTEXT = 1024  # tokens that are read at once where the model has no smaller bound, or none


class HuggingFaceJudge:
  """See `quality.Judge`.

  It reads 1,024 tokens at once, or as many as the model has positions for if they are fewer; models
  without positions, such as Mamba and BLOOM, have no such bound.

  Args:
    path: a folder as `save_pretrained` leaves it, or a .gguf file; nothing is downloaded.
  Raises:
    UserError: torch or transformers is missing, or no causal language model is there.
  """

  def __init__(self, path: str):
    self.name = os.path.basename(os.path.normpath(path))
    if not os.path.exists(path):
      raise UserError(f'no judge is at {path!r}; give a folder of Hugging Face or a .gguf file')
    try:
      import torch
      import transformers
    except ImportError as error:
      raise UserError(
        f'the judge at {path!r} needs {error.name}; pip install torch transformers accelerate gguf'
      ) from error
    self._torch = torch
    folder, file = os.path.split(path) if path.endswith('.gguf') else (path, None)
    options = {'gguf_file': file, 'local_files_only': True}
    try:
      self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
      model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
      )
    except Exception as error:  # whatever transformers raises for files it cannot read
      raise UserError(
        f'{path!r} holds no causal language model that transformers can open '
        f'({sentence(error)}); give the folder of one, with its tokenizer'
      ) from error
    for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
      for name in sorted(map(str, loading.get(kind) or ())):
        raise UserError(
          f'{path!r} and the model that its config names do not agree about {name} '
          f'({kind.partition("_")[0]}); fetch all files from one model'
        )
    self._model = model.eval()
    self.context = _context(model.config)

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._tokenizer.encode(text, add_special_tokens=False), np.int64)

  def nats(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    results: list[Any] = [None] * len(windows)
    for batch, output in self._run(windows, output_hidden_states=False):
      # One sequence at a time: log-probabilities of a whole batch need twice the logits' memory.
      for row, number in enumerate(batch):
        ids = self._torch.as_tensor(windows[number])
        logits = output.logits[row, : len(ids) - 1].double()
        log_p = self._torch.log_softmax(logits, dim=-1)
        results[number] = -log_p.gather(-1, ids[1:, None])[:, 0].numpy()
    return results

  def features(self, windows: Sequence[np.ndarray]) -> np.ndarray:
    rows: list[Any] = [None] * len(windows)
    for batch, output in self._run(windows, output_hidden_states=True):
      for row, number in enumerate(batch):
        rows[number] = output.hidden_states[-1][row, len(windows[number]) - 1].numpy()
    return np.stack(rows)

  def _run(self, windows, output_hidden_states) -> Iterator[tuple[list[int], Any]]:
    """Numbers of windows of like length, and the model's outputs for them."""
    for batch, ids_BxT in quality.padded_batches(windows, _TOKENS_AT_ONCE):
      ids = self._torch.as_tensor(ids_BxT)
      with self._torch.inference_mode():
        output = self._model(ids, output_hidden_states=output_hidden_states, use_cache=False)
      yield batch, output


def _context(config: Any) -> int:
  """Tokens to read at once, by a model's config, or its text's of one that reads pictures."""
  config = config.get_text_config()
  # MPT's name is its own; models without positions have neither.
  stated = [getattr(config, name, None) for name in ('max_position_embeddings', 'max_seq_len')]
  return min([_CONTEXT, *(number for number in stated if isinstance(number, int) and number > 0)])
