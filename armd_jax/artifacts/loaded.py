"""A trained model, in a few lines of Python."""

from __future__ import annotations

import dataclasses
import pathlib

from jax.sharding import Mesh

from armd_jax import families
from armd_jax.artifacts import weights
from armd_jax.config import Config
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.models.params import Params
from armd_jax.parallel import ambient, sharding


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained network and its vocabulary.

  Attributes:
    config: of its run.
    tokenizer: text to ids and back.
    params: float32.
    step: of training.
    mesh: where the parameters are.
  """

  config: Config
  tokenizer: Tokenizer
  params: Params
  step: int
  mesh: Mesh

  @ambient.settled()
  def generate(
    self,
    prompt: str = '',
    *,
    streams: int = 1,
    count: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str = 'none',
  ) -> str | list[str]:
    """Text that goes on from the prompt to the model's length, the prompt included.

    Args:
      prompt: may be empty.
      streams: S, tokens generated at once; with a sampler, on average in a step.
      count: how many texts; a list of them if it is more than one.
      seed: of all draws; the same text every time.
      temperature: 0 takes the most likely tokens.
      top_p: nucleus of the distribution to draw from.
      stop: 'eos' cuts a text at its first generated EOS; 'none' does not.
    Raises:
      UserError: something cannot be sampled with, or the prompt leaves no room.
    """
    requests.check_counts(streams, count)
    if not isinstance(stop, str) or stop not in ('none', 'eos'):
      raise UserError(f"stop is {stop!r}; write 'none' or 'eos'")
    stop_token = self.tokenizer.eos_id if stop == 'eos' else None
    sampling = Sampling(seed, temperature, top_p, stop_token)
    config = self.config.model
    if config.orders == 'left_to_right' and streams > 1:
      raise UserError(
        f'the model is auto-regressive ({config.family!r}); streams is {streams}, write 1'
      )
    num_slots = config.num_slots
    request = requests.continue_prompts([prompt] * count, num_slots, self.tokenizer)
    model = families.build(config, self.tokenizer.vocab_size)
    decoder = requests.Decoder(model, self.params, self.tokenizer, self.mesh)
    texts, _ = families.of(config).generate(decoder, request, sampling, streams=streams)
    return texts if count > 1 else texts[0]


@ambient.settled()
def load(path: str | pathlib.Path) -> Model:
  """See `armd_jax.load`."""
  config, tokenizer, params, step = weights.load_ema(path)
  return Model(config, tokenizer, params, step, sharding.make_mesh(config.mesh))
