"""Evaluators of a config: their data opened, each made, all run."""

import contextlib
from collections.abc import Iterable, Iterator

from coca.config import Config, Eval
from coca.data.sources import open_source, places_of
from coca.evals.captions import Captions
from coca.evals.matching import Matching
from coca.evals.retrieval import Retrieval
from coca.evals.vqa import Vqa, read_answers
from coca.evals.zero_shot import ZeroShot, check_zero_shot

Evaluator = ZeroShot | Retrieval | Captions | Matching | Vqa


def open_sources(config: Config, names: Iterable[str] | None = None) -> tuple[dict, dict]:
  """Opens what the evaluators look at.

  Args:
    config: the run's settings.
    names: of the evaluators; None: all.

  Returns:
    their sources by the evaluators' names, and the training sources that `pixel_neighbours` names by theirs.

  Raises:
    ValueError: no evaluator of that name is in the config, or a source that its kind can't use.
    FileNotFoundError: as `coca.data.sources.open_source`.
  """
  sources, train_sources = {}, {}
  for name, settings in _named(config, names).items():
    sources[name] = open_source(settings.source, f"config.evals.{name}.source")
    neighbours = settings.pixel_neighbours
    if neighbours and neighbours not in train_sources:
      train_sources[neighbours] = open_source(config.data.sources[neighbours], f"config.data.sources.{neighbours}")
    with _naming(name):
      _check(settings, sources[name], train_sources.get(neighbours))
  return sources, train_sources


def places(config: Config, names: Iterable[str] | None = None) -> dict[str, str]:
  """Paths and URLs that `open_sources` would open, by the names of their settings; raises as it does."""
  found = {}
  for name, settings in _named(config, names).items():
    found |= places_of(settings.source, f"config.evals.{name}.source")
    if settings.pixel_neighbours:
      found |= places_of(config.data.sources[settings.pixel_neighbours],
                         f"config.data.sources.{settings.pixel_neighbours}")
    if settings.answers:
      found[f"config.evals.{name}.answers"] = settings.answers
  return found


def _named(config: Config, names: Iterable[str] | None) -> dict[str, Eval]:
  for name in names or ():
    if name not in config.evals:
      raise ValueError(f"the config has no evaluator '{name}'; it has: {', '.join(config.evals) or 'none'}")
  return {name: settings for name, settings in config.evals.items() if names is None or name in names}


def _check(settings: Eval, source, neighbours) -> None:
  """What can be told before any record is read."""
  if not len(source):
    raise ValueError(f"evaluation source '{source.name}' holds no records. {'; '.join(source.problems[:5])}".rstrip())
  if settings.kind == "zero_shot":
    check_zero_shot(source, neighbours)
  if settings.kind == "vqa" and settings.answers:
    read_answers(settings.answers)


@contextlib.contextmanager
def _naming(name: str):
  try:
    yield
  except ValueError as e:
    raise ValueError(f"config.evals.{name}: {e}") from None


def make_evaluators(config: Config, forward, tokenizer, sources: dict,
                    train_sources: dict | None = None) -> dict[str, Evaluator]:
  """The evaluators of `config.evals` that have a source.

  Args:
    config: the run's settings.
    forward: compiled functions (`coca.inference.forward.Forward`).
    tokenizer: `coca.data.tokenizers.sentencepiece.Tokenizer`.
    sources: opened sources by the evaluators' names.
    train_sources: those that `pixel_neighbours` names, by their names.

  Raises:
    ValueError: names the evaluator, and what it lacks.
  """
  evaluators = {}
  for name, source in sources.items():
    settings = config.evals[name]
    with _naming(name):
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
  return evaluators


def run_all(evaluators: dict[str, Evaluator], params) -> Iterator[tuple[str, float]]:
  """Yields ('eval/<evaluator>/<name>', number)."""
  for evaluator, e in evaluators.items():
    for name, value in e.run(params):
      yield f"eval/{evaluator}/{name}", value
