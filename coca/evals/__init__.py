"""Evaluators: each is built once and yields (name, number) pairs from `run(params)`, on all hosts alike.

What `run` yields has no prefix: the numbers of the evaluator that the config calls `twemoji` are written as
`eval/twemoji/top1` and so on by whoever runs it.
"""

from collections.abc import Iterable, Iterator

from coca.config import Config, Source
from coca.data.sources import open_source
from coca.data.sources.files import SETTING
from coca.evals.captions import Captions
from coca.evals.matching import Matching
from coca.evals.retrieval import Retrieval
from coca.evals.vqa import Vqa
from coca.evals.zero_shot import ZeroShot

Evaluator = ZeroShot | Retrieval | Captions | Matching | Vqa


def open_sources(config: Config, names: Iterable[str] | None = None) -> tuple[dict, dict]:
  """Opens what the evaluators look at.

  Args:
    config: the run's settings.
    names: of the evaluators; None: all.

  Returns:
    their sources by the evaluators' names, and the training sources that `pixel_neighbours` names by theirs.

  Raises:
    ValueError: an evaluator or a training source of that name is not in the config.
    FileNotFoundError: as `coca.data.sources.open_source`.
  """
  sources, train_sources = {}, {}
  for name in config.evals if names is None else names:
    if name not in config.evals:
      raise ValueError(f"the config has no evaluator '{name}'; it has: {', '.join(config.evals) or 'none'}")
    settings = config.evals[name]
    sources[name] = _open(settings.source, f"config.evals.{name}.source")
    neighbours = settings.pixel_neighbours
    if neighbours and neighbours not in train_sources:
      if neighbours not in config.data.sources:
        raise ValueError(f"config.evals.{name}.pixel_neighbours is '{neighbours}', which is no training source; "
                         f"config.data.sources has: {', '.join(config.data.sources) or 'none'}")
      train_sources[neighbours] = _open(config.data.sources[neighbours], f"config.data.sources.{neighbours}")
  return sources, train_sources


def _open(settings: Source, name: str):
  try:
    return open_source(settings)
  except (FileNotFoundError, ValueError) as e:
    raise type(e)(str(e).replace(SETTING, name)) from None


def make_evaluators(config: Config, forward, tokenizer, sources: dict,
                    train_sources: dict | None = None) -> dict[str, Evaluator]:
  """The evaluators of `config.evals` that have a source.

  Args:
    config: the run's settings.
    forward: compiled functions (`coca.forward.Forward`).
    tokenizer: `coca.data.tokenizer.Tokenizer`.
    sources: opened sources by the evaluators' names.
    train_sources: those that `pixel_neighbours` names, by their names.

  Raises:
    ValueError: names the evaluator, and what it lacks.
  """
  evaluators = {}
  for name, source in sources.items():
    settings = config.evals[name]
    try:
      if settings.kind not in ("captions", "vqa") and not config.contrastive.weight:
        raise ValueError("without a contrastive loss (config.contrastive.weight is 0) the model makes no embeddings")
      if settings.kind == "captions":
        evaluators[name] = Captions(config, settings, forward, tokenizer, source)
      elif settings.kind == "matching":
        evaluators[name] = Matching(config, settings, forward, tokenizer, source)
      elif settings.kind == "vqa":
        evaluators[name] = Vqa(config, settings, forward, tokenizer, source)
      elif settings.kind == "retrieval":
        evaluators[name] = Retrieval(config, settings, forward, tokenizer, source)
      else:
        neighbours = train_sources[settings.pixel_neighbours] if settings.pixel_neighbours else None
        evaluators[name] = ZeroShot(config, settings, forward, tokenizer, source, neighbours)
    except ValueError as e:
      raise ValueError(f"config.evals.{name}: {e}") from None
  return evaluators


def run_all(evaluators: dict[str, Evaluator], params) -> Iterator[tuple[str, float]]:
  """Yields ('eval/<evaluator>/<name>', number)."""
  for evaluator, e in evaluators.items():
    for name, value in e.run(params):
      yield f"eval/{evaluator}/{name}", value
