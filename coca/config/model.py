"""Settings of the models: CoCa and its relatives, and BLIP."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from coca.config.special import SENTINELS

# Of red, green and blue in CLIP's images, for `ImageEncoder.mean` and `std`.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
  """ViT without class token (CoCa Table 1 and section 3.2); the last nine settings describe other people's weights."""

  # Pixels a side of the image.
  size: int = 288
  # Pixels a side of a patch.
  patch: int = 18
  # Transformer layers.
  layers: int = 12
  # Width of the states.
  width: int = 768
  # Width of the feed-forward layers.
  mlp: int = 3072
  # Attention heads.
  heads: int = 12
  # Share of the patches that is dropped in training (FLIP, arXiv 2212.00794).
  patch_dropout: float = 0.0
  # A learned token stands in front of the patches. It is never dropped.
  class_token: bool = False
  # How the positions begin, which are learned: as in BERT, or as sines and cosines of row and column (MoCo v3, arXiv
  # 2104.02057, which leaves them so). With these, few steps are enough to tell where things are.
  position_init: Literal["normal", "sincos2d"] = "normal"
  # As a factor, how large they begin. Beside large patches, as of drawings on white, they get lost from layer to layer,
  # and with them where things are.
  position_scale: float = 1.0
  # The patches' projection has a bias.
  patch_bias: bool = True
  # A LayerNorm stands before the first layer.
  norm_pre: bool = False
  # A LayerNorm stands after the last layer.
  norm_post: bool = True
  # The LayerNorms of a layer stand behind its attention and its feed-forward, before the sums (EVA-02's largest).
  norm_after: bool = False
  # What LayerNorms add to the variance. 0: as in the rest of the model.
  norm_eps: float = 0.0
  # Queries and keys of patches are turned by column and row (RoPE, as PE has it, arXiv 2504.13181), which go over this
  # many columns and rows whatever the image's size. 0: they are not turned.
  rope: int = 0
  # What is taken off red, green and blue between 0 and 1. With `std`, the default gives -1 to 1.
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  # What red, green and blue are divided by after that.
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)

  def at(self, size: int) -> "ImageEncoder":
    """The same for images of another size."""
    return replace(self, size=size)

  @property
  def tokens(self) -> int:
    return (self.size // self.patch) ** 2

  @property
  def kept(self) -> int:
    """Patches that `patch_dropout` leaves."""
    return max(1, round(self.tokens * (1 - self.patch_dropout)))


@dataclass(frozen=True, kw_only=True)
class Poolers:
  """Attentional poolers (CoCa section 3.2): a single multi-head attention layer with learned queries each."""

  # Where the image embedding comes from. 'cascade': a contrastive pooler on top of the generative one (the paper's
  # models). 'parallel': a contrastive pooler beside the generative one (Figure 2). 'openclip': the first of the
  # generative pooler's own queries, projected; the decoder sees the others. 'class_token': the image encoder's class
  # token, projected (CLIP); the decoder sees the other tokens. 'mean': the mean of the patches' tokens, normed and
  # projected (CLIPA, OpenVision); the decoder sees them.
  kind: Literal["cascade", "parallel", "openclip", "class_token", "mean"] = "cascade"
  # Generative queries. 0 hands the decoder all image tokens (Table 8f).
  n_query: int = 256
  # Attention heads. 0: as many as the image encoder has. Not in the paper.
  heads: int = 0
  # Width of queries, keys and values. 0: the text width.
  width: int = 0
  # A LayerNorm stands on the pooled tokens. Not in the paper; VideoPrism, Google's own code, has it.
  norm: bool = True
  # A LayerNorm stands on the queries, and one on the tokens they look at (open_clip).
  norm_inputs: bool = False
  # Width of a feed-forward layer behind `norm`, which is added to what is pooled (SigLIP's MAP head). 0: none.
  mlp: int = 0
  # The projection to the image embedding has a bias, and there is one behind a contrastive pooler, too (timm).
  projection_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class TextDecoder:
  """The decoder's unimodal and multimodal half (CoCa Table 1 and section 3.2)."""

  # Size of the vocabulary.
  vocab: int = 64_000
  # Tokens of a text, BOS and EOS included. Not in the paper; ALIGN and VideoPrism have 64. Of a longer text, encoders
  # see EOS in the last place, as open_clip's and BLIP's do, and the decoder learns the word that stood there.
  length: int = 64
  # Layers of the unimodal half. 0: no text embedding (a captioner alone).
  unimodal_layers: int = 12
  # Layers of the multimodal half. 0: no captioning (a dual encoder).
  multimodal_layers: int = 12
  # Width of the states.
  width: int = 768
  # Width of the feed-forward layers.
  mlp: int = 3072
  # Attention heads.
  heads: int = 12
  # The output matrix is that of the word embeddings. Table 1's counts need an output matrix of its own.
  tied_softmax: bool = False
  # What words see. 'causal': what stands before them. 'full': all words and all padding (SigLIP).
  mask: Literal["causal", "full"] = "causal"
  # The text embedding. 'cls': a learned [CLS] after the text (section 3.2). 'eos': the state at EOS (CLIP). 'last': the
  # state at the last position, padding or not (SigLIP).
  pool: Literal["cls", "eos", "last"] = "cls"
  # The projection to the text embedding has a bias (SigLIP).
  projection_bias: bool = False
  # Of the text layers' feed-forwards, where it is not the model's (other people's weights). 'model': as the model's.
  activation: Literal["model", "gelu", "gelu_tanh", "quick_gelu", "relu"] = "model"
  # [CLS] has a position embedding, one more than the words have (open_clip).
  cls_position: bool = False
  # What [CLS] sees. 'words': the words and itself. 'legacy': the words and the first padding, as in open_clip's CoCa
  # models (`unimodal_mask`).
  cls_mask: Literal["words", "legacy"] = "words"
  # Feed-forward layers of a multimodal layer. 2: one more between self- and cross-attention (open_clip).
  feedforwards: Literal[1, 2] = 1
  # A LayerNorm stands on the image tokens in each multimodal layer (open_clip).
  norm_context: bool = False
  # Both halves are the same layers, which read a text twice (MaMMUT, arXiv 2303.16839): for the embedding without the
  # image, all words seeing each other; for captions with it, causally, and from the words themselves.
  two_passes: bool = False
  # Every how many-th multimodal layer has cross-attention (MaMMUT); the others have none.
  cross_every: int = 1

  @property
  def layers(self) -> int:
    """Layers of both halves. 0: the model reads no text (a classifier)."""
    return self.unimodal_layers + self.multimodal_layers


@dataclass(frozen=True, kw_only=True)
class Med:
  """BLIP's multimodal mixture of encoder and decoder (arXiv 2201.12086, section 3.1; constants of its med_config.json).

  BERT's layers in three roles: text encoder; image-grounded encoder, with cross-attention in every layer;
  image-grounded decoder, causal. `config.model.text` has the sizes: `unimodal_layers` are those of both encoders,
  `multimodal_layers` those of the decoder, 0 for none.
  """

  # What encoders and decoder share (Table 3).
  sharing: Literal["all", "all_but_cross_attention", "all_but_self_attention", "none"] = "all_but_self_attention"
  # Number of the position embeddings.
  positions: int = 512
  # Dropout of embeddings, of the attention's weights and of what each part of a layer adds.
  dropout: float = 0.1
  # What LayerNorms in the encoders and the decoder add to the variance.
  norm_eps: float = 1e-12
  # The id in BERT's vocabulary of [CLS], which takes the place of a text's first token, [DEC], for the embedding.
  cls: int = 101
  # The id in BERT's vocabulary of [Encode], which takes that place for matching and for questions. transformers leaves
  # [CLS] there.
  encode: int = 30_523
  # The id in BERT's vocabulary of [MASK], which takes the place of hidden words. Of 'albef' and 'lemon'.
  mask: int = 103


@dataclass(frozen=True, kw_only=True)
class Regions:
  """A detector's findings in an image, for models that read them in place of it (VinVL, arXiv 2101.00529)."""

  # Width of a region's feature, without its box.
  width: int = 2048
  # Regions of an image. Of more the first ones are read, and places that are left are masked.
  count: int = 50
  # Tokens of the regions' names, EOS included. VinVL's captioner has 70 with the caption's 40. Of 'vl_t5' and
  # 'vl_bart': of the text of a task, which is read in their place.
  tags: int = 30


class ConvStage(NamedTuple):
  """A stage of EfficientNet (Table 1)."""

  layers: int  # blocks, of which the first has the stride
  kernel: int
  stride: int
  expansion: int
  n_in: int
  n_out: int


@dataclass(frozen=True, kw_only=True)
class EfficientNet:
  """ALIGN's image tower (arXiv 1905.11946; constants of the authors' efficientnet_builder.py in tensorflow/tpu).

  Of `config.model.image`, `size`, `mean` and `std` are its own too; the others mean nothing to it.
  """

  # Factor of B0's widths. B1 to B7 have 1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0; L2 has 4.3.
  width: float = 1.0
  # Factor of B0's layers a stage. B1 to B7 have 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1; L2 has 5.3.
  depth: float = 1.0
  # Probability that an example goes past the last block, in training; that of the others grows to it in a line.
  drop_connect: float = 0.2
  # Share of the batch norms' moving statistics that a step keeps.
  norm_momentum: float = 0.99
  # What batch norms add to the variance.
  norm_eps: float = 1e-3

  @property
  def stages(self) -> list[ConvStage]:
    """Table 1, scaled: widths are multiples of 8, and no less than 0.9 of what was asked for."""
    widths = [_rounded(width * self.width) for width in (32, 16, 24, 40, 80, 112, 192, 320)]
    layers = [math.ceil(n * self.depth) for n in (1, 2, 2, 3, 3, 4, 1)]
    kernels, strides, expansions = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)
    return [ConvStage(*row) for row in zip(layers, kernels, strides, expansions, widths[:-1], widths[1:], strict=True)]


