"""ARMD with GPT-2 small's size on OpenWebText (paper section 6): 512 x 1024 tokens, 400K steps.

  python -m armd_jax.data.prepare --source='openwebtext/*.parquet' --tokenizer=gpt2 --out=work/owt
  python -m armd_jax.train --config=experiments/owt_small.py --workdir=work/owt_small \\
    --config.data.source=work/owt

Twins and variants (armd_jax/recipes.py): owt_small.py:paper is the published recipe, from which the
default differs by what the reproduction found better; owt_small.py:family=mdlm (sedd, radd, d3pm,
esolm, ar) trains a baseline with all else the same; owt_small.py:family=bd3lm,block=16 block
diffusion, which the published models begin with 850K steps of MDLM (--config.init_from);
owt_small.py:family=setdlm,block=8 set diffusion, with sets of 8 tokens from 16 positions;
owt_small.py:strided_steps=50000 fine-tunes work/owt_small for strided generation (published: 10K,
50K, 80K steps); any with ,runlocal takes minutes on two cores.

Hardware and time: on 1024 v5p chips (fsdp 256 x tensor 4) the roofline of docs/scaling.md gives 4.4
to 8.1 ms per step at least, half an hour to an hour in all; nothing of it was run. For others,
python -m armd_jax.aot --config=experiments/owt_small.py --target=h100 prints memory and least time.
Published zero-shot perplexity after 400K steps: LAMBADA 45.35, WikiText2 35.64, PTB 123.43,
WikiText103 35.15, 1BW 52.94; after 180K: 44.66, 36.25, 130.31, 35.66, 53.18. GPT-2: 45.04, 42.43,
138.43, 41.60, 75.20; D3PM: 93.47, 77.28, 200.82, 75.16, 138.92; SEDD: 50.92, 41.84, 114.24, 40.62,
79.29; RADD: 51.70, 39.98, 107.85, 37.98, 72.99. Generative perplexity after i_SBP = 50K, S = 1, 2,
4: 39.1, 40.1, 43.2. Perplexity on held-out OpenWebText of BD3-LM with blocks of 4, 8 and 16 tokens:
20.73, 21.68, 22.27.

Eso-LM's own recipe has 250K steps and alpha_0 (model.diffusion.esolm_diffused) of 0, 0.125, 0.25,
0.5 or 1, which with 1 is trained with esolm_loss='low_variance'. Published perplexity on
OpenWebText, a bound, in an index of results that does not name its alpha_0: 21.92.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config(options: str = '') -> ml_collections.ConfigDict:
  config = default_config()  # whose defaults are this model and its recipe
  config.model.update(remat='dots')
  config.data.update(source='work/owt', tokenizer='gpt2')
  recipes.finish(config, options, 'work/owt_small')
  return config
