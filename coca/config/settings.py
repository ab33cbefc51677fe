"""Settings of a run: typed, checked, and the bridge to ml_collections' command line.

A file in `configs/` is plain Python: `get_config(arg)` calls `default()`, changes what differs from the papers'
defaults below and returns the ConfigDict, so that `--config.model.image.width=512` works for every name in this
file. `parse(config)` turns it into the frozen `Config` that all other code takes: a wrong name, type or combination
is an error here, before anything is read or compiled.

Durations are text, wherever they appear: "10000" or "10000 steps", "1e6 examples", "2%" (of the run).
"""

from dataclasses import dataclass, field

from coca.config.durations import Duration

# Of red, green and blue in CLIP's pictures, for `ImageEncoder.mean` and `std`.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
  """ViT without class token (CoCa Table 1 and section 3.2); the last six settings describe other people's weights."""

  size: int = 288  # pixels a side
  patch: int = 18  # pixels a side
  layers: int = 12
  width: int = 768
  mlp: int = 3072
  heads: int = 12
  patch_dropout: float = 0.0  # share of patches dropped in training (FLIP, arXiv 2212.00794)
  class_token: bool = False  # a learned token in front of the patches; it is never dropped
  patch_bias: bool = True  # of the patches' projection
  norm_pre: bool = False  # LayerNorm before the first layer
  norm_post: bool = True  # LayerNorm after the last layer
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of red, green and blue between 0 and 1: what is taken off
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # and divided by; these give -1 to 1

  @property
  def tokens(self) -> int:
    return (self.size // self.patch) ** 2

  @property
  def kept(self) -> int:
    """Patches that `patch_dropout` leaves."""
    return max(1, round(self.tokens * (1 - self.patch_dropout)))


@dataclass(frozen=True, kw_only=True)
class Poolers:
  """Attentional poolers (CoCa section 3.2): a single multi-head attention layer with learned queries each.

  Kinds, by where the image embedding comes from:
    cascade      a contrastive pooler on top of the generative one (the paper's models)
    parallel     a contrastive pooler beside the generative one (Figure 2)
    openclip     the first of the generative pooler's own queries, projected; the decoder sees the others
    class_token  the image encoder's class token, projected (CLIP); the decoder sees the other tokens
  """

  kind: str = "cascade"
  n_query: int = 256  # generative queries; 0 hands the decoder all image tokens (Table 8f)
  heads: int = 0  # 0: as the image encoder. Not in the paper
  norm: bool = True  # LayerNorm on the pooled tokens. Not in the paper; VideoPrism, Google's own code, has it
  norm_inputs: bool = False  # LayerNorm on the queries, and on the tokens they look at (open_clip)
  mlp: int = 0  # width of a feed-forward behind `norm`, added to what is pooled (SigLIP's MAP head); 0: none


@dataclass(frozen=True, kw_only=True)
class TextDecoder:
  """The decoder's unimodal and multimodal half (CoCa Table 1 and section 3.2)."""

  vocab: int = 64_000
  length: int = 64  # tokens, BOS and EOS included. Not in the paper; ALIGN and VideoPrism have 64. Of longer texts,
  # encoders see EOS in the last place, as open_clip's and BLIP's do, and the decoder learns the word that stood there
  unimodal_layers: int = 12  # 0: no text embedding (a captioner alone)
  multimodal_layers: int = 12  # 0: no captioning (a dual encoder)
  width: int = 768
  mlp: int = 3072
  heads: int = 12
  tied_softmax: bool = False  # Table 1's counts need an output matrix of its own
  mask: str = "causal"  # words see: 'causal', what stands before them; 'full', all words and all padding (SigLIP)
  # The text embedding: 'cls', a learned [CLS] after the text (section 3.2); 'eos', EOS' state (CLIP); 'last', that of
  # the last position, padding or not (SigLIP).
  pool: str = "cls"
  projection_bias: bool = False  # of the text embedding's projection (SigLIP)
  cls_position: bool = False  # whether [CLS] has a position embedding, one more than the words' (open_clip)
  cls_mask: str = "words"  # [CLS] sees: 'words' and itself; 'legacy': words and the first padding (see unimodal_mask)
  feedforwards: int = 1  # of a multimodal layer: 2 is one more between self- and cross-attention (open_clip)
  norm_context: bool = False  # LayerNorm on the image tokens in each multimodal layer (open_clip)


@dataclass(frozen=True, kw_only=True)
class Med:
  """BLIP's multimodal mixture of encoder and decoder (arXiv 2201.12086, section 3.1; constants of its med_config.json).

  BERT's layers in three roles: text encoder; image-grounded encoder, with cross-attention in every layer;
  image-grounded decoder, causal. `config.model.text` has the sizes: `unimodal_layers` are those of both encoders,
  `multimodal_layers` those of the decoder, 0 for none.
  """

  # What encoders and decoder share (Table 3): 'all', 'all_but_cross_attention', 'all_but_self_attention', 'none'.
  sharing: str = "all_but_self_attention"
  positions: int = 512  # of the position embeddings
  dropout: float = 0.1  # of embeddings, of the attention's weights and of what each part of a layer adds
  norm_eps: float = 1e-12
  # What takes the place of a text's first token, which is [DEC]: the ids of BERT's vocabulary.
  cls: int = 101  # [CLS], for the embedding
  encode: int = 30_523  # [Encode], for matching and for questions; transformers leaves [CLS] there


@dataclass(frozen=True, kw_only=True)
class Model:
  kind: str = "coca"  # 'coca', 'blip'
  image: ImageEncoder = field(default_factory=ImageEncoder)
  poolers: Poolers = field(default_factory=Poolers)
  text: TextDecoder = field(default_factory=TextDecoder)
  med: Med = field(default_factory=Med)  # of 'blip', which has no poolers
  embed_dim: int = 0  # of the contrastive embeddings; 0: the text width. Not in the paper
  activation: str = "gelu_tanh"  # 'gelu' (erf), 'gelu_tanh', 'quick_gelu', 'relu'. Not in the paper
  norm_eps: float = 1e-6
  dtype: str = "auto"  # of activations: 'bfloat16', 'float32'; 'auto': bfloat16 on accelerators, float32 on CPU
  # What the backward pass computes again: 'none', 'dots' (all but matmuls), 'lean' (as dots, and the image tokens' keys
  # and values in each decoder layer, which are as large as all else there), 'full'.
  remat: str = "none"
  # 'xla'; where they can be used 'cudnn' (NVIDIA GPUs, bfloat16) and 'flash' (TPUs, 128 tokens and more, no mask: image
  # encoder and generative pooler). Not in the paper
  attention: str = "xla"
  unroll: int = 1  # layers an iteration of the scan: more compiles longer and saves a little time on CPU


@dataclass(frozen=True, kw_only=True)
class Contrastive:
  """CoCa equation 2, or SigLIP's pairwise sigmoid (arXiv 2303.15343)."""

  weight: float = 1.0
  # With weight 0, the model makes its embeddings all the same: what is theirs alone ([CLS], the projections, the
  # contrastive pooler, the temperature) stays as `init_from` has it. Otherwise it is not in the model
  keep: bool = False
  loss: str = "softmax"  # 'softmax', 'sigmoid', 'sigmoid_ring' (the same loss, no global matrix)
  # Of image-to-text and text-to-image: 'mean' as all public code, 'sum' as equation 2 is printed. The paper's weights
  # of 1 and 2 want one convention for both losses: with means here and over tokens a CoCa-Base begins with terms of
  # 1 x ln 65,536 = 11.09 and 2 x ln 64,000 = 22.13, with the sum here of 22.18 and 22.13. --dry_run has a config's.
  directions: str = "mean"
  # Texts equal to one's own (of the same labels, in any prompt and order, or of the same words): 'negatives', 'mask'
  # (left out), 'positives' (UniCL)
  equal_texts: str = "mask"
  temperature: float = 0.07  # initial; SigLIP's is 0.1
  max_scale: float = 100.0  # cap of 1 / temperature (CLIP's; not in CoCa); 0: none. BLIP's is 1000
  min_scale: float = 0.0  # and its floor; BLIP's is 2
  bias: float = -10.0  # initial, sigmoid only
  # Momentum distillation (ALBEF, arXiv 2107.07651, sections 3.3 and 3.4; BLIP section 3.2), for the softmax of 'blip':
  momentum: float = 0.0  # decay of the momentum encoders' average (BLIP 0.995); 0: none, and the rest means nothing
  queue: int = 57_600  # embeddings of earlier steps that are negatives too
  soft_targets: float = 0.4  # share of the targets that the momentum encoders' similarities make
  soft_ramp: Duration = "10%"  # until that share is reached, in a line from 0: BLIP's first 2 of 20 epochs

  @property
  def heads(self) -> bool:
    """Whether the model makes embeddings."""
    return self.weight > 0 or self.keep


@dataclass(frozen=True, kw_only=True)
class Captioning:
  """CoCa equation 3."""

  weight: float = 2.0
  # 'mean' over the tokens of the global batch, as most public code; 'per_text', over each text's own tokens and then
  # over texts (big_vision, so Cap and CapPa); 'sum' over a text's tokens, mean over texts, as equation 3 is printed
  tokens: str = "mean"
  label_smoothing: float = 0.0
  prompt_tokens: int = 0  # of `config.data.prompt`: so many tokens at the beginning are given and not learned
  # Share of the examples whose words are all predicted at once, from [MASK]s that see each other (CapPa, arXiv
  # 2306.07915: 0.75). In training only; texts are written word by word.
  parallel: float = 0.0
  chunk: int = 1024  # tokens of a device whose logits are held at once


@dataclass(frozen=True, kw_only=True)
class Matching:
  """Image-text matching (BLIP, arXiv 2201.12086, section 3.2): whether a text belongs to a picture.

  The head is CoCa's for multimodal classification (section 4.2.3, appendix B): a pooler with one query over the
  multimodal decoder's outputs. Each pair comes with two hard negatives, drawn by the contrastive similarities.
  """

  weight: float = 0.0  # 0: the model has no matching head
  floor: float = 0.0  # added to each negative's probability of being drawn (BLIP's pre-training: 1e-4)
  slow_keys: bool = False  # drawn by the similarity to embeddings of the momentum encoders (BLIP's pre-training)
  group: int = 0  # so many consecutive pairs are each other's negatives; 0: the whole batch. BLIP: a GPU's pairs


@dataclass(frozen=True, kw_only=True)
class Answering:
  """Visual question answering (BLIP section 5.3 and Figure 5): a decoder writes answers from a question's states."""

  weight: float = 0.0  # 0: the batches have no answers
  answers: int = 10  # different answers of a question at most; of more, the most frequent
  length: int = 10  # tokens of an answer, BOS and EOS included; longer ones are cut, and have no EOS


@dataclass(frozen=True, kw_only=True)
class Optim:
  """CoCa section 4.1 (pre-training)."""

  name: str = "adafactor"  # 'adafactor' (factored, with momentum), 'adamw'
  lr: float = 8e-4
  schedule: str = "linear"  # decay to `final_lr`: 'linear', 'cosine', 'constant', 'epochs' (steps, BLIP)
  final_lr: float = 0.0  # as a share of lr
  lr_decay: float = 0.85  # of 'epochs': lr * lr_decay^epoch; 0.85 in BLIP's paper, 0.9 in its code
  epoch: Duration = ""  # of 'epochs': how long one is, e.g. "14e6 examples", or "5%" for 20 of them in a run
  warmup: Duration = "2%"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8  # of adamw; CLIP has 1e-6
  # Decoupled: a step takes this times its learning rate off a weight, as in AdamW. big_vision adds decay after the
  # rate's scale, so that its number is what the step of the highest rate takes: divide it by `lr`.
  weight_decay: float = 0.01
  decay_mask: str = "kernels"  # what decays: 'kernels' (matrices), 'all' (but the temperature)
  clip: float = 0.0  # global gradient norm; 0: none (pre-training; Tables 9 and 10 have 1.0)
  ema: float = 0.0  # decay of the parameters' moving average; 0: none (Table 9 has 0.9999)
  accumulate: int = 1  # micro-batches a step, with the contrastive loss of the whole batch
  lr_scale: dict[str, float] = field(default_factory=dict)  # by part ('image_encoder', ...: --dry_run); 0 freezes
  max_nonfinite: int = 20  # skipped steps in a row that end the run


@dataclass(frozen=True, kw_only=True)
class Source:
  """Where image-text pairs come from (coca/data/sources)."""

  kind: str = "tfds"  # 'builtin', 'tfds', 'webdataset', 'parquet', 'folder'
  path: str = ""  # tfds: name or directory; webdataset, parquet: glob; folder: directory. fsspec URLs work
  split: str = "train"  # tfds and builtin; of a folder, that of Karpathy's annotations
  weight: float = 1.0  # share in the mixture; 0 for all sources: each example of any as often as the others
  text: str = "random"  # which of a record's texts: 'first', 'random', 'labels' (shuffled, joined, in a prompt)
  prompts: tuple[str, ...] = ()  # for 'labels': one is drawn, e.g. "a photo of the {}"
  image_key: str = "image"  # column, field or member that holds the image
  text_key: str = "caption"  # and the text or texts; empty: images alone, for CapFilt to write their texts
  question_key: str = ""  # column or field with the question; text_key then names its answers, one an annotator.
  # builtin: 'name' asks for the pictures' names
  answer_weight: float = 1.0  # of the answers in the loss; BLIP gives Visual Genome's 0.2
  follow_links: bool = False  # folder: also links that lead out of it; else what others put there can't show your files
  origin: str = ""  # what the texts are: 'web', 'synthetic', 'human', 'label'; empty: as the format has it (a folder's
  # are human, a label's name is a label, all others are web)
  # Texts of a CapFilt workdir in place of the source's own (coca/data/sources/bootstrapped.py):
  sidecars: str = ""  # that workdir; empty: the source's own texts
  sample: str = "text"  # an example is: 'text', each kept text (BLIP's D'); 'image', each image that has one, its text
  # chosen by `text`
  origins: dict[str, float] = field(default_factory=dict)  # which texts; empty: all. With 'image', the chance of a text
  # to be drawn, relative to those of other origins. With 'text' 1 or 0: to weigh them, list two sources with weights
  min_matching: float = -1.0  # at least this probability in place of the sidecars' `kept`; -1: as kept
  min_contrastive: float = -2.0  # at least this cosine, likewise; -2: as kept. Human texts stay, whatever their scores


@dataclass(frozen=True, kw_only=True)
class Data:
  sources: dict[str, Source] = field(default_factory=dict)
  batch: int = 65_536  # pairs a step, all hosts together
  crop: tuple[float, float] = (1.0, 1.0)  # random resized crop: smallest and largest share of the area
  flip: bool = False  # left and right; off where a text may say which
  rand_augment: tuple[int, int] = (0, 0)  # operations and their magnitude of 10; BLIP: (2, 5) (data/augment.py)
  squash: bool = False  # evaluation looks at the whole picture, squashed (BLIP); otherwise at the central square
  background: str = "white"  # under transparent pictures
  prompt: str = ""  # what the texts begin with, as BLIP's captioner has "a picture of ": put in front of each text in
  # training and read before a caption is written, of which it is no part
  tokenizer: str = ""  # a SentencePiece model, CLIP's tokenizer.json or BERT's vocab.txt or tokenizer.json; empty: one
  # is trained (for 'blip' WordPiece, else SentencePiece) and kept in the workdir
  tokenizer_texts: int = 1_000_000  # at most so many texts for training it
  max_pixels: int = 100_000_000  # a larger header is not decoded
  max_skipped: float = 0.05  # share of unusable records that ends the run
  threads: int = 0  # 0: as many as cores
  prefetch: int = 4  # batches


@dataclass(frozen=True, kw_only=True)
class Eval:
  kind: str = "zero_shot"  # 'zero_shot', 'retrieval', 'captions', 'matching', 'vqa'
  source: Source = field(default_factory=Source)
  every: Duration = ""  # empty: at the end only
  batch: int = 256
  limit: int = 0  # examples; 0: all
  templates: tuple[str, ...] = ("{}",)  # zero_shot: prompt ensemble
  pixel_neighbours: str = ""  # zero_shot: name of the training source for the 16x16 nearest-neighbour baseline
  texts_per_image: int = 5  # retrieval: at most
  equal_texts: bool = False  # retrieval: other pictures' equal texts are right too; CLIP, CoCa and BLIP count the own
  answers: str = ""  # vqa: a text file with the possible answers, one a line; empty: answers are generated
  rank: int = 128  # vqa: so many of the possible answers, the likeliest by their first token, are scored whole
  rerank: int = 0  # retrieval: the candidates of a query, by cosine, that the matching head puts in a new order (BLIP:
  # 256 on COCO, 128 on Flickr30K); 0: cosines alone


@dataclass(frozen=True, kw_only=True)
class Mesh:
  """Devices: data x fsdp x tensor; -1 takes what is left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
  every: Duration = "1%"
  keep: int = 2  # the latest ones
  keep_every: Duration = ""  # and these for good


@dataclass(frozen=True, kw_only=True)
class Config:
  name: str = "coca"
  seed: int = 0
  steps: Duration = "500000"
  log_every: Duration = "100"
  init_from: str = ""  # a workdir or model directory whose parameters start this run (coca/training/init_from.py)
  model: Model = field(default_factory=Model)
  contrastive: Contrastive = field(default_factory=Contrastive)
  captioning: Captioning = field(default_factory=Captioning)
  matching: Matching = field(default_factory=Matching)
  answering: Answering = field(default_factory=Answering)
  optim: Optim = field(default_factory=Optim)
  data: Data = field(default_factory=Data)
  evals: dict[str, Eval] = field(default_factory=dict)
  mesh: Mesh = field(default_factory=Mesh)
  checkpoint: Checkpoint = field(default_factory=Checkpoint)

ORIGINS = ("web", "synthetic", "human", "label")  # where a text can come from


def frozen_parts(config: Config) -> set[str]:
  """Parts whose learning rate is 0: they get no gradient and no optimizer state."""
  return {part for part, scale in config.optim.lr_scale.items() if scale == 0}
