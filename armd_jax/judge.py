"""Judges generated texts: `armd judge --samples=samples.json --judge=PATH`.

The file is what `armd sample --json` writes, or JSON lines, CSV or parquet with a `text` in each
row, made by any model. Entropy and repetition are always printed beside the perplexity.
"""

from __future__ import annotations

import dataclasses

from armd_jax import cli
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.errors import UserError
from armd_jax.evaluation import judging, quality
from armd_jax.flags import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  samples: str = flag('File of texts.', is_path='or a bucket')
  judge: str = flag('Hugging Face folder or .gguf file.', is_path=True)
  tokenizer: str = flag('What entropy and n-grams count.', 'gpt2')
  references: str | None = flag('File of human texts, for MAUVE.', None, is_path='or a bucket')
  json: str | None = cli.json_file()


def main(options: Options) -> None:
  texts = judging.read_texts(options.samples)
  references = judging.read_texts(options.references) if options.references else None
  tokenizer = get_tokenizer(options.tokenizer)
  judge = judging.open_judge(options.judge)
  junctions = judging.read_junctions(options.samples, texts)
  try:
    statistics = quality.statistics([tokenizer.encode(text) for text in texts])
    verdict = quality.judge_texts(judge, texts, junctions)
  except UserError:  # a ValueError, and a sentence already
    raise
  except ValueError as error:
    raise UserError(f'{options.samples}: {error}; generate longer texts') from error
  mauve = None if references is None else judging.mauve_score(judge, texts, references)
  if options.json:
    numbers = {
      'texts': len(texts),
      'tokenizer': tokenizer.name,
      'judge': judge.name,
      'statistics': dataclasses.asdict(statistics),
      'verdict': dataclasses.asdict(verdict),
      'mauve_left_out': mauve and [mauve.left_out, mauve.left_out_references],
      'mauve': mauve and mauve.score,
    }
    cli.write_json(options.json, numbers)
  print(
    f'{len(texts)} texts of {options.samples}; entropy and n-grams by tokenizer {tokenizer.name}'
  )
  print(judging.table(statistics, verdict, judge.name, mauve))


if __name__ == '__main__':
  cli.run(main, Options)
