"""Settings of the optimizer."""

from dataclasses import dataclass, field
from typing import Literal

from coca.config.durations import Duration


@dataclass(frozen=True, kw_only=True)
class Lora:
  """Low-rank adaptation, for fine-tunes on little memory (LoRA, arXiv 2106.09685; coca/training/lora.py)."""

  # The rank of what is added to a matrix, and all else stays as it is; 4 or 8 are the paper's choice. 0: no LoRA, all
  # is trained.
  rank: int = 0
  # What is added is multiplied by alpha / rank. 0: by 1.
  alpha: float = 0.0
  # The linear layers whose matrices are adapted, wherever in the model: attention's, and 'up' and 'down' of the
  # feed-forward ones. The paper adapts queries and values (section 7.1).
  layers: tuple[Literal["query", "key", "value", "out", "up", "down"], ...] = ("query", "value")
  # Parts of the model ('class_head', ...; --dry_run lists them) that are trained whole, as new ones have to be.
  whole: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Optim:
  """CoCa section 4.1 (pre-training)."""

  # 'adafactor' is factored, with momentum. 'muon' takes AdamW's settings, and AdamW for vectors, embeddings, patches
  # and softmax; it needs whole matrices, which a mesh of fsdp or tensor has to gather. 'lamb' takes AdamW's settings,
  # and makes each matrix' update as large as the matrix (arXiv 1904.00962; ALIGN).
  name: Literal["adafactor", "adamw", "muon", "lamb"] = "adafactor"
  # The highest learning rate.
  lr: float = 8e-4
  # How the rate decays to `final_lr` after the warm-up. 'epochs': in steps, as BLIP's.
  schedule: Literal["linear", "cosine", "constant", "epochs"] = "linear"
  # The last learning rate as a share of `lr`.
  final_lr: float = 0.0
  # Of 'epochs': the rate is lr * lr_decay^epoch. 0.85 in BLIP's paper, 0.9 in its code.
  lr_decay: float = 0.85
  # Of 'epochs': the length of one, e.g. "14e6 examples", or "5%" for 20 of them in a run.
  epoch: Duration = ""
  # Time in which the rate grows to `lr`, in a line.
  warmup: Duration = "2%"
  # Of 'muon': the factor of the learning rate of what it leaves to AdamW. A matrix' update is bounded as a whole there,
  # and that of the patches' projection, with hundreds of pixels, not: at Muon's rate it soon outgrows the positions.
  adamw_scale: float = 1.0
  # Decay of the first moment.
  b1: float = 0.9
  # Decay of the second moment.
  b2: float = 0.999
  # Added to the root of the second moment, of AdamW only. CLIP has 1e-6.
  eps: float = 1e-8
  # Decoupled: a step takes this times its learning rate off a weight, as in AdamW. big_vision adds decay after the
  # rate's scale, so that its number is what the step of the highest rate takes: divide it by `lr`.
  weight_decay: float = 0.01
  # What decays. 'kernels': matrices. 'all': everything but the temperature.
  decay_mask: Literal["kernels", "all"] = "kernels"
  # The largest global norm of the gradient. 0: none, as in pre-training; Tables 9 and 10 have 1.0.
  clip: float = 0.0
  # Decay of the parameters' moving average. 0: none; Table 9 has 0.9999.
  ema: float = 0.0
  # Micro-batches a step, with the contrastive loss of the whole batch.
  accumulate: int = 1
  # Factors of the learning rate by part of the model ('image_encoder', ...; --dry_run lists them). 0 freezes a part.
  lr_scale: dict[str, float] = field(default_factory=dict)
  # Layer-wise decay of the learning rate, for fine-tunes: n layers have lr * layer_decay^n, the lowest, to
  # lr * layer_decay^1, embeddings and patches lr * layer_decay^(n + 1), last norms, poolers and heads lr, as in BEiT;
  # each times its `lr_scale`. Weight decay, a share of the rate, is less with it. Each tower counts for itself (as
  # EVA-CLIP's two), but halves of one stack as one: CoCa's unimodal layers and, where a loss reads them, the multimodal
  # ones above; ALBEF's text encoder and fusion. 1: none. MAE has 0.65 for ViT-B and 0.75 for ViT-L.
  layer_decay: float = 1.0
  lora: Lora = field(default_factory=Lora)
  # Steps in a row with a loss or gradient that is not finite, which are skipped, that end the run.
  max_nonfinite: int = 20
