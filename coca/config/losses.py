"""Settings of the losses."""

from dataclasses import dataclass
from typing import Literal

from coca.config.durations import Duration


@dataclass(frozen=True, kw_only=True)
class Contrastive:
  """CoCa equation 2, or SigLIP's pairwise sigmoid (arXiv 2303.15343).

  From `momentum` on: momentum distillation (ALBEF, arXiv 2107.07651, sections 3.3 and 3.4; BLIP section 3.2), for the
  softmax of 'blip' and 'albef'.
  """

  # Weight of the loss. 0: the model makes no embeddings, unless `keep` says so.
  weight: float = 1.0
  # With weight 0, the model makes its embeddings all the same: what is theirs alone ([CLS], the projections, the
  # contrastive pooler, the temperature) stays as `init_from` has it. Otherwise it is not in the model.
  keep: bool = False
  # 'sigmoid' is SigLIP's; 'sigmoid_ring' is the same loss without the global matrix.
  loss: Literal["softmax", "sigmoid", "sigmoid_ring"] = "softmax"
  # Of image-to-text and text-to-image. 'mean': as all public code. 'sum': as equation 2 is printed. The paper's weights
  # of 1 and 2 want one convention for both losses: with means here and over tokens a CoCa-Base begins with terms of
  # 1 x ln 65,536 = 11.09 and 2 x ln 64,000 = 22.13, with the sum here of 22.18 and 22.13. --dry_run has a config's.
  directions: Literal["sum", "mean"] = "mean"
  # Texts of an image that are compared with it. Of several the loss is the mean: the images with each one's first text,
  # then with each one's second, and so on, each time with negatives of their own (TIPS, arXiv 2410.16512, has two, web
  # and synthetic, with an image embedding for each). The other losses see the first alone.
  texts: int = 1
  # What other pairs' texts are that equal one's own (of the same labels, in any prompt and order, or of the same
  # words). 'negatives': as all others. 'mask': left out. 'positives': they match (UniCL).
  equal_texts: Literal["negatives", "mask", "positives"] = "mask"
  # Share of the softmax' target that is spread over all that count. ALIGN's is 0.1.
  label_smoothing: float = 0.0
  # Initial temperature. SigLIP's is 0.1.
  temperature: float = 0.07
  # Cap of 1 / temperature; 0: none. The default is CLIP's; CoCa has no cap, BLIP's is 1000.
  max_scale: float = 100.0
  # Floor of 1 / temperature. BLIP's is 2.
  min_scale: float = 0.0
  # Initial bias of the logits. Of the sigmoid only (SigLIP).
  bias: float = -10.0
  # Decay of the momentum encoders' average. BLIP's is 0.995. 0: there are none, and the next three mean nothing.
  momentum: float = 0.0
  # Embeddings of earlier steps that are negatives too (BLIP).
  queue: int = 57_600
  # Share of the targets that the momentum encoders' similarities make (BLIP).
  soft_targets: float = 0.4
  # Time until that share is reached, in a line from 0. The default is BLIP's first 2 of 20 epochs.
  soft_ramp: Duration = "10%"

  @property
  def heads(self) -> bool:
    """True if the model makes embeddings."""
    return self.weight > 0 or self.keep


@dataclass(frozen=True, kw_only=True)
class Captioning:
  """CoCa equation 3."""

  # Weight of the loss. CoCa's, beside 1 for the contrastive loss (section 4.1).
  weight: float = 2.0
  # 'mean': over the tokens of the global batch, as most public code. 'per_text': over each text's own tokens and then
  # over texts (big_vision, so Cap and CapPa). 'sum': over a text's tokens, mean over texts, as equation 3 is printed.
  tokens: Literal["mean", "per_text", "sum"] = "mean"
  # Share of the target that is spread over all words (BLIP's code 0.1).
  label_smoothing: float = 0.0
  # Tokens at the beginning, those of `config.data.prompt`, that are given and not learned.
  prompt_tokens: int = 0
  # Share of the examples whose words are all predicted at once, from [MASK]s that see each other (CapPa, arXiv
  # 2306.07915: 0.75). In training only; texts are written word by word.
  parallel: float = 0.0
  # Tokens of a device whose logits are held at once.
  chunk: int = 1024


@dataclass(frozen=True, kw_only=True)
class Matching:
  """Image-text matching (BLIP, arXiv 2201.12086, section 3.2): does a text belong to an image?

  The head is CoCa's for multimodal classification (section 4.2.3, appendix B): a pooler with one query over the
  multimodal decoder's outputs. Each pair comes with two hard negatives, drawn by the contrastive similarities.
  """

  # Weight of the loss. 0: the model has no matching head.
  weight: float = 0.0
  # Added to each negative's probability of being drawn. BLIP's pre-training has 1e-4.
  floor: float = 0.0
  # Negatives are drawn by the similarity to embeddings of the momentum encoders (BLIP's pre-training).
  slow_keys: bool = False
  # Consecutive pairs that are each other's negatives. 0: the whole batch. BLIP: a GPU's pairs.
  group: int = 0


@dataclass(frozen=True, kw_only=True)
class Answering:
  """Visual question answering (BLIP section 5.3 and Figure 5): a decoder writes answers from a question's states."""

  # Weight of the loss. 0: the batches have no answers.
  weight: float = 0.0
  # Different answers of a question at most. Of more, the most frequent are taken.
  answers: int = 10
  # Tokens of an answer, BOS and EOS included. Longer ones are cut, and have no EOS.
  length: int = 10


