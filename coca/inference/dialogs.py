"""Answers within a dialog by a loaded model: `coca.inference.captioner.ContrastiveCaptioner.judge`."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from coca.data.dialogs import row
from coca.data.records import Said


def judge(model: Any, images: Sequence, captions, questions, answers, rounds, skip_broken: bool) -> np.ndarray:
  """Probabilities, float32 [N, A]; arguments and errors as of `ContrastiveCaptioner.judge`."""
  if isinstance(answers, str):
    raise ValueError(f"judge takes a list of possible answers, not {answers!r}")
  config, tokenizer, answers = model.config, model.tokenizer, list(answers)
  if not config.dialog.weight:
    raise ValueError("this model reads no dialogs (config.dialog.weight is 0); configs/blip_visdial.py trains one")
  if not answers:
    raise ValueError("answers: judge takes a list of possible answers, and there are none")
  captions, questions = ([x] * len(images) if isinstance(x, str) else list(x) for x in (captions, questions))
  if not len(images) == len(captions) == len(questions):
    raise ValueError(
      f"{len(images)} images, {len(captions)} captions and {len(questions)} questions; give one for each"
    )

  def prepare(i):
    said = Said(captions[i], tuple((asked, given) for asked, given in rounds))
    ids = [row(said, questions[i], answer, tokenizer, config.dialog.length) for answer in answers]
    return {"text": tokenizer.encode(captions[i], config.model.text.length), "dialog": np.stack(ids)}

  def probabilities(batch):
    encoded = model.forward.encode(model.params, batch["image"])
    return jax.nn.sigmoid(model.forward.judge(model.params, encoded, batch["text"], batch["dialog"]))

  return model.see(images, skip_broken, probabilities, (len(answers),), prepare, "questions")[0]