def _rounded(width: float) -> int:
  rounded = max(8, int(width + 4) // 8 * 8)
  return rounded if rounded >= 0.9 * width else rounded + 8


@dataclass(frozen=True, kw_only=True)
class Stem:
  """Convolutions in place of patches, the first three blocks of a ResNet (SimVLM, arXiv 2108.10904)."""

  # Bottlenecks of each block. ResNet-50 has 3, 4, 6, ResNet-101 3, 4, 23, ResNet-152 3, 8, 36.
  blocks: tuple[int, int, int] = (3, 4, 23)
  # Channels of the first convolution; the blocks give 4, 8 and 16 times as many.
  width: int = 64
  # Attention from one image token to another has a bias for their distance, in rows and in columns, of each head and
  # layer (CoAtNet, arXiv 2106.04803, appendix A.1). It needs XLA's kernel in the encoder.
  distances: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
  """The model as a whole, and how it is computed."""

  # 'coca': CoCa and what it includes, as CLIP, SigLIP and CapPa. 'blip': BLIP. 'albef': ALBEF, of whose text layers
  # `text.unimodal_layers` are the text encoder and `text.multimodal_layers` the fusion encoder.
  # 'lemon': LEMON, VinVL's captioner, which reads regions; `text.multimodal_layers` are its layers. 'simvlm': SimVLM,
  # whose encoder, of image and text, has `image.layers`, and whose decoder has `text.multimodal_layers`.
  # 'align': ALIGN. 'vl_t5' and 'vl_bart': VL-T5 and VL-BART, which read regions and the text of a task;
  # `text.unimodal_layers` are the encoder's, `text.multimodal_layers` the decoder's.
  kind: Literal["coca", "blip", "albef", "lemon", "simvlm", "align", "vl_t5", "vl_bart"] = "coca"
  image: ImageEncoder = field(default_factory=ImageEncoder)
  poolers: Poolers = field(default_factory=Poolers)
  text: TextDecoder = field(default_factory=TextDecoder)
  # Of 'blip', 'albef', 'lemon', 'align' and 'vl_bart', which have no poolers. 'vl_t5' has its dropout.
  med: Med = field(default_factory=Med)
  # Of 'lemon', 'vl_t5' and 'vl_bart', which have no image encoder.
  regions: Regions = field(default_factory=Regions)
  # Of 'simvlm'.
  stem: Stem = field(default_factory=Stem)
  # Of 'align', in place of the ViT.
  efficientnet: EfficientNet = field(default_factory=EfficientNet)
  # Width of the contrastive embeddings. 0: the text width. Not in the paper.
  embed_dim: int = 0
  # Of the feed-forward layers; 'gelu' is the one by erf, on TPUs to a third of what bfloat16 rounds off. Not in the
  # paper.
  activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu"] = "gelu_tanh"
  # What LayerNorms add to the variance.
  norm_eps: float = 1e-6
  # Type of the activations. 'auto': bfloat16 on accelerators, float32 on CPU.
  dtype: Literal["auto", "bfloat16", "float32"] = "auto"
  # What the backward pass computes again. 'dots': all but matmuls. 'lean': as 'dots', and the image tokens' keys and
  # values in each decoder layer, which are as large as all else there. 'full': everything.
  remat: Literal["none", "dots", "lean", "full"] = "none"
  # The kernels of attention. 'auto': the fastest of coca's own and XLA's, which is 'flash' on TPUs and 'xla' elsewhere.
  # 'cudnn' and 'flash' are taken where they can be used, 'xla' in their place: 'cudnn' on NVIDIA GPUs with bfloat16;
  # 'flash' on TPUs, with 16 tokens and more. Not in the paper.
  attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
  # Layers in an iteration of the scan. More compiles longer and saves a little time on CPU.
  unroll: int = 1

  @property
  def is_bert(self) -> bool:
    """True if the text layers, and the words, are BERT's."""
    return self.kind in ("blip", "albef", "lemon", "align")

  @property
  def writes(self) -> bool:
    """True if there is a decoder."""
    return self.kind != "albef" and self.text.multimodal_layers > 0

  @property
  def reads_regions(self) -> bool:
    """True for the kinds that read regions in place of images."""
    return self.kind == "lemon" or self.poses_tasks

  @property
  def poses_tasks(self) -> bool:
    """True for the kinds whose encoder reads what is asked, and whose every task is text."""
    return self.kind in ("vl_t5", "vl_bart")

  @property
  def pieces(self) -> int:
    """Pieces that a tokenizer may have."""
    return self.text.vocab - SENTINELS * self.poses_tasks - (self.kind == "vl_bart")  # which has <mask>
