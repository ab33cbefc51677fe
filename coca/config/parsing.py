"""Settings to and from the dicts of ml_collections and JSON."""

from typing import Any

from ml_collections import ConfigDict

from coca.config.checks import check
from coca.config.settings import Config
from coca.config.typed import from_plain, to_plain

Draft = Any  # settings that may still be changed: a ConfigDict, whose attributes have no types


def default() -> Draft:
  """Every setting at its default: what a file in configs/ starts from."""
  config = to_dict(Config())
  config.lock()
  for open_ended in (config.data.sources, config.evals, config.optim.lr_scale, config.stages):
    open_ended.unlock()
  return config


def to_dict(settings) -> Draft:
  """A settings object (`Config`, `Source`, ...) as a ConfigDict."""
  return ConfigDict(to_plain(settings))


def parse(config: ConfigDict | dict) -> Config:
  """Checks `config` and freezes it.

  Raises:
    ValueError: names the setting, what it holds and what it may hold.
  """
  settings = from_plain(Config, dict(config), "config")
  check(settings)
  return settings
