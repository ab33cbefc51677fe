"""Makes the golden files of test_json_file.py: run it on a Python with torch, open_clip, sentencepiece and protobuf.

    PYTHONPATH=tests/benchmarks python tests/data/tokenizers/golden/make_json_file.py

Per kind of tokenizer (SigLIP's T5, SigLIP 2's Gemma, MetaCLIP 2's XLM-V, CLIPA's BERT) a small one, trained here and
made up or converted as transformers does it, and the ids that open_clip's HFTokenizer gives with it.
"""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import sentencepiece
from peer_open_clip import import_open_clip

open_clip, _ = import_open_clip()
from open_clip.tokenizer import HFTokenizer  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import convert_slow_tokenizer as converters  # noqa: E402

HERE = Path(__file__).parent / "json_file"
LENGTH = 12
GEMMA = (normalizers.Replace, "\u2581"), (pre_tokenizers.Split, "merged_with_previous")
RULE = sys.argv[1] if len(sys.argv) > 1 else "identity"  # the published ones' is nmt_nfkc, which takes 300 KB
CORPUS = """a photo of the cat and dog
the red boat on a blue lake|two dogs play in the snow, near a house|it's a man's hat
café au lait, 10 euros!|a street sign that says stop; three people walk by|an old car_and_a bike|the dog sees the cat
a child (in red) holds a kite|what is that?|Tom & Jerry <b>run</b>|eine rote Tasse steht auf dem Tisch|ein Hund
""".replace("\n", "|").split("|")
TEXTS = [
  "a photo of the cat and dog",
  "  A  PHOTO\tof\n the Cat's   dog!!",
  "caf\u00e9 caf\u00c3\u00a9 cafe\u0301",
  "&amp;lt;b&amp;gt; tom &amp; jerry",
  "red, blue; 10 (or 2010) reds!?",
  "\u201ccurly\u201d \u2018quotes\u2019 \ufb01ne \uff26ull \u2026",
  "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
  "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940",
  "it's I'D we'LL 's don't",
  "",
  "   ",
  "! !! !!! ?!",
  "__under_score__ #tag @me 50%",
  "\u00bd \u00b2 \u0664 \u0130stanbul stra\u00dfe",
  "thing " * 40,
  "\u200bzero\u00a0width\u3000space",
  "\u2581a \u2581 b",
  "x",
  "the red boat",
  "a" * 120,
  "Eine rote Tasse steht auf dem Tisch.",
  "two dogs\u2014one house",
  "$5 ^ ~ ` | {braces} [brackets] \\ /",
]


def sentences(**ids) -> Path:
  """The file of a small SentencePiece model."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=model,
    normalization_rule_name=RULE,
    minloglevel=2,
    hard_vocab_limit=False,
    **ids,
  )
  path = HERE / "sentencepiece.model"
  path.write_bytes(model.getvalue())
  return path


def t5() -> Tokenizer:
  path = sentences(vocab_size=80, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  pieces = sentencepiece.SentencePieceProcessor(str(path)).get_piece_size()
  slow = SimpleNamespace(vocab_file=str(path), _extra_ids=0, vocab_size=pieces, convert_tokens_to_ids={"</s>": 1}.get)
  return converters.T5Converter(slow).converted()


def gemma() -> Tokenizer:
  special = ["<pad>", "<eos>", "<bos>", "<unk>"]
  trained = Tokenizer(models.BPE())
  trained.normalizer, trained.pre_tokenizer = (kind(" ", how) for kind, how in GEMMA)
  trained.train_from_iterator(
    CORPUS, trainers.BpeTrainer(vocab_size=340, special_tokens=[*special, *(f"<0x{b:02X}>" for b in range(256))])
  )
  model = json.loads(trained.to_str())["model"]
  merges = [tuple(pair) for pair in model["merges"]]
  found = Tokenizer(models.BPE(model["vocab"], merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
  found.normalizer, found.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
  found.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
  found.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
  found.add_special_tokens(special)
  return found


def xlm() -> Tokenizer:
  path = sentences(vocab_size=80)
  slow = SimpleNamespace(vocab_file=str(path), convert_tokens_to_ids={"<s>": 0, "</s>": 2}.__getitem__)
  return converters.XLMRobertaConverter(slow).converted()


def bert() -> Tokenizer:
  lines = (Path(__file__).parent / "wordpiece" / "vocab.txt").read_text().splitlines()
  ids = {piece: i for i, piece in enumerate(lines)}
  found = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
  found.decoder = decoders.WordPiece()
  found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
  special = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
  found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
  found.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])
  return found


KINDS = {  # how it is made, its special tokens, and what open_clip's settings say
  "t5": (t5, {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}, {"clean": "canonicalize"}),
  "gemma": (gemma, {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}, {"clean": "canonicalize"}),
  "xlm": (xlm, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, {}),
  "bert": (
    bert,
    {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    {"strip_sep_token": True},
  ),
}

if __name__ == "__main__":
  for name, (make, special, kwargs) in KINDS.items():
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    make().save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    ids = HFTokenizer(str(folder), context_length=LENGTH, **kwargs)(TEXTS).tolist()
    cases = [{"text": text, "ids": row} for text, row in zip(TEXTS, ids, strict=True)]
    (folder / "cases.json").write_text(json.dumps({"kwargs": kwargs, "cases": cases}) + "\n")
  (HERE / "sentencepiece.model").unlink()