@dataclass(frozen=True, kw_only=True)
class Masked:
  """Masked language modelling (ALBEF, arXiv 2107.07651, section 3.2): hidden words are told from the others and the
  image. With momentum encoders, theirs are `config.contrastive.soft_targets` of the targets too."""

  # Weight of the loss. ALBEF's is 1. 0: the model has no head for it.
  weight: float = 0.0
  # Share of the words that are hidden (section 3.2).
  share: float = 0.15
  # Which words are drawn. 'each': each one with `share`, but never the last token, EOS. 'number': that share of a
  # text's tokens, BOS and EOS included, rounded and 1 at least; EOS may be one of them, so that texts learn to end
  # (VinVL).
  draw: Literal["each", "number"] = "each"
  # Words of a text that are hidden at most, so many states of it reach the vocabulary. Not in the paper: of texts of
  # 25 tokens, 2 in 10,000 would have more.
  most: int = 10


@dataclass(frozen=True, kw_only=True)
class Dialog:
  """Answers within a dialog, true or false (BLIP, arXiv 2201.12086, section 5.5), of models of kind 'blip'.

  The text encoder reads the image's caption; the image-grounded encoder reads question and answer behind what was said
  before, and looks at the image and the caption's states. The authors' code for it is not public.
  """

  # Weight of the loss, that of image-text matching. 0: the model reads no dialogs.
  weight: float = 0.0
  # Tokens of a question with its answer and what was said before, [Encode] included. Of longer ones the oldest rounds
  # are left out. Not in the paper.
  length: int = 128
  # Wrong answers beside each right one, drawn from the other candidates. Not in the paper: of the matching loss in
  # pre-training, each pair has two.
  negatives: int = 2


@dataclass(frozen=True, kw_only=True)
class Classification:
  """Classification of an image, or of an image and a text (CoCa sections 3.1, 4.2.1 and 4.2.3): softmax cross-entropy.

  A record without a label counts for the other losses alone; where there are none, it is unusable.
  """

  # Weight of the loss. 0: the model has no class head.
  weight: float = 0.0
  # Classes: as many as the training sources' labels have names. Of answers to questions, the paper has 3,129.
  classes: int = 0
  # Of sources with questions: a text file with the answers that are classes, one a line. Empty: the most frequent of
  # the training data, of `config.data.tokenizer_texts` that are looked at.
  answers: str = ""
  # What the head reads. 'attention': an attentional pooler with one query over the encoder's tokens (section 4.2.1).
  # 'class_token': the encoder's class token (ViT, arXiv 2010.11929). 'mean': the mean of the patches' tokens (arXiv
  # 2205.01580). 'text': an attentional pooler with one query over the multimodal decoder's outputs of the text, or of
  # a question (section 4.2.3); of 'blip' an MLP on the state of [Encode].
  pool: Literal["attention", "class_token", "mean", "text"] = "attention"
  # Images of an example. 2, of pool 'text': the text is read over each of them, and the head reads both outputs, one
  # behind the other, as CoCa's does in NLVR2 (section 4.2.3). 'blip' takes 2: its text is read once, with a
  # cross-attention for each in every layer (arXiv 2201.12086, section 5.4). Of sources with `videos` and pool
  # 'attention': frames of each, evenly spread (coca/data/videos.py), to whose tokens the pooler attends all at once
  # (section 4.2.1).
  images: int = 1
  # A learned vector for each frame is added to its tokens, so that their order counts. The paper says nothing of it:
  # its pooler sees the frames of a video as a set, and a film backwards as the film.
  frame_positions: bool = False
  # Share of the target that is spread over all classes.
  label_smoothing: float = 0.0
  # Two images are blended, and their labels, in shares drawn from Beta(mixup, mixup), the same for a whole batch (arXiv
  # 1710.09412). 0: none.
  mixup: float = 0.0
  # A box of one image lies in the other, its share of the area drawn from Beta(cutmix, cutmix) (arXiv 1905.04899).
  # With `mixup` beside it, each batch is given one of them, by chance. 0: none.
  cutmix: float = 0.0

  @property
  def pairs(self) -> bool:
    """True for a head that reads a text over two images."""
    return self.pool == "text" and self.images == 2

  @property
  def frames(self) -> int:
    """The number of frames of a video; 0: examples are images."""
    return self.images if self.pool != "text" and self.images > 1 else 0


@dataclass(frozen=True, kw_only=True)
class SelfCritical:
  """Self-critical sequence training (arXiv 1612.00563): captions that are drawn are learned by their CIDEr-D, less that
  of a baseline. For fine-tunes of models of kind 'coca' and 'blip' that write; an image's texts are the references."""

  # Weight of the loss. 0: no captions are drawn.
  weight: float = 0.0
  # Captions that are drawn of an image. The paper has 1; 5 are usual with the baseline 'mean' (arXiv 2003.09971).
  samples: int = 1
  # What a caption's CIDEr-D is compared with. 'greedy': that of the likeliest words (section 3.2). 'mean': the mean of
  # the image's other samples (arXiv 2003.09971), which costs no further caption.
  baseline: Literal["greedy", "mean"] = "greedy"
  # The end of a caption is a word of the n-grams, as in the public code: without it, captions learn to stop in the
  # middle, as "a cat on a" (arXiv 2305.12254).
  ends: bool = True
  # Images whose texts make the document frequencies of n-grams, at most, evenly drawn from all sources. The default is
  # more than COCO's 113,287.
  images: int = 200_000
