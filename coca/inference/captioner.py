"""A trained model to use: `coca.load(workdir)` embeds images and texts and writes captions.

    model = coca.load("runs/tiny")
    similarity = model.embed_images(["cat.jpg", "dog.png"]) @ model.embed_texts(["a cat", "a dog"]).T
    print(model.caption("cat.jpg"))

A working directory holds all it takes: `config.json` (`{"config": ..., "tokenizer_sha256": ...}`), `tokenizer.model`
and `checkpoints/`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from coca.config import Config
from coca.config.data_checks import check_prompts
from coca.config.special import Special, Tokenizer
from coca.data.prompts import ensemble, in_templates
from coca.decoding.decode import prompts
from coca.decoding.settings import check_decoding_model, make_decoding
from coca.devices.host import round_up
from coca.inference import dialogs
from coca.inference.asking import answers_of, class_probabilities
from coca.inference.batches import in_batches, seen
from coca.inference.forward import Forward
from coca.inference.images import as_list, as_videos, blank, decoded, prepared, prepared_video

BATCHES = (1, 8, 64)  # rows of a call before rounding up to the devices: one compiled program each


class ContrastiveCaptioner:
  """Parameters, tokenizer and compiled functions of one model, on the devices of one process.

  What takes images takes `skip_broken` too: an image that can't be read is then no error. Its row of the result is
  NaN, its text None, and a warning names it; all others keep their places.

  Args:
    config: the run's settings.
    tokenizer: the run's.
    forward: compiled functions.
    params: their parameters.
    labels: names of the class head's classes.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer, forward: Forward, params, labels: Sequence[str] = ()):
    self.config, self.tokenizer, self.forward, self.params = config, tokenizer, forward, params
    self.labels = tuple(labels)
    self._batches = sorted({round_up(n, forward.mesh) for n in BATCHES})

  def embed_images(self, images, skip_broken: bool = False) -> np.ndarray:
    """Contrastive embeddings of images.

    Args:
      images: a path, a URL, a PIL image or a uint8 array [H, W, 3], or a list or iterable of those; an array
        [N, H, W, 3]; or a folder, whose images are taken in the order of `coca.inference.images.images_in`.
      skip_broken: see above.

    Returns:
      float32 [N, E], unit length; N is 1 for a single image.

    Raises:
      ValueError: an image that cannot be read (names the file), an array of another type or shape, or a model trained
        without a contrastive loss.
      ImportError: a URL that takes a package which is not installed.
    """
    self._need_embeddings()
    return self.see(as_list(images), skip_broken, self._embed, self._embedding)[0]

  def embed_videos(self, videos, frames: int = 16, skip_broken: bool = False) -> np.ndarray:
    """Contrastive embeddings of videos: each the mean of its frames' (`coca.inference.forward.Forward.embed_images`).

    Args:
      videos: a path or URL, an array uint8 [F, H, W, 3], or a list of those; or a folder, whose videos are taken in
        the order of `coca.inference.images.images_in`.
      frames: that are looked at, evenly spread (`coca.data.videos`). 16 are CoCa's (section 4.2.2).
      skip_broken: see above.

    Returns:
      float32 [N, E], unit length.

    Raises:
      ValueError: as `embed_images`.
      ImportError: PyAV is not installed, or as `embed_images`.
    """
    self._need_embeddings()
    return self.see(as_videos(videos, frames), skip_broken, self._embed, self._embedding, unit="videos", frames=frames)[
      0
    ]

  def features(self, images, skip_broken: bool = False) -> np.ndarray:
    """Features for a classifier, float32 [N, F], of any length: what embeddings are projected from."""
    shape = (self.forward.feature_width,)
    return self.see(as_list(images), skip_broken, lambda x: self.forward.features(self.params, x["image"]), shape)[0]

  def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
    """Contrastive embeddings of a text or several: float32 [N, E], unit length. Long texts are cut.

    Raises:
      ValueError: a model trained without a contrastive loss.
      TypeError: something else than texts.
    """
    self._need_embeddings()
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
      if not isinstance(text, str):
        raise TypeError(f"embed_texts takes texts, not {type(text).__name__}")
    length = self.config.model.text.length
    return self._run(
      texts,
      lambda text: {"text": self.tokenizer.encode(text, length)},
      lambda batch: self.forward.embed_texts(self.params, batch["text"]),
      "texts",
      self._embedding,
    )

  def attention_maps(self, images, query: int | None = None, skip_broken: bool = False) -> np.ndarray:
    """Maps of a pooler's attention to images as the model sees them (`prepare`), by patch.

    Args:
      images, skip_broken: as for `embed_images`.
      query: of the generative pooler; None: the contrastive one. See `coca.models.coca.CoCa.attention_maps`.

    Returns:
      float32 [N, side, side], the attention's weights, mean over the heads.

    Raises:
      ValueError: as `embed_images`, or a model without such a pooler or query.
    """
    kind, poolers, text = self.config.model.kind, self.config.model.poolers, self.config.model.text
    has_none = poolers.kind in ("class_token", "mean") or not self.config.contrastive.heads
    if kind != "coca" or (query is None and has_none):
      raise ValueError("this model has no contrastive pooler to look through: a class token or a mean, or no embedding")
    queries = poolers.n_query - (poolers.kind == "openclip") if text.multimodal_layers else 0
    if query is not None and not 0 <= query < queries:
      raise ValueError(f"query {query}: this model has {queries} generative ones, counted from 0")
    side = self.config.model.image.size // self.config.model.image.patch

    def look(batch):
      contrastive, generative = self.forward.attention_maps(self.params, batch["image"])
      return contrastive if query is None else generative[:, query]

    return self.see(as_list(images), skip_broken, look, (side, side))[0]

  def score(self, images, texts: str | Sequence[str], skip_broken: bool = False) -> np.ndarray:
    """Cosine similarity of every image with every text: float32 [N, M]. Arguments and errors as above."""
    return self.embed_images(images, skip_broken) @ self.embed_texts(texts).T

  def match(self, images, texts: str | Sequence[str], skip_broken: bool = False) -> np.ndarray:
    """Probability that an image and a text match, by the matching head: BLIP's filter keeps a text from 0.5 on.

    Args:
      images, skip_broken: as for `embed_images`.
      texts: one for each image.

    Returns:
      float32 [N], of images[i] with texts[i].

    Raises:
      ValueError: as `embed_images`, a model without a matching head, or not as many texts as images.
    """
    if not self.config.matching.weight:
      raise ValueError(
        "this model was trained without a matching loss (config.matching.weight is 0): it has no "
        "matching head; configs/capfilt_filter.py trains one, and score() compares embeddings"
      )
    images, texts = as_list(images), [texts] if isinstance(texts, str) else list(texts)
    if len(images) != len(texts):
      raise ValueError(f"{len(images)} images and {len(texts)} texts; match takes a text for each image")
    length = self.config.model.text.length

    def prepare(i):
      return {"text": self.tokenizer.encode(texts[i], length)[None]}

    def match(batch):
      encoded = self.forward.encode(self.params, batch["image"])
      return self.forward.score(self.params, encoded._replace(embedding=None), batch["text"]).matching[:, 0]

    return self.see(images, skip_broken, match, (), prepare, "pairs")[0]

  def classify(
    self,
    images,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] = ("{}",),
    skip_broken: bool = False,
    texts: str | Sequence[str] | None = None,
    frames: int = 0,
  ) -> np.ndarray:
    """Probabilities of labels, zero-shot: the softmax over labels of cosine / learned temperature (CLIP section 3.1.2).

    Without labels, those of the classes that the model was trained on, by its class head: `model.labels`.

    Args:
      images, skip_broken: as for `embed_images`.
      labels: names of the classes. None: `model.labels`, of a model with a class head.
      templates: prompts with {} where the name goes, such as `coca.data.prompts.CLIP_IMAGENET`; their mean counts.
      texts: of a class head that reads an image and a text: one for all images, or one for each. Where it reads two,
        `images` are pairs: [("left.png", "right.png"), ...].
      frames: above 0, `images` are videos as `embed_videos` takes them, of which so many frames are looked at. 0: they
        are images, but for a class head that was trained on videos: its number of frames is then taken.

    Returns:
      float32 [N, len(labels)]; rows sum to 1. `labels[p.argmax()]` is the likeliest one.

    Raises:
      ValueError: no labels, and no class head; labels and `texts`; a template without {}; or as `embed_images`.
    """
    if labels is None:
      return class_probabilities(self, images, texts, skip_broken, frames)
    if texts is not None:
      raise ValueError("classify takes labels, zero-shot, or texts, which a class head reads; not both")
    labels = labels if isinstance(labels, str) else list(labels)
    if isinstance(labels, str) or not labels:
      raise ValueError(f"classify takes a list of labels to choose from, not {labels!r}")
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    check_prompts(templates or ("",), "classify's templates")
    self._need_embeddings()
    classes = ensemble(self.embed_texts(in_templates(labels, templates)), len(templates))
    scale = np.exp(np.asarray(self.params["temperature"]["log_scale"]))
    embedded = self.embed_videos(images, frames, skip_broken) if frames else self.embed_images(images, skip_broken)
    logits = scale * (embedded @ classes.T)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)

  def judge(self, images, captions, questions, answers: Sequence[str], rounds=(), skip_broken: bool = False):
    """Probabilities that answers within a dialog are true, of a model of configs/blip_visdial.py.

    Args:
      images, skip_broken: as for `embed_images`.
      captions, questions: one for all images, or one for each.
      answers: the possible ones.
      rounds: questions that were asked before, with the answers that were given.

    Returns:
      float32 [N, len(answers)]; rows do not sum to 1.

    Raises:
      ValueError: as `embed_images`, a model that reads no dialogs, no answers, or not as many texts as images.
    """
    return dialogs.judge(self, as_list(images), captions, questions, answers, rounds, skip_broken)

  def caption(
    self,
    images,
    prompt: str | Sequence[str] | None = None,
    *,
    ids: Sequence[int] | None = None,
    skip_broken: bool = False,
    frames: int = 0,
    **settings,
  ):
    """Captions: greedy, sampled (`strategy="sample"`) or by beam search (`strategy="beam"`).

        model.caption("cat.jpg")
        model.caption(folder, "a photo of", strategy="beam", beams=6)
        model.caption(images, strategy="sample", n=8, top_p=0.9, rerank=True, seed=1)

    Args:
      images, skip_broken: as for `embed_images`.
      prompt: what each caption begins with, or a beginning for each image. None: what the model learned to go on
        from (`config.data.prompt`, usually nothing), which is then left out of the captions.
      ids: a number for each image, from which its samples are drawn wherever it stands; None: its place in `images`.
      frames: above 0, `images` are videos as `embed_videos` takes them, and the decoder looks at the tokens of so many
        frames at once (`coca.inference.forward.Forward.encode`).
      **settings: of `coca.decoding.settings.Decoding`.

    Returns:
      a text for every image, also for a single one; with n above 1 a list of n texts for every image.

    Raises:
      ValueError: as `embed_images`, a model without a multimodal decoder, settings that make no sense, or a prompt that
        leaves no room.
      TypeError: a setting that `coca.decoding.settings.Decoding` lacks; a name of transformers is answered with ours.
    """
    decoding, images = make_decoding(**settings), as_videos(images, frames) if frames else as_list(images)
    check_decoding_model(decoding, self.config)
    own = self.config.data.prompt if prompt is None else ""
    given = [prompt or own] * len(images) if prompt is None or isinstance(prompt, str) else list(prompt)
    ids = np.arange(len(images)) if ids is None else np.asarray(ids)
    if not len(images) == len(given) == len(ids):
      raise ValueError(f"{len(images)} images, {len(given)} prompts and {len(ids)} ids; give one for each image")
    length = decoding.max_length or self.config.model.text.length
    special = Special(self.tokenizer.bos, self.tokenizer.eos)
    starts, lengths = prompts(self.tokenizer, given, length)

    def prepare(i):
      return {"ids": np.uint32(ids[i]), "prompt": starts[i], "lengths": lengths[i]}

    def write(batch):
      encoded = self.forward.encode(self.params, batch.pop("image"))
      return self.forward.caption(self.writer, encoded, decoding, special=special, **batch).text

    texts, broken = self.see(images, skip_broken, write, (decoding.n, length), prepare, "captions", frames)
    begins = lengths if own else np.ones_like(lengths)  # the first id is BOS
    texts = [[self.tokenizer.decode(row[b:]) for row in rows] for rows, b in zip(texts, begins, strict=True)]
    texts = [rows[0] for rows in texts] if decoding.n == 1 else texts
    return [None if i in broken else text for i, text in enumerate(texts)]

  def answer(
    self,
    images,
    questions: str | Sequence[str],
    answers: Sequence[str] = (),
    rank: int = 128,
    skip_broken: bool = False,
    frames: int = 0,
  ) -> list[str | None]:
    """Answers to questions about images, or videos, of a model that was fine-tuned for them (configs/blip_vqa.py,
    configs/finetune_vqa.py).

    Args:
      images, skip_broken: as for `embed_images`.
      questions: one for all images, or one for each.
      answers: the possible ones, of which the best is taken; without any, an answer is written, by beam search.
      rank: the number of possible answers, the likeliest by their first token, that are scored whole.
      frames: as for `caption`. BLIP looks at 16.

    Returns:
      a text for each image.

    Raises:
      ValueError: as `embed_images`, a model that was not trained to answer, an empty question, not as many questions as
        images, or a possible answer that is too long.
    """
    return answers_of(self, images, questions, answers, rank, skip_broken, frames)

  def see(self, images, skip_broken: bool, function, shape, prepare=lambda i: {}, unit="images", frames: int = 0):
    """`function` over batches of images, or of videos that many frames, and what `prepare(i)` puts beside the i-th; and
    why some of them could not be read, by their numbers."""
    read, empty = self.prepare, blank(self.config, bool(images) and isinstance(images[0], tuple))
    if frames:
      read, empty = functools.partial(prepared_video, config=self.config, frames=frames), np.stack([empty] * frames)
    sizes = self._batches[:2] if frames else self._batches

    def run(items, row):
      return self._run(items, row, function, unit, shape, sizes)

    return seen(images, read, empty, skip_broken, prepare, run)

  def _run(self, items: Sequence, prepare: Callable, function: Callable, unit: str, shape: tuple, sizes=()):
    """`in_batches` on this model's devices."""
    sizes = sizes or self._batches
    return in_batches(items, prepare, lambda batch: function(self.forward.put(batch)), sizes, unit, shape)

  def _embed(self, batch):
    return self.forward.embed_images(self.params, batch["image"])

  def prepare(self, image):
    """Any accepted image as uint8 [S, S, 3], prepared as in evaluation. Errors as those of `embed_images`.

    A model that reads regions takes a `coca.data.records.Detected`, and `Regions` come of it. Of a pair come both.
    """
    return prepared(image, self.config, self.tokenizer)

  def decode(self, image: bytes) -> np.ndarray:
    """An encoded image (JPEG, PNG, ...) as uint8 [S, S, 3], as in evaluation. Raises BadRecord."""
    return decoded(image, self.config)

  def _need_embeddings(self) -> None:
    if not self.config.contrastive.heads:
      raise ValueError(
        "this model was trained without a contrastive loss (config.contrastive.weight is 0): it makes no embeddings"
      )

  @functools.cached_property
  def writer(self):
    """The parameters as `Forward.caption` takes them."""
    return self.forward.writer(self.params)

  @property
  def _embedding(self) -> tuple[int]:
    return (self.config.model.embed_dim or self.config.model.text.width,)
