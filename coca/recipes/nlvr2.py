"""NLVR2's files (arXiv 1811.00491), and statements about scenes in their place: what both fine-tunes learn from."""

from dataclasses import replace

from coca.config import Draft, Eval, Source, to_dict
from coca.recipes.tiny import scenes


def statements(config: Draft, tiny: bool, on_scenes: bool) -> None:
  """Sets sources and evaluation: NLVR2's train.json and dev.json in data/nlvr2, or scenes; `tiny` asks in the end."""
  if on_scenes:
    train, dev = (replace(scenes(split), text="first") for split in ("scenes_statements", "scenes_statements_val"))
    config.data.update(threads=1, tokenizer_texts=2000)
  else:
    train, dev = (
      Source(kind="folder", path="data/nlvr2", texts=f"data/nlvr2/{split}.json", text="first")
      for split in ("train", "dev")
    )
    config.data.tokenizer_texts = 100_000
  config.data.sources = {"nlvr2": to_dict(train)}
  often, limit = ("", 2000) if tiny else ("10%", 0)
  config.evals = {"nlvr2": to_dict(Eval(kind="classification", source=dev, every=often, limit=limit))}
