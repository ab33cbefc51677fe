"""A model on the Hugging Face hub: a model directory, from where `coca.load("hf://org/name")` has it, and its card."""

import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from coca import __version__
from coca.config import Config, default, parse, to_dict
from coca.config.differing import differing, flat
from coca.devices import sharding
from coca.files.retries import Unavailable
from coca.inference.forward import Forward
from coca.storage import weights
from coca.storage.hub import PREFIX, transport_errors
from coca.storage.workdir import read_labels, read_params, read_workdir, write_run

# The hub's names of what evaluators measure.
TASKS = {
  "zero_shot": "zero-shot-image-classification",
  "classification": "image-classification",
  "captions": "image-to-text",
  "vqa": "visual-question-answering",
}
TASK = "image-text-to-text"  # of the others


def push(
  source,
  repository: str,
  licence: str,
  *,
  tags: Sequence[str] = (),
  datasets: Sequence[str] = (),
  public: bool = False,
  numbers: Mapping[str, float] | None = None,
) -> str:
  """Uploads a model: config.json, model.safetensors, the tokenizer and README.md, in one commit.

  Args:
    source: a workdir, of which the moving average is taken where the run kept one, or a model directory.
    repository: hf://org/name; a new one is made where there is none.
    licence: of the weights, as the hub calls it: 'apache-2.0', 'cc-by-4.0', ...
    tags: more than the card has of itself.
    datasets: their names on the hub.
    public: whether a new repository is for all to see; otherwise it is private.
    numbers: results by name, as in `metrics.jsonl`.

  Returns:
    the commit's URL.

  Raises:
    FileNotFoundError: no model there.
    ValueError: not such a name; or the hub refuses.
    coca.files.retries.Unavailable: the hub can't be reached.
    ImportError: huggingface_hub is not installed.
    coca.storage.checkpoint.CheckpointError: all checkpoints are damaged.
  """
  name = repository.removeprefix(PREFIX)
  if not repository.startswith(PREFIX) or len(name.split("/")) != 2 or not all(name.split("/")) or "@" in name:
    raise ValueError(f"{repository}: write hf://org/name")
  if importlib.util.find_spec("huggingface_hub") is None:
    raise ImportError(f"{repository} needs huggingface_hub: pip install -e '.[hub]'")
  from huggingface_hub import HfApi
  from huggingface_hub.errors import HfHubHTTPError

  config, tokens = read_workdir(source)
  forward = Forward(config, sharding.make_mesh(devices=jax.local_devices()[:1]))
  params, labels = read_params(source, forward.abstract_params), read_labels(source)
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    sha256 = weights.write(folder / weights.FILE, params)
    tokens.save(folder / tokens.file)
    write_run(_for_others(config), tokens, folder, weights_sha256=sha256, **({"labels": labels} if labels else {}))
    count = sum(x.size for x in jax.tree.leaves(params))
    text = card(config, name, licence, count, tags=tags, datasets=datasets, numbers=numbers or {})
    (folder / "README.md").write_text(text, encoding="utf-8")
    api = HfApi()
    try:
      api.create_repo(name, private=not public, exist_ok=True)
      done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{config.name}, by coca")
    except transport_errors() as e:
      raise Unavailable(f"{repository}: the hub can't be reached: {e}") from None
    except HfHubHTTPError as e:
      raise ValueError(f"{repository}: the hub refuses: {str(e).splitlines()[0]} (hf auth login?)") from None
  return str(done.commit_url)


def _for_others(config: Config) -> Config:
  """Without what is of somebody's machine, paths among them, or has a place of its own on the card."""
  plain = parse(default())
  data = dataclasses.replace(config.data, sources={}, tokenizer="", embeddings=plain.data.embeddings)
  head = dataclasses.replace(config.classification, answers="")
  config = dataclasses.replace(config, classification=head, mesh=plain.mesh, checkpoint=plain.checkpoint)
  return dataclasses.replace(config, init_from="", data=data, evals={})


def card(
  config: Config,
  name: str,
  licence: str,
  count: int,
  *,
  tags: Sequence[str] = (),
  datasets: Sequence[str] = (),
  numbers: Mapping[str, float],
) -> str:
  """README.md of a model: a YAML header as the hub reads it, and what was trained on which data, by which settings.

  Args:
    config: of the run.
    name: org/name.
    licence, tags, datasets, numbers: as for `push`.
    count: of parameters.
  """
  from huggingface_hub import EvalResult, ModelCardData

  found = {key: value for key, value in sorted(numbers.items()) if key.startswith("eval/") and value is not None}
  results = [_result(EvalResult, config, key, value) for key, value in found.items()]
  data = ModelCardData(
    license=licence,
    library_name="coca",
    tags=[config.model.kind, "jax", *tags],
    datasets=list(datasets) or None,
    pipeline_tag=TASKS["zero_shot"] if config.contrastive.heads else TASKS["captions"],
    model_name=name.split("/")[1],
    eval_results=results or None,
  )
  sources = [(n, x.kind, x.split, x.weight) for n, x in config.data.sources.items()]
  changed = differing(flat(to_dict(parse(default())).to_dict()), flat(to_dict(_for_others(config)).to_dict()))
  recipe = [(f"`config.{key}`", f"`{json.dumps(now)}`") for key, (_, now) in changed.items()]
  values = [(key.removeprefix("eval/"), f"{value:.4g}") for key, value in found.items()]
  parts = [
    f"---\n{data.to_yaml()}\n---\n\n# {name}\n",
    f"A model of kind '{config.model.kind}' with {count / 1e6:,.1f} million parameters, for images of "
    f"{config.model.image.size} pixels and texts of {config.model.text.length} tokens, by coca {__version__}.\n",
    f'```python\nimport coca\n\nmodel = coca.load("{PREFIX}{name}")\n```\n',
    _table("Data", ("source", "kind", "split", "weight"), sources),
    _table("Recipe: settings other than the defaults", ("setting", "value"), recipe),
    _table("Results", ("evaluator and number", "value"), values),
  ]
  return "\n".join(filter(None, parts))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence]) -> str:
  """A section with a table; nothing where there are no rows."""
  lines = [head, ["---"] * len(head), *rows]
  return f"## {title}\n\n" + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines) if rows else ""


def _result(kind, config: Config, key: str, value: float):
  """A number 'eval/NAME/number' as the hub has it."""
  _, evaluator, number = key.split("/", 2)
  settings = config.evals.get(evaluator)
  task = TASKS.get(settings.kind, TASK) if settings else TASK
  return kind(
    task_type=task, dataset_type=evaluator, dataset_name=evaluator, metric_type=number, metric_value=round(value, 6)
  )
