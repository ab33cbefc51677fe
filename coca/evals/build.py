"""Evaluators of a config: their data opened, each made, all run."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data.records import Records
from coca.data.sources import open_source, places_of
from coca.evals.captions import Captions
from coca.evals.classification import Classification
from coca.evals.dialogs import Dialogs
from coca.evals.evaluator import Evaluator
from coca.evals.matching import Matching
from coca.evals.pairs import Pairs
from coca.evals.retrieval import Retrieval
from coca.evals.vqa import Vqa
from coca.evals.zero_shot import ZeroShot
from coca.inference.forward import Forward

# The kinds of evaluators by what `config.evals.NAME.kind` calls them. A new one is named here and in
# `coca.config.Eval`.
KINDS: dict[str, type[Evaluator]] = {
  "zero_shot": ZeroShot,
  "retrieval": Retrieval,
  "captions": Captions,
  "matching": Matching,
  "pairs": Pairs,
  "vqa": Vqa,
  "classification": Classification,
  "dialogs": Dialogs,
}


def open_sources(config: Config, names: Iterable[str] | None = None) -> tuple[dict[str, Records], dict[str, Records]]:
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
      check_opened(settings, sources[name], train_sources.get(neighbours))
  return sources, train_sources


def check_opened(settings: Eval, source: Records, neighbours: Records | None) -> None:
  """Raises ValueError if an evaluator can't use an opened source."""
  if not len(source):
    raise ValueError(f"evaluation source '{source.name}' holds no records. {'; '.join(source.problems[:5])}".rstrip())
  KINDS[settings.kind].check(settings, source, neighbours)


def places(config: Config, names: Iterable[str] | None = None) -> dict[str, str]:
  """Paths and URLs that `open_sources` would open, by the names of their settings; raises as it does."""
  found = {}
  for name, settings in _named(config, names).items():
    found |= places_of(settings.source, f"config.evals.{name}.source")
    if settings.pixel_neighbours:
      found |= places_of(
        config.data.sources[settings.pixel_neighbours], f"config.data.sources.{settings.pixel_neighbours}"
      )
    found |= {f"config.evals.{name}.{setting}": path for setting, path in KINDS[settings.kind].places(settings).items()}
  return found


def _named(config: Config, names: Iterable[str] | None) -> dict[str, Eval]:
  for name in names or ():
    if name not in config.evals:
      raise ValueError(f"the config has no evaluator '{name}'; it has: {', '.join(config.evals) or 'none'}")
  return {name: settings for name, settings in config.evals.items() if names is None or name in names}


@contextlib.contextmanager
def _naming(name: str):
  try:
    yield
  except ValueError as e:
    raise ValueError(f"config.evals.{name}: {e}") from None


def make_evaluators(
  config: Config,
  forward: Forward,
  tokenizer: Tokenizer,
  sources: dict[str, Records],
  train_sources: dict[str, Records] | None = None,
  labels: Sequence[str] = (),
) -> dict[str, Evaluator]:
  """The evaluators of `config.evals` that have a source.

  Args:
    config: the run's settings.
    forward: compiled functions.
    tokenizer: the run's.
    sources: opened sources by the evaluators' names.
    train_sources: those that `pixel_neighbours` names, by their names.
    labels: names of the class head's classes.

  Raises:
    ValueError: names the evaluator, and what it lacks.
  """
  evaluators = {}
  for name, source in sources.items():
    settings = config.evals[name]
    with _naming(name):
      neighbours = [train_sources[settings.pixel_neighbours]] if settings.pixel_neighbours else []
      more = {"labels": labels} if settings.kind in ("classification", "vqa") else {}
      evaluators[name] = KINDS[settings.kind](config, settings, forward, tokenizer, source, *neighbours, **more)
  return evaluators


def run_all(evaluators: dict[str, Evaluator], params) -> Iterator[tuple[str, float]]:
  """Yields ('eval/<evaluator>/<name>', number)."""
  for evaluator, e in evaluators.items():
    for name, value in e.run(params):
      yield f"eval/{evaluator}/{name}", value
