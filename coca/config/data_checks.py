"""Checks of the settings of data: sources, what is made of their records, and evaluators; part of `checks`."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from PIL import ImageColor

from coca.config.class_checks import check_class_evaluator, check_videos
from coca.config.data import ORIGINS, Eval, Scenes, Source
from coca.config.need import need
from coca.config.settings import Config


def check_data(c: Config) -> None:
  """Raises ValueError if `data` or `evals` hold what they may not."""
  data, has_answering = c.data, c.answering.weight > 0
  need(
    0 < data.crop[0] <= data.crop[1] <= 1,
    f"config.data.crop is {data.crop}; it takes the smallest and largest share of the area, in (0, 1]",
  )
  need(
    not data.resize or (data.resize >= c.model.image.size and data.crop == (1, 1) and not data.squash),
    f"config.data.resize {data.resize} needs to be config.model.image.size {c.model.image.size} or more, with "
    "config.data.crop (1, 1) and config.data.squash False; or set it to 0",
  )
  count, magnitude = data.rand_augment
  need(
    not c.data.swap or c.classification.pairs,
    "config.data.swap needs config.classification.images 2: one image has nothing to change places with",
  )
  need(
    count >= 0 and 0 <= magnitude <= (30 if data.rand_augment_kind == "google" else 10),
    f"config.data.rand_augment is {data.rand_augment}; it takes a number of operations (0: none) and their "
    "magnitude, 0 to 10, or to 30 with config.data.rand_augment_kind 'google'",
  )
  try:
    ImageColor.getcolor(data.background, "RGB")
  except ValueError:
    raise ValueError(
      f"config.data.background is {data.background!r}; it takes a colour such as 'white' or '#ffffff'"
    ) from None
  if data.embeddings:
    _embeddings(c)
  for name, source in data.sources.items():
    where = f"config.data.sources.{name}"
    check_source(source, where)
    _regions(c, source, where)
    check_videos(c, source, where)
    need(
      not source.text_only or c.model.kind == "simvlm",
      f"{where}.text_only needs config.model.kind 'simvlm': other models learn from images",
    )
    need(
      bool(source.task) == c.model.poses_tasks,
      f"{where}.task is {source.task!r} and config.model.kind {c.model.kind!r}: 'vl_t5' and 'vl_bart' need a task, "
      "others take none",
    )
    need(
      source.task != "denoise text" or c.model.kind == "vl_bart",
      f"{where}.task 'denoise text' needs config.model.kind 'vl_bart', which has <mask>; say 'span prediction'",
    )
    need(
      bool(source.question_key) == (has_answering or c.answers_by_classes or source.task == "vqa"),
      f"{where}.question_key is {source.question_key!r} and "
      f"config.answering.weight {c.answering.weight}: batches of questions need both, others neither; of 'vl_t5' and "
      f"'vl_bart' those of task 'vqa' need questions, and it is {source.task!r}; with config.classification.pool "
      "'text' all sources have questions, or none",
    )
    need(
      _has_dialogs(source) == (c.dialog.weight > 0),
      f"{where} {'holds' if _has_dialogs(source) else 'holds no'} dialogs, and config.dialog.weight is "
      f"{c.dialog.weight}: sources of kind 'dialogs', and the splits 'scenes_dialogs...' of 'builtin', go with it",
    )
    need(
      c.contrastive.texts == 1 or not source.sidecars or source.sample == "image",
      f"{where}.sample 'text' makes an example of each text, and config.contrastive.texts {c.contrastive.texts} wants "
      "several in one; say sample 'image'",
    )
  weights = [data.sources[name].weight for name in sorted(data.sources)]
  need(
    not any(weights) or min(weights) > 0,
    f"config.data.sources.*.weight are {weights}; they have to be above 0, or 0 for all",
  )
  for name, e in c.evals.items():
    check_evaluator(c, e, f"config.evals.{name}")


def _has_dialogs(source: Source) -> bool:
  return source.kind == "dialogs" or (source.kind == "builtin" and source.split.startswith("scenes_dialogs"))


def _embeddings(c: Config) -> None:
  others, data, classes = max(x.weight for x in (c.captioning, c.matching)), c.data, c.classification
  need(
    c.model.kind == "coca" and not others,
    "config.data.embeddings take the place of an image encoder of config.model.kind 'coca', for the contrastive or the "
    "classification loss alone; set the weights of others to 0, or it to ''",
  )
  if classes.weight:
    need(
      not c.contrastive.weight and classes.pool != "text" and not (classes.frames or classes.mixup or classes.cutmix),
      "config.data.embeddings of a classifier need its loss alone, of images alone: set config.contrastive.weight, "
      "config.classification.mixup and cutmix to 0, and config.classification.pool to another than 'text'",
    )
  else:
    need(
      c.model.poolers.kind == "class_token" and data.embeddings_type == "float32",
      "config.data.embeddings are states of the class token for the contrastive loss: they need "
      "config.model.poolers.kind 'class_token' and config.data.embeddings_type 'float32'; or set it to ''",
    )
  need(
    c.optim.lr_scale.get("image_encoder") == 0,
    "config.data.embeddings need an image encoder that stays as it is: set config.optim.lr_scale.image_encoder to 0",
  )
  need(
    not any(source.videos for source in data.sources.values()),
    "config.data.embeddings are of images, and config.data.sources has videos; set it to ''",
  )
  changes = data.resize and not classes.weight, data.flip, data.rand_augment[0], c.model.image.patch_dropout, c.stages
  need(
    data.crop == (1, 1) and not any(changes),
    "config.data.embeddings need images that are the same each time: set config.data.crop to (1, 1), config.data.flip, "
    "resize, rand_augment and config.model.image.patch_dropout to 0, and leave config.stages out",
  )


def _regions(c: Config, s: Source, where: str) -> None:
  kind = c.model.kind
  need(
    s.regions == c.model.reads_regions,
    f"{where}.regions is {s.regions} and config.model.kind {kind!r}, which reads "
    f"{'regions' if c.model.reads_regions else 'images'}: say {where}.regions={c.model.reads_regions}",
  )


def check_evaluator(c: Config, e: Eval, where: str) -> None:
  """Raises ValueError if an evaluator of a config, or one beside it, makes no sense for its model."""
  check_source(e.source, f"{where}.source")
  _regions(c, e.source, f"{where}.source")
  need(not e.source.task, f"{where}.source.task: the evaluator's kind says it; leave it empty")
  need(not e.source.text_only, f"{where}.source.text_only: an evaluation needs images; set it to False")
  need(
    bool(e.source.question_key) == (e.kind == "vqa"),
    f"{where}.source.question_key is "
    f"{e.source.question_key!r} and kind {e.kind!r}: a vqa evaluator needs questions, others take none",
  )
  need(
    (e.source.kind == "pairs") == (e.kind == "pairs"),
    f"{where}.source.kind is {e.source.kind!r} and kind {e.kind!r}: a pairs evaluator goes with a source of that kind",
  )
  need(
    _has_dialogs(e.source) == (e.kind == "dialogs"),
    f"{where}.source and kind {e.kind!r}: a dialogs evaluator goes with a source of kind 'dialogs' or a split "
    "'scenes_dialogs...' of 'builtin', others with none of these",
  )
  need(
    e.kind != "dialogs" or c.dialog.weight,
    f"{where}: a dialogs evaluator needs config.dialog.weight above 0: the model was not trained to judge answers",
  )
  need(
    e.kind != "pairs" or c.contrastive.heads or c.matching.weight or (c.model.writes and not c.answering.weight),
    f"{where}: a pairs evaluator needs embeddings, a matching head or a decoder of captions: this model has none",
  )
  need(
    c.contrastive.heads or e.kind not in ("zero_shot", "retrieval", "matching"),
    f"{where}: a {e.kind} evaluator compares embeddings, and without a contrastive loss "
    "(config.contrastive.weight is 0) the model makes none",
  )
  need(
    e.kind != "captions" or (c.model.writes and not c.answering.weight),
    f"{where}: a captions evaluator needs a decoder, config.model.text.multimodal_layers above 0 in a kind other than "
    "'albef', and config.answering.weight 0: this model writes no captions",
  )
  need(
    e.kind != "matching" or c.matching.weight,
    f"{where}: a matching evaluator needs config.matching.weight above 0: the model has no matching head",
  )
  need(
    e.kind != "vqa" or c.answering.weight or ((c.model.poses_tasks or c.has_text_head) and not e.answers),
    f"{where}: a vqa evaluator needs config.answering.weight above 0: the model was not trained to answer"
    + ", or writes answers (VL-T5, VL-BART) or chooses a class, and ranks none: leave `answers` empty"
    * bool(e.answers),
  )
  if e.kind == "zero_shot":
    need(e.templates, f"{where}: a zero_shot evaluator needs templates; ('{{}}',) takes the bare class names")
    check_prompts(e.templates, f"{where}.templates")
  need(
    not e.pixel_neighbours or e.pixel_neighbours in c.data.sources,
    f"{where}.pixel_neighbours is '{e.pixel_neighbours}', which is no training source; config.data.sources has: "
    f"{', '.join(c.data.sources) or 'none'}",
  )
  need(
    not e.pixel_neighbours or e.kind in ("zero_shot", "captions", "retrieval"),
    f"{where}.pixel_neighbours {e.pixel_neighbours!r} is for kinds 'zero_shot', 'captions' and 'retrieval', not "
    f"'{e.kind}'",
  )
  need(not e.classes or e.kind == "zero_shot", f"{where}.classes {e.classes!r} is for kind 'zero_shot', not '{e.kind}'")
  _captions(e, where)
  need(not e.rerank or e.kind == "retrieval", f"{where}.rerank {e.rerank} is for kind 'retrieval', not '{e.kind}'")
  need(
    not e.source.videos or (e.kind not in ("matching", "pairs") and not e.pixel_neighbours),
    f"{where}.source.videos is not for kinds 'matching' and 'pairs', nor beside pixel_neighbours",
  )
  looks = e.rerank or e.kind in ("captions", "vqa")
  need(
    not (e.source.videos and looks) or c.model.kind in ("coca", "blip", "albef"),
    f"{where}.source.videos with kind {e.kind!r}: of config.model.kind {c.model.kind!r} no decoder looks at videos, of "
    "CoCa and BLIP one does",
  )
  check_class_evaluator(c, e, where)
  need(e.frames > 0, f"{where}.frames is {e.frames}; of a video one frame or more is looked at")
  need(
    not e.rerank or c.matching.weight > 0,
    f"{where}.rerank {e.rerank} needs a matching head (config.matching.weight above 0); 0 ranks by cosines alone",
  )


def _captions(e: Eval, where: str) -> None:
  for name in ("beams", "decoding", "prompt", "java_metrics"):
    value = getattr(e, name)
    need(
      e.kind == "captions" or value == getattr(Eval(), name),
      f"{where}.{name} {value} is for kind 'captions', not '{e.kind}'",
    )
  need(
    not e.annotations or e.kind in ("captions", "vqa"),
    f"{where}.annotations {e.annotations!r} is for kinds 'captions' and 'vqa', not '{e.kind}'",
  )
  need(
    e.beams == 1 or e.decoding == Eval().decoding,
    f"{where}.beams {e.beams} stands in place of {where}.decoding, which is set too: say the beams there alone",
  )
  need(
    e.decoding.n == 1 or e.decoding.rerank,
    f"{where}.decoding.n {e.decoding.n}: one caption an image is judged; leave n at 1, or set rerank, which chooses",
  )


def check_source(s: Source, where: str) -> None:
  """Raises ValueError if the settings make no sense together; `where` is its name."""
  check_prompts(s.prompts, f"{where}.prompts")
  if s.scenes != Scenes():
    _scenes(s, f"{where}.scenes")
  need(
    not s.question_key or s.text_key,
    f"{where}.question_key is {s.question_key!r}; set {where}.text_key to what holds the answers",
  )
  need(
    not s.question_key or not s.sidecars,
    f"{where}.question_key and {where}.sidecars are both set: sidecars hold captions, no answers",
  )
  for name, kinds in (
    ("text_lines", ("webdataset", "folder")),
    ("label_key", ("webdataset", "parquet", "folder")),
    ("texts", ("tfds", "webdataset", "parquet", "folder", "pairs", "dialogs")),
    ("subset", ("tfds", "webdataset", "parquet", "folder")),
    ("videos", ("webdataset", "folder", "builtin")),
  ):
    need(
      not getattr(s, name) or s.kind in kinds,
      f"{where}.{name} is {getattr(s, name)!r}: it is for kind {' or '.join(map(repr, kinds))}, not {s.kind!r}",
    )
  need(
    s.kind != "builtin" or not s.videos or s.split.startswith("scenes_videos"),
    f"{where}.videos is True: of kind 'builtin', the splits 'scenes_videos...' are videos, and {s.split!r} is none",
  )
  need(
    not s.texts or s.kind in ("folder", "pairs", "dialogs") or not (s.question_key or s.sidecars),
    f"{where}.texts joins captions; leave {where}.question_key and {where}.sidecars empty",
  )
  need(
    not s.regions or ((s.kind == "parquet" or s.split.startswith("scenes")) and not s.sidecars),
    f"{where}.regions is for kind 'parquet' and the splits 'scenes...' of 'builtin', without sidecars",
  )
  default = Source()
  changed = [
    name
    for name in ("sample", "origins", "min_matching", "min_contrastive")
    if getattr(s, name) != getattr(default, name)
  ]
  if changed and not s.sidecars:
    raise ValueError(f"{where}.{changed[0]} chooses among a CapFilt workdir's texts; set {where}.sidecars to one")
  for name in s.origins:
    need(name in ORIGINS, f"{where}.origins.{name}: no such origin; known: {', '.join(ORIGINS)}")
  values = s.origins.values()
  need(
    not values or (all(0 <= v < math.inf for v in values) and any(values)),
    f"{where}.origins is {s.origins}: weights are 0 or above, and one has to be above 0",
  )
  need(
    s.sample != "text" or set(values) <= {0.0, 1.0},
    f"{where}.origins is {s.origins}: with sample 'text' (each kept text is an example) it takes 0 and 1. To weigh "
    "origins, list a source for each and set their weights, or say sample 'image'",
  )
  need(
    s.sample != "image" or s.text != "first" or len(set(values) - {0.0}) <= 1,
    f"{where}.text 'first' draws nothing, so {where}.origins can't weigh; say text 'random'",
  )
  need(
    s.min_matching == -1 or 0 <= s.min_matching <= 1,
    f"{where}.min_matching {s.min_matching} is no probability; -1: as the sidecars have it",
  )
  need(
    s.min_contrastive == -2 or -1 <= s.min_contrastive <= 1,
    f"{where}.min_contrastive {s.min_contrastive} is no cosine; -2: as the sidecars have it",
  )


def _scenes(s: Source, where: str) -> None:
  scenes = s.scenes
  need(
    s.kind == "builtin" and s.split.startswith("scenes"),
    f"{where} is set, and the source is split {s.split!r} of kind {s.kind!r}: it is for the splits 'scenes...' of kind "
    "'builtin'",
  )
  for name, least, most in (
    ("seed", 0, 2**53),
    ("count", 1, 2**31 - 1),
    ("pixels", 16, 4096),
    ("objects", 1, 4),
    ("vocabulary", 1, 100),
    ("texts", 1, 100),
  ):
    value = getattr(scenes, name)
    need(least <= value <= most, f"{where}.{name} is {value}; it takes {least} to {most}")
  known = ("noto", "noto-v1", "fluent-3d", "fxemoji", "emojione", "fluent-emoji-flat", "twemoji")
  for style in scenes.styles:
    need(style in known, f"{where}.styles: there are no drawings in the style {style!r}; known: {', '.join(known)}")
  shares = asdict(scenes.noise)
  for name, share in shares.items():
    need(0 <= share <= 1, f"{where}.noise.{name} is {share}; a share is from 0 to 1")
  total = math.fsum(shares.values())
  need(total <= 1, f"{where}.noise: {' + '.join(shares)} is {total:g}; together they are 1 at most")


def check_prompts(prompts: Sequence[str], where: str) -> None:
  """Raises ValueError if a prompt has no place for the name."""
  for prompt in prompts:
    need(prompt.count("{}") == 1, f"{where}: the prompt {prompt!r} has to hold {{}} once, where the label's name goes")
