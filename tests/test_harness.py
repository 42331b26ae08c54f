"""lm_eval has the numbers of our own evaluation, and those of its own `hf` model."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import test_hugging_face
import tiny
import tiny_run
from models import test_llama

from armd_jax import config as config_lib
from armd_jax import export
from armd_jax.artifacts import loaded, starts
from armd_jax.errors import UserError
from armd_jax.objectives import armd
from armd_jax.order import given_first

REASON = 'runs EleutherAI\'s harness, which is not installed (the extra "eval" brings it)'
lm_eval = pytest.importorskip('lm_eval', reason=REASON)

LENGTH = 64
TEXTS = ['the hat is', 'a cat', 'so it goes', 'and then it was all that they had', 'x']
TASKS = {
  'choices': """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [" on a mat", " of the cat", " 12"]
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
  'rolling': """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
""",
  'texts': """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["q"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """An AR Llama and an ARMD, each as a run, the former for transformers too; and tasks."""
  folder = tmp_path_factory.mktemp('harness')
  for name, changes in (
    ('ar', test_hugging_face.LLAMA | {'length': LENGTH}),
    ('armd', {'query_seed': 'warm', 'num_layers': 2, 'length': LENGTH}),
  ):
    raw = config_lib.to_dict(config_lib.parse(tiny_run.config(folder)))
    raw['model'] = config_lib.to_dict(config_lib.Config(model=tiny.model_config(**changes)))[
      'model'
    ]
    raw['order'] = {'max_shuffled': 0}
    config = config_lib.parse(raw)
    params = test_hugging_face.random_params(config.model)
    # An id's vector, so that the model for transformers has no id more, which gets probability.
    params['vocabulary']['bos'] = params['vocabulary']['embedding'][256]
    starts.write(starts.Start(config, params), folder / name)
  export.main(export.Options(workdir=str(folder / 'ar'), hf=str(folder / 'hf')))
  rows = folder / 'rows.jsonl'
  rows.write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
  (folder / 'tasks').mkdir()
  for name, task in TASKS.items():
    where = (
      f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{rows}"}}}}\ntest_split: test\n'
    )
    (folder / 'tasks' / f'{name}.yaml').write_text(f'task: our_{name}\n{where}{task.lstrip()}')
  return folder


def evaluated(folder, model, arguments, *tasks):
  """Results by task, and what was answered."""
  import lm_eval.tasks

  from armd_jax.artifacts import harness_model

  assert harness_model.NAME == 'armd_jax'
  manager = lm_eval.tasks.TaskManager(include_path=str(folder / 'tasks'), include_defaults=False)
  found = lm_eval.simple_evaluate(
    model, model_args=arguments, tasks=[f'our_{task}' for task in tasks], task_manager=manager,
    device='cpu', batch_size=4, bootstrap_iters=0, verbosity='ERROR',
  )  # fmt: skip
  return found['results'], found['samples']


def test_the_same_numbers_as_its_own_model(folder):
  pytest.importorskip('transformers', reason=test_llama.REASON)
  ours, our_samples = evaluated(folder, 'armd_jax', f'path={folder}/ar', 'choices', 'texts')
  theirs, their_samples = evaluated(folder, 'hf', f'pretrained={folder}/hf', 'choices', 'texts')
  assert ours['our_choices']['acc,none'] == theirs['our_choices']['acc,none']
  for our, their in zip(our_samples['our_choices'], their_samples['our_choices'], strict=True):
    for (a, is_best), (b, their_best) in zip(
      our['filtered_resps'], their['filtered_resps'], strict=True
    ):
      assert a == pytest.approx(b, abs=1e-3) and is_best == their_best
  answers = [
    [sample['resps'] for sample in samples['our_texts']] for samples in (our_samples, their_samples)
  ]
  assert answers[0] == answers[1]
  ours, _ = evaluated(folder, 'armd_jax', f'path={folder}/ar', 'rolling')
  plain = f'pretrained={folder}/hf,add_bos_token=False'
  theirs, _ = evaluated(folder, 'hf', plain, 'rolling')
  name = 'bits_per_byte,none'
  assert ours['our_rolling'][name] == pytest.approx(theirs['our_rolling'][name], rel=1e-5)


def test_log_likelihoods_along_the_order_of_generation(folder):
  """Of S tokens at once, as our own objective has them; and the texts are our own."""
  model = loaded.load(folder / 'armd')
  arguments = f'path={folder}/armd,streams=4,order=strided'
  _, samples = evaluated(folder, 'armd_jax', arguments, 'choices', 'texts')
  network = test_hugging_face.models.build(model.config.model, 257)
  for sample in samples['our_choices']:
    for choice, (found, _) in zip(
      (' on a mat', ' of the cat', ' 12'), sample['filtered_resps'], strict=True
    ):
      given, ids = (model.tokenizer.encode(x) for x in (sample['doc']['text'], choice))
      whole = np.append(given, ids)[None]
      order = given_first(np.arange(len(whole[0]))[None] < len(given), np.array([len(whole[0])]), 4)
      weights = np.ones(whole.shape, np.float32)
      _, nll = armd.nll(network, model.params, whole, order, weights, loss_chunk=8)
      assert found == pytest.approx(-float(nll[0, len(given) :].sum()), rel=1e-4)
  assert all(len(sample['resps'][0][0]) <= 8 * 4 for sample in samples['our_texts'])
  left, _ = evaluated(folder, 'armd_jax', f'path={folder}/armd,streams=4', 'rolling')
  strided, _ = evaluated(folder, 'armd_jax', arguments, 'rolling')
  name = 'bits_per_byte,none'
  assert left['our_rolling'][name] != strided['our_rolling'][name]
  jax.clear_caches()


def test_long_texts_are_cut_into_windows_and_others_refused(folder):
  from lm_eval.api.instance import Instance

  from armd_jax.artifacts import harness_model

  model = harness_model.HarnessModel(f'{folder}/ar')
  text = 'the cat and the hat ' * 5
  (found,) = model.loglikelihood_rolling([Instance('loglikelihood_rolling', {}, (text,), 0)])
  ids = list(text.encode())
  most = LENGTH - 1  # the first ones follow BOS, the others as many as the model takes
  rows = [(ids[:most], 0), (ids[-LENGTH:], LENGTH - (len(ids) - most))]
  assert found == pytest.approx(sum(log_p for log_p, _ in model._scores(rows)), rel=1e-5)
  many = Instance('generate_until', {}, ('a', {'until': [], 'max_gen_toks': 99}), 0)
  with pytest.raises(
    UserError, match='asks for 99 tokens but the model takes 63; set max_gen_toks'
  ):
    model.generate_until([many])
  with pytest.raises(UserError, match="order is 'x'; write one of 'left_to_right', 'strided'"):
    harness_model.HarnessModel(f'{folder}/ar', order='x')
  with pytest.raises(UserError, match="family 'ar'; streams is 2, but it has left-to-right orders"):
    harness_model.HarnessModel(f'{folder}/ar', streams=2)
  with pytest.raises(UserError, match='a task scores 65 tokens at once but the model takes 64'):
    model.loglikelihood([Instance('loglikelihood', {}, ('a', 'b' * 65), 0)])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'stream': 4}, "has no argument 'stream'; write path, streams"),
    ({'path': ''}, 'needs a path; write path=RUN'),
    ({'streams': 0}, 'streams is 0; write a whole number from 1 on'),
    ({'streams': 'x'}, "streams is 'x'; write a whole number from 1 on"),
    ({'streams': 99}, 'streams holds S = 99, but of 64 tokens there are 1 to 64'),
    ({'batch_size': 0}, 'batch_size is 0; write a whole number from 1 on'),
  ],
)
def test_arguments_that_cannot_be_are_sentences(folder, arguments, message):
  from armd_jax.artifacts import harness_model

  with pytest.raises(UserError, match=message):
    harness_model.HarnessModel(**{'path': f'{folder}/armd'} | arguments)
  given = {'device': 'cpu', 'max_batch_size': 64, 'batch_size': 'auto:4', 'trust_remote_code': True}
  assert harness_model.HarnessModel(f'{folder}/armd', **given)


def test_answers_are_kept_in_its_cache(folder, tmp_path):
  """By request: windows of a long text are none."""
  from lm_eval.api.instance import Instance
  from lm_eval.api.model import CachingLM

  from armd_jax.artifacts import harness_model

  model = CachingLM(harness_model.HarnessModel(f'{folder}/ar'), str(tmp_path / 'kept.db'))
  text = 'the cat and the hat ' * 5
  rolling = [Instance('loglikelihood_rolling', {}, (text,), 0)]
  pair = [Instance('loglikelihood', {}, ('the', ' cat'), 0)]
  found = model.loglikelihood_rolling(rolling), model.loglikelihood(pair)
  assert len(model.dbdict) == 2
  assert (model.loglikelihood_rolling(rolling), model.loglikelihood(pair)) == found


def test_every_request_has_draws_of_its_own(folder):
  """Repeats of one, of which a task takes the most frequent answer, whatever the batch is."""
  from lm_eval.api.instance import Instance

  from armd_jax.artifacts import harness_model

  asked = {'do_sample': True, 'temperature': 1.0, 'max_gen_toks': 8}
  requests = [Instance('generate_until', {}, ('the cat', asked), 0) for _ in range(5)]
  texts = [
    harness_model.HarnessModel(f'{folder}/ar', batch_size=size).generate_until(requests)
    for size in (1, 2)
  ]
  assert len(set(texts[0])) == 5 and texts[0] == texts[1]


def test_the_command(folder):
  command = [sys.executable, '-m', 'armd_jax.artifacts.harness', '--model', 'armd_jax']
  command += ['--model_args', f'path={folder}/ar', '--tasks', 'our_rolling', '--include_path']
  done = subprocess.run([*command, f'{folder}/tasks'], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'bits_per_byte' in done.stdout
  command[command.index('--model_args') + 1] = f'path={folder}/nowhere'
  done = subprocess.run([*command, f'{folder}/tasks'], capture_output=True, text=True)
  assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr[-2000:]
  assert 'error: ' in done.stderr and 'nowhere holds no run' in done.stderr
