"""Classes and answers by the heads and decoders that were trained for them: parts of `ContrastiveCaptioner`."""

from collections.abc import Sequence

import jax
import numpy as np

from coca.config.special import Special
from coca.data import tasks
from coca.data.questions import clean, encode_candidates
from coca.decoding.settings import answer_decoding
from coca.inference.images import as_examples, as_list, as_videos


def class_probabilities(model, images, texts, skip_broken: bool, frames: int = 0) -> np.ndarray:
  """`ContrastiveCaptioner.classify` by the class head of the model."""
  settings, length = model.config.classification, model.config.model.text.length
  if not settings.weight:
    raise ValueError(
      "this model has no class head (config.classification.weight is 0): name the labels to choose from, or train "
      "one with configs/finetune_classify.py"
    )
  frames = frames or settings.frames
  if settings.frame_positions and frames != settings.images:
    raise ValueError(
      f"frames is {frames}: this model's class head tells {settings.images} frames apart, and takes these"
    )
  if frames and settings.pairs:
    raise ValueError(f"frames is {frames}: this model's class head reads two images and a text, and no videos")
  examples = as_videos(images, frames) if frames else as_examples(images, model.config)
  if model.config.has_text_head != (texts is not None):
    raise ValueError(f"texts: this model's class head reads {'images alone' if texts else 'an image and a text'}")
  texts = [texts] * len(examples) if isinstance(texts, str) else texts
  if texts is not None and len(texts) != len(examples):
    raise ValueError(f"{len(examples)} images and {len(texts)} texts; give one for each")

  def prepare(i):
    return {} if texts is None else {"text": model.tokenizer.encode(texts[i], length)}

  def classify(batch):
    return jax.nn.softmax(model.forward.classify(model.params, batch["image"], batch.get("text")))

  unit = "videos" if frames else "images"
  return model.see(examples, skip_broken, classify, (settings.classes,), prepare, unit, frames)[0]


def answers_of(
  model, images, questions, answers: Sequence[str], rank: int, skip_broken: bool, frames: int = 0
) -> list[str | None]:
  """`ContrastiveCaptioner.answer`."""
  config, tasked = model.config, model.config.model.poses_tasks
  if isinstance(answers, str):
    raise ValueError(f"answer takes a list of answers to choose from, not {answers!r}")
  answers = list(answers)
  if rank < 1:
    raise ValueError(f"rank is {rank}; 1 answer or more is scored whole")
  images = as_videos(images, frames) if frames else as_list(images)
  questions = [clean(q) for q in ([questions] * len(images) if isinstance(questions, str) else questions)]
  if len(questions) != len(images) or not all(q.strip() for q in questions):
    raise ValueError(f"{len(images)} images and {len(questions)} questions; give one for each that is not empty")
  if config.has_text_head:
    unknown = [answer for answer in answers if answer not in model.labels]
    if unknown:
      raise ValueError(f"answers: {unknown[0]!r} is none of the model's {len(model.labels)} classes (model.labels)")
    of = np.array([model.labels.index(answer) for answer in answers or model.labels])
    p = class_probabilities(model, images, questions, skip_broken, frames)
    return [None if np.isnan(row).any() else model.labels[of[row[of].argmax()]] for row in p]
  if not config.answering.weight and (not tasked or len(answers)):
    lacks = "ranks no answers" if tasked else "answers no questions"
    raise ValueError(f"this model {lacks} (config.answering.weight is 0); configs/blip_vqa.py trains one")
  length, decoding = config.model.text.length, answer_decoding(config.answering.length)
  candidates = encode_candidates(answers, model.tokenizer, length) if len(answers) else None
  special = Special(model.tokenizer.bos, model.tokenizer.eos)

  def prepare(i):
    text, encode = questions[i], model.tokenizer.encode
    return {"question": tasks.read(model.tokenizer, config.model, text) if tasked else encode(text, length)}

  def write(batch):
    image = batch["image"]._replace(tags=batch["question"]) if tasked else batch["image"]
    encoded = model.forward.encode(model.params, image)
    if candidates is not None:
      return model.forward.rank_answers(model.params, encoded, batch["question"], candidates, min(rank, len(answers)))
    return model.forward.answer(model.writer, encoded, batch["question"], decoding, special=special).text[:, 0]

  shape = () if len(answers) else (decoding.max_length,)
  found, broken = model.see(images, skip_broken, write, shape, prepare, "answers", frames)
  texts = [answers[i] for i in found] if len(answers) else [model.tokenizer.decode(row[1:]) for row in found]
  return [None if i in broken else text for i, text in enumerate(texts)]
