"""What a family cannot do is refused in a sentence that names the flag to change."""

import pytest
import tiny

from armd_jax.errors import UserError
from armd_jax.families import asked

ARMD, AR, SEDD = (tiny.model_config(family=family) for family in ('armd', 'ar', 'sedd'))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda: asked.sampler_of(SEDD, 'ancestral'),
      "--sampler is 'ancestral'; for 'sedd' write one of 'tweedie', 'euler'",
    ),
    (lambda: asked.check_family(AR, 2, None, False), r"\('ar'\); leave out --infill and write"),
    (lambda: asked.check_family(AR, 1, 'a ___', False), 'leave out --infill and write --streams=1'),
    (lambda: asked.check_family(ARMD, 17, None, False), '--streams holds S = 17, but of 16 tokens'),
    (
      lambda: asked.check_family(ARMD, 1, None, True),
      "are for diffusion baselines; the model is 'armd', write --streams",
    ),
    (lambda: asked.check_race(ARMD, 1, True), '--streams is 1, take an ARMD and 2 or more'),
    (lambda: asked.check_race(SEDD, 4, True), "the family is 'sedd' and --streams is 4, take an"),
    (lambda: asked.check_mend(ARMD, 2, 17), 'mend is 17; write a whole number from 0 to 16'),
    (lambda: asked.check_mend(ARMD, 2, 1.0), r'mend is 1\.0; write a whole number'),
    (lambda: asked.check_mend(ARMD, 1, 2), "'armd' and streams is 1, leave it out"),
    (lambda: asked.check_mend(AR, 2, 2), "'ar' and streams is 2, leave it out"),
    (
      lambda: asked.request_of('a', 'b ___', 0, 1, 16, None),
      '--prompt and --infill exclude each other; put the prompt into --infill',
    ),
  ],
)
def test_what_a_family_cannot_do_is_refused(call, message):
  with pytest.raises(UserError, match=message):
    call()


def test_what_it_can_do_is_not():
  assert asked.sampler_of(SEDD, '') == 'tweedie' and asked.sampler_of(SEDD, 'euler') == 'euler'
  for model, streams, infill, diffuses in (
    (ARMD, 16, 'a ___', False), (AR, 1, None, False), (SEDD, 1, 'a ___', True),
  ):  # fmt: skip
    asked.check_family(model, streams, infill, diffuses)
  for model, streams, races, mend in ((ARMD, 2, True, 16), (AR, 1, False, 0), (SEDD, 1, False, 0)):
    asked.check_race(model, streams, races)
    asked.check_mend(model, streams, mend)
