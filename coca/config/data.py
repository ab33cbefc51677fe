"""Settings of the data, for training and for evaluation."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from coca.config.decoding import Decoding
from coca.config.durations import Duration

Origin = Literal["web", "synthetic", "human", "label"]
ORIGINS = get_args(Origin)


@dataclass(frozen=True, kw_only=True)
class SceneNoise:
  """Shares of scenes that have a text that is not true of them, as images of the web have; 1 at most together."""

  # Another scene's caption.
  other: float = 0.0
  # A caption with one part wrong, an object, a number or a side: the hard kind.
  wrong: float = 0.0
  # A title that tells nothing of the image.
  title: float = 0.0
  # A file's name.
  file_name: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Scenes:
  """The built-in world: scenes composed of drawings, of which it is known what is true (coca/data/scenes)."""

  # Another one gives other scenes of the same kind.
  seed: int = 0
  # Scenes that the split has. They are drawn as they are asked for, and take no space.
  count: int = 1_000_000
  # Pixels a side.
  pixels: int = 64
  # Things in a scene at most, 1 to 4.
  objects: int = 4
  # Objects that there are, the first ones of coca/data/scenes/objects.py.
  vocabulary: int = 100
  # The styles of the drawings, of noto, noto-v1, fluent-3d, fxemoji, emojione, fluent-emoji-flat and twemoji. Empty: as
  # the split has it, twemoji for 'scenes_new_style' and the first four else.
  styles: tuple[str, ...] = ()
  # True captions of a scene at most. A text that is noise stands alone.
  texts: int = 5
  # Texts that are not true.
  noise: SceneNoise = field(default_factory=SceneNoise)


@dataclass(frozen=True, kw_only=True)
class Source:
  """A source of image-text pairs (coca/data/sources).

  From `sidecars` on: texts of a CapFilt workdir in place of the source's own (coca/data/sources/bootstrapped.py).
  """

  # The format. 'builtin' is what is in the package: the corpus (coca/data/builtin), or with a split 'scenes...' the
  # world of coca/data/scenes/held_out.py. 'pairs' are SugarCrepe and Winoground (coca/data/sources/pairs.py), which
  # the evaluators of that kind take. 'dialogs' are VisDial's files (coca/data/sources/dialogs.py).
  kind: Literal["builtin", "tfds", "webdataset", "parquet", "folder", "pairs", "dialogs"] = "tfds"
  # 'tfds': name or directory. 'webdataset', 'parquet': glob. 'folder', 'dialogs': directory; and 'pairs' with `texts`,
  # else its glob. URLs of fsspec work.
  path: str = ""
  # Of 'tfds' and 'builtin'; of a folder, that of Karpathy's annotations, of Flickr30k's, SNLI-VE's and MSR-VTT's files,
  # and of a table with a column 'split'. '': all of these.
  split: str = "train"
  # Share in the mixture. 0 for all sources: each example of any as often as the others.
  weight: float = 1.0
  # Which of a record's texts is taken. 'labels': all of them, shuffled and joined, in a prompt. Where
  # `config.contrastive.texts` asks for more: the next ones; others at random, none twice before all were there; the
  # labels in another order and prompt.
  text: Literal["first", "random", "labels"] = "random"
  # The texts stand alone, as documents do: for models of kind 'simvlm', which learn from them beside pairs. Images are
  # not looked at, and a Parquet file needs none.
  text_only: bool = False
  # For 'labels': one of them is drawn, e.g. "a photo of the {}".
  prompts: tuple[str, ...] = ()
  # Column, field or member that holds the image.
  image_key: str = "image"
  # Column, field or member that holds the text or texts. Empty: images alone, for CapFilt to write their texts. Several
  # are separated by commas, and each may say its origin: "caption:web,recaption:synthetic". 'label' is the class, with
  # 'folder' without a table the name of the folder that an image lies in, and 'file_name' there that of the file.
  text_key: str = "caption"
  # A table of texts: a path, or several by a glob. Of 'folder': the table of its images, where it lies elsewhere or is
  # not found by its name. Of 'pairs': the JSON files of the captions. Of 'dialogs': the JSON file of the dialogs. Of
  # others: the keys in `text_key` that are its columns are read there, and joined by a column of keys; all else is the
  # source's own (coca/data/sources/joined.py).
  texts: str = ""
  # A list of the keys of records that are kept: a text, a table's column, or .npy as DataComp has it. Empty: all.
  subset: str = ""
  # Of 'webdataset', and of texts beside the images of a 'folder': each line of a text is one of its own. It is so
  # anyhow where dataset_type.txt says 'retrieval' beside the tars or a folder above, as in CLIP_benchmark's folders.
  text_lines: bool = False
  # Member that holds the number of the class, from 0, or column with its name; of 'parquet', of numbers too where the
  # file names them; of 'folder' without a table, 'label' is the name of the folder. Empty: as the format has it (of
  # 'webdataset' .cls, where classnames.txt lies beside the tars or a folder above; else what `text_key` takes for one).
  label_key: str = ""
  # Column or field with the question; `text_key` then names its answers, one an annotator. Of 'builtin', 'name' asks
  # for the images' names, and 'question' goes with the splits 'scenes_questions...'.
  question_key: str = ""
  # Of models of kind 'vl_t5' or 'vl_bart': what is made of a record, and what the encoder's text begins with
  # (coca/data/tasks.py). 'caption': the text is written. 'vqa': an answer to the question. 'span prediction': the words
  # that were left out of the text; 'denoise text', VL-BART's: the text. 'image text match': whether a text, its own or
  # another record's, is the image's. 'visual grounding': the number of the region that is named; 'caption region': the
  # name of the region whose number is given.
  task: Literal[
    "", "caption", "vqa", "span prediction", "denoise text", "image text match", "visual grounding", "caption region"
  ] = ""
  # Weight of the answers in the loss, and as they are counted for classes. BLIP's code gives Visual Genome's 0.2,
  # ALBEF's 0.5.
  answer_weight: float = 1.0
  # Of 'folder': links that lead out of it are followed, too. Otherwise, what others put there can't show your files.
  follow_links: bool = False
  # What the texts are. Empty: as the format has it (a folder's are human, a label's name is a label, all others are
  # web).
  origin: Literal["", Origin] = ""
  # That workdir. Empty: the source's own texts.
  sidecars: str = ""
  # What an example is. 'text': each kept text (BLIP's D'). 'image': each image that has one, with its text chosen by
  # `text`.
  sample: Literal["text", "image"] = "text"
  # Which texts are taken, by their origin. Empty: all. With sample 'image', the chance of a text to be drawn, relative
  # to those of other origins. With 'text' 1 or 0: to weigh them, list two sources with weights.
  origins: dict[str, float] = field(default_factory=dict)
  # Texts need at least this probability of a match, in place of the sidecars' `kept`. -1: as kept.
  min_matching: float = -1.0
  # Texts need at least this cosine, likewise. -2: as kept. Human texts stay, whatever their scores.
  min_contrastive: float = -2.0
  # Records are regions that a detector found, for models that read these in place of images ('lemon',
  # 'vl_t5'). Of 'parquet' (coca/data/sources/regions.py has the columns), and of the scenes of 'builtin'.
  regions: bool = False
  # Records are videos (MP4, WebM, AVI, ...), for evaluators and for the class head of configs/finetune_video.py. Of
  # 'webdataset' and 'folder', with texts and labels where those of images are, or in the files of a data set
  # (coca/data/sources/video_tables.py), which takes the extra 'video'; and the splits 'scenes_videos...' of 'builtin'.
  videos: bool = False
  # Of 'builtin' with a split of scenes.
  scenes: Scenes = field(default_factory=Scenes)


@dataclass(frozen=True, kw_only=True)
class Data:
  """Training data: the sources, and what is made of their records."""

  # Sources by names of your own.
  sources: dict[str, Source] = field(default_factory=dict)
  # Pairs a step, of all hosts together (CoCa section 4.1).
  batch: int = 65_536
  # Random resized crop: smallest and largest share of the area.
  crop: tuple[float, float] = (1.0, 1.0)
  # Pixels a side that the central square is resized to before the model's are cut out of it: anywhere in training, the
  # centre in evaluation (ALIGN: 346 for 289). 0: it is resized to the model's.
  resize: int = 0
  # Left and right are swapped in half of the images. Off where a text may say which.
  flip: bool = False
  # Of texts about two images: these change places in half of the examples, and with them 'left' and 'right' in the text
  # (nlvr_dataset.py of BLIP's code).
  swap: bool = False
  # Operations and their magnitude of 10. BLIP: (2, 5) (coca/data/augment.py).
  rand_augment: tuple[int, int] = (0, 0)
  # Whose operations these are. 'google': those of EfficientNet's and big_vision's code, whose magnitudes go beyond 10,
  # to 30; CoCa has (2, 20).
  rand_augment_kind: Literal["blip", "google"] = "blip"
  # Evaluation looks at the whole image, squashed (BLIP), otherwise at the central square.
  squash: bool = False
  # How evaluation resizes images; both filters are antialiased.
  filter: Literal["bicubic", "bilinear"] = "bicubic"
  # Folder of what a frozen image encoder makes of the training images, which takes the place of decoding and encoding
  # them in each epoch. At its start, a run embeds what is missing there, all images once. Empty: images are encoded.
  embeddings: str = ""
  # Type of those of a classifier. 'float16' takes half of the disk; its 11 bits are more than the 8 of bfloat16, which
  # accelerators compute in.
  embeddings_type: Literal["float32", "float16"] = "float32"
  # Colour under transparent images.
  background: str = "white"
  # What the texts begin with, as BLIP's captioner has "a picture of ". It is put in front of each text in training and
  # read before a caption is written, of which it is no part.
  prompt: str = ""
  # A SentencePiece model, CLIP's tokenizer.json or BERT's vocab.txt or tokenizer.json. Empty: one is trained (WordPiece
  # for 'blip' and 'align', else SentencePiece) and kept in the workdir.
  tokenizer: str = ""
  # How SentencePiece chooses its pieces. 'bpe' keeps words whole where few of them make most of the texts.
  tokenizer_pieces: Literal["unigram", "bpe"] = "unigram"
  # Texts for training the tokenizer, at most.
  tokenizer_texts: int = 1_000_000
  # Pixels of an image at most. If its header has more, it is not decoded. Pillow, which reads all but most JPEGs, stops
  # at 178,956,970 in any case.
  max_pixels: int = 100_000_000
  # Share of unusable records that ends the run.
  max_skipped: float = 0.05
  # Threads that read and decode on a host. 0: as many as cores.
  threads: int = 0
  # Batches that are prepared ahead.
  prefetch: int = 4


@dataclass(frozen=True, kw_only=True)
class Eval:
  """An evaluator: what it measures, on which data, and when (coca/evals)."""

  # The measurement.
  kind: Literal["zero_shot", "retrieval", "captions", "matching", "pairs", "vqa", "classification", "dialogs"] = (
    "zero_shot"
  )
  # The data.
  source: Source = field(default_factory=Source)
  # Time between two evaluations. Empty: at the end only.
  every: Duration = ""
  # Examples at once; of videos, frames.
  batch: int = 256
  # Examples at most. 0: all.
  limit: int = 0
  # Of 'zero_shot': the prompt ensemble.
  templates: tuple[str, ...] = ("{}",)
  # Of 'zero_shot': the part of ImageNet's classes that counts, where the labels are those of all 1,000; images of other
  # classes are left out. Empty: the classes that the source names (coca/evals/class_names.py).
  classes: Literal["", "imagenet-a", "imagenet-o", "imagenet-r"] = ""
  # Of 'zero_shot', 'captions' and 'retrieval': name of the training source for the baseline, the text of the nearest
  # neighbour in 16x16 pixels. The last two look at 20,000 images of a larger source.
  pixel_neighbours: str = ""
  # Of 'retrieval': texts of an image at most.
  texts_per_image: int = 5
  # Of 'retrieval': equal texts of other images are right, too. CLIP, CoCa and BLIP count the own alone.
  equal_texts: bool = False
  # Of 'captions': how they are written. BLIP: strategy 'beam' with 3 beams, min_length 5, max_length 20 and
  # length_normalisation 'whole'.
  decoding: Decoding = field(default_factory=Decoding)
  # Of 'captions': above 1, beam search with so many beams as BLIP's authors have it, in place of `decoding`.
  beams: int = 1
  # Of 'captions': what they begin with, which is no part of them. Empty: `config.data.prompt`.
  prompt: str = ""
  # Of 'captions': METEOR and SPICE too, where Java and the package pycocoevalcap with its jars are there.
  java_metrics: bool = False
  # Of 'captions' and 'vqa': the JSON file by whose ids COCO's, NoCaps' or VQA's server knows the images or questions.
  # `coca.evaluate` then writes NAME_results.json for it, and captions are scored by NoCaps' domains, too.
  annotations: str = ""
  # Of 'vqa': a text file with the possible answers, one a line. Empty: answers are generated.
  answers: str = ""
  # Of 'vqa': the possible answers that are scored whole, the likeliest by their first token.
  rank: int = 128
  # Of 'retrieval': the candidates of a query, by cosine, that the matching head puts in a new order (BLIP: 256 on COCO,
  # 128 on Flickr30K). 0: cosines alone.
  rerank: int = 0
  # Of videos: frames of each, evenly spread (coca/data/videos.py). The mean of their embeddings is the video's, and a
  # decoder looks at the tokens of all. Of retrieval, 16 are CoCa's (section 4.2.2) and 8 BLIP's; of questions, 16
  # BLIP's.
  frames: int = 16
