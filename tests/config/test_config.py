"""Settings: checks, durations, and overrides through ml_collections' flags."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from coca.config import Config, Data, Eval, Source, Stage, default, help, parse, to_dict
from coca.config.durations import in_steps
from coca.config.typed import to_plain


def changed(**changes):
  """The default config as plain data, with the values at dotted paths replaced (double underscores for dots)."""
  config = default().to_dict()
  for path, value in changes.items():
    *parents, last = path.split("__")
    node = config
    for name in parents:
      node = node[name]
    node[last] = value
  return config


BLIP = {"model__kind": "blip", "model__image__class_token": True, "model__embed_dim": 256}


class TestParse:
  def test_the_default_is_the_dataclass(self):
    assert parse(default()) == Config()

  def test_there_and_back(self):
    source = Source(kind="folder", path="pictures", prompts=("a {}", "the {}"))
    config = default()
    config.data.sources.mine = to_dict(source)
    config.evals.mine = to_dict(Eval(kind="retrieval", source=source, templates=("a {}",)))
    config.optim.lr_scale = {"image_encoder": 0}
    parsed = parse(config)
    assert parsed.data.sources == {"mine": source}
    assert parsed.evals["mine"].source is not source
    assert parsed.evals["mine"].source == source
    assert parsed.optim.lr_scale == {"image_encoder": 0.0}
    assert isinstance(parsed.optim.lr_scale["image_encoder"], float)
    assert parse(to_dict(parsed)) == parsed
    assert parse(json.loads(json.dumps(dataclasses.asdict(parsed)))) == parsed  # as a workdir keeps it

  def test_it_is_frozen(self):
    with pytest.raises(dataclasses.FrozenInstanceError):
      parse(default()).model.image.size = 1

  @pytest.mark.parametrize(
    ("changes", "message"),
    [
      ({"model__image__widht": 1}, r"config\.model\.image\.widht: no such setting; did you mean 'width'\?"),
      ({"zzz": 1}, r"config\.zzz: no such setting; known: answering, .*"),
      ({"data__sources": {"a": {"knd": "tfds"}}}, r"config\.data\.sources\.a\.knd: .* did you mean 'kind'"),
      ({"model__image__width": "768"}, r"config\.model\.image\.width is '768'; it takes a value of type int"),
      ({"model__image__width": 768.0}, r"config\.model\.image\.width is 768\.0; it takes a value of type int"),
      ({"model__image__width": True}, r"config\.model\.image\.width is True; it takes a value of type int"),
      ({"data__flip": 1}, r"config\.data\.flip is 1; it takes a value of type bool"),
      ({"optim__lr": True}, r"config\.optim\.lr is True; it takes a value of type float"),
      ({"steps": 100}, r"config\.steps is 100; it takes a value of type str"),
      ({"data__crop": 0.5}, r"config\.data\.crop is 0\.5; it takes a tuple"),
      ({"data__crop": "ab"}, r"config\.data\.crop is 'ab'; it takes a tuple"),
      ({"data__crop": (0.5,)}, r"config\.data\.crop is \(0\.5,\); it takes 2 values"),
      ({"data__crop": (0.5, "1")}, r"config\.data\.crop is '1'; it takes a value of type float"),
      ({"model": 5}, r"config\.model is 5; it takes settings by name: kind, "),
      ({"evals": ["a"]}, r"config\.evals is \['a'\]; it takes settings by name"),
      ({"model__dtype": "float16"}, r"config\.model\.dtype is 'float16'; it may be 'auto', 'bfloat16', 'float32'"),
      ({"data__sources": {"a": {"kind": "csv"}}}, r"config\.data\.sources\.a\.kind is 'csv'; it may be 'builtin', "),
      ({"evals": {"e": {"kind": "fid"}}}, r"config\.evals\.e\.kind is 'fid'; it may be 'zero_shot', "),
      ({"evals": {"e": {"source": {"kind": "csv"}}}}, r"config\.evals\.e\.source\.kind is 'csv'; it may be "),
      ({"evals": {"e": {"source": {"text": "best"}}}}, r"config\.evals\.e\.source\.text is 'best'; it may be "),
      ({"model__image__size": 290}, r"image\.size 290 is no multiple of patch 18"),
      ({"model__image__patch_dropout": 1.0}, r"patch_dropout 1\.0 is not in \[0, 1\)"),
      (
        {"model__image__position_init": "sincos2d", "model__image__width": 6, "model__image__heads": 1},
        r"config\.model\.image\.position_init 'sincos2d' takes a width of a multiple of 4, not 6",
      ),
      (
        {"model__image__rope": 16, "model__image__width": 6, "model__image__heads": 1},
        r"config\.model\.image\.rope takes heads of a width of a multiple of 4, not 6",
      ),
      ({"model__image__heads": 7}, r"config\.model\.image\.width 768 is no multiple of heads 7"),
      ({"model__text__heads": 7}, r"config\.model\.text\.width 768 is no multiple of heads 7"),
      ({"model__poolers__heads": 7}, r"config\.model\.poolers\.heads 7 does not divide the poolers' width 768"),
      ({"contrastive__weight": 0.0, "captioning__weight": 0.0}, "nothing to train"),
      ({"contrastive__texts": 0}, r"config\.contrastive\.texts is 0; it takes 1 or more"),
      *(
        (
          {"contrastive__texts": 2, **changes},
          r"texts 2 needs config\.contrastive\.weight above 0, .*momentum 0, since",
        )
        for changes in (
          {"contrastive__weight": 0.0},
          BLIP | {"contrastive__momentum": 0.9},
          BLIP | {"answering__weight": 1.0, "captioning__weight": 0.0},
        )
      ),
      (
        {"contrastive__texts": 2, "data__sources": {"a": {"sidecars": "runs/capfilt"}}},
        r"config\.data\.sources\.a\.sample 'text' makes an example of each text, .* say sample 'image'",
      ),
      ({"model__text__multimodal_layers": 0}, r"config\.captioning\.weight needs .*multimodal_layers"),
      ({"model__text__unimodal_layers": 0}, r"config\.contrastive\.weight needs .*unimodal_layers above 0"),
      ({"model__text__mask": "full"}, r"mask 'full' needs config\.model\.text\.multimodal_layers 0"),
      (
        {"model__text__mask": "full", "model__text__multimodal_layers": 0, "captioning__weight": 0.0},
        r"mask 'full' needs config\.model\.text\.pool 'last' or 'eos'",
      ),
      ({"model__poolers__mlp": 64, "model__poolers__norm": False}, r"poolers\.mlp needs config\.model\.poolers\.norm"),
      (
        {"matching__weight": 1.0, "matching__slow_keys": True},
        r"config\.matching\.slow_keys needs config\.contrastive\.momentum above 0",
      ),
      ({"captioning__parallel": 0.75}, r"config\.captioning\.parallel needs a captioner alone"),
      ({"captioning__parallel": 75.0}, r"config\.captioning\.parallel 75\.0 is not a share"),
      ({"data__batch": 0}, r"config\.data\.batch is 0; it takes 1 or more"),
      ({"model__image__patch": 0}, r"config\.model\.image\.patch is 0; it takes 1 or more"),
      ({"evals": {"e": {"batch": -1}}}, r"config\.evals\.e\.batch is -1; it takes 1 or more"),
      ({"model__kind": "clip"}, r"config\.model\.kind is 'clip'; it may be 'coca', 'blip'"),
      ({"model__text__feedforwards": 3}, r"config\.model\.text\.feedforwards is 3; it may be 1, 2"),
      ({"model__text__feedforwards": True}, r"config\.model\.text\.feedforwards is True; it may be 1, 2"),
      ({"model__remat": 1}, r"config\.model\.remat is 1; it may be 'none', 'dots', 'lean', 'full'"),
      (
        {"data__sources": {"a": {"origin": "moon"}}},
        r"sources\.a\.origin is 'moon'; it may be '', 'web', 'synthetic', 'human', 'label'",
      ),
      ({"data__rand_augment": (2, 11)}, r"config\.data\.rand_augment is \(2, 11\); it takes a number of operations"),
      ({"data__rand_augment": (-1, 5)}, r"config\.data\.rand_augment is \(-1, 5\); it takes"),
      ({"data__rand_augment": (2, 0.5)}, r"config\.data\.rand_augment is 0\.5; it takes a value of type int"),
      ({"optim__eps": 0.0}, r"config\.optim\.eps 0\.0 has to be above 0"),
      ({"optim__adamw_scale": 0.0}, r"config\.optim\.adamw_scale 0\.0 has to be above 0"),
      ({"optim__schedule": "epochs"}, r"'epochs' needs config\.optim\.epoch"),
      (
        {"optim__schedule": "epochs", "optim__epoch": "5%", "optim__lr_decay": 1.5},
        r"lr_decay 1\.5 is not in \(0, 1\]",
      ),
      (
        {"optim__schedule": "epochs", "optim__epoch": "1%"},
        r"config\.optim\.warmup '2%' is longer than config\.optim\.epoch '1%' \(10000 and 5000 steps\)",
      ),
      ({"optim__epoch": "1 epoch"}, r"config\.optim\.epoch: '1 epoch' is no duration"),
      ({"optim__accumulate": 3}, r"config\.data\.batch 65536 is no multiple of config\.optim\.accumulate 3"),
      ({"data__max_skipped": 1.5}, r"config\.data\.max_skipped 1\.5 is not a share"),
      ({"optim__warmup": "2 percent"}, r"config\.optim\.warmup: '2 percent' is no duration"),
      ({"evals": {"e": {"every": "often"}}}, r"config\.evals\.e\.every: 'often' is no duration"),
    ],
  )
  def test_errors_name_the_setting_and_what_it_takes(self, changes, message):
    with pytest.raises(ValueError, match=message):
      parse(changed(**changes))

  def test_a_config_file_cannot_add_a_wrong_name(self):
    with pytest.raises(AttributeError, match="widht"):
      default().model.image.widht = 1


class TestDurations:
  @pytest.mark.parametrize(
    ("text", "steps"),
    [
      ("10000", 10_000),
      ("10000 steps", 10_000),
      ("1 step", 1),
      ("1e6 examples", 1_000),
      ("1500 examples", 2),
      ("2%", 40),
      ("0.5 %", 10),
      ("100%", 2_000),
      ("", 0),
      ("0", 0),
      ("0%", 0),
      ("1 example", 1),
      ("0.001%", 1),
    ],
  )
  def test_in_steps(self, text, steps):
    assert in_steps(text, batch=1_000, total=2_000) == steps

  @pytest.mark.parametrize(
    "text",
    ["often", "-1", "-2%", "%", "10 epochs", "1 2 3", "10 steps each", "nan", "inf", "1e999", "inf examples", "nan%"],
  )
  def test_no_duration(self, text):
    with pytest.raises(ValueError, match="is no duration; write"):
      in_steps(text, 1_000, 2_000)

  def test_percent_of_nothing(self):
    with pytest.raises(ValueError, match="percent of what"):
      in_steps("2%", 1_000)

  def test_the_steps_of_a_run(self):
    assert parse(changed(steps="1e6 examples", data__batch=1_000)).total_steps == 1_000

  def test_the_length_of_a_run_is_no_percentage(self):
    with pytest.raises(ValueError, match=r"config\.steps: '50%': percent of what"):
      parse(changed(steps="50%"))


class TestHelp:
  def test_every_setting_is_described_in_sentences(self):
    for group in help.groups():
      assert group.kind.__doc__
      for setting in group.settings:
        assert re.fullmatch(r"[^|]+\.", setting.text), f"{setting.name}: {setting.text}"

  def test_every_setting_is_there_with_its_default(self):
    def flat(values, name):
      for key, value in values.items():
        if isinstance(value, dict) and value:
          yield from flat(value, f"{name}{key}.")
        else:
          yield f"{name}{key}", repr(value)

    config = Config(data=Data(sources={"NAME": Source()}), stages={"NAME": Stage()}, evals={"NAME": Eval()})
    said = [(setting.name, setting.default) for group in help.groups() for setting in group.settings]
    assert sorted(said) == sorted(flat(to_plain(config), ""))

  def test_choices_and_types(self):
    takes = {setting.name: setting.takes for group in help.groups() for setting in group.settings}
    assert takes["model.text.pool"] == "'cls', 'eos', 'last'"
    assert takes["evals.NAME.source.origin"] == "'', 'web', 'synthetic', 'human', 'label'"
    assert (takes["steps"], takes["optim.lr_scale"]) == ("Duration", "dict[str, float]")

  @pytest.mark.parametrize(
    ("asked", "names"),
    [
      ("config.data.sources.web.split", ["data.sources.NAME.split"]),
      ("--config.optim.lr", ["optim.lr"]),
      ("mesh", ["mesh.data", "mesh.fsdp", "mesh.tensor"]),
    ],
  )
  def test_names(self, asked, names):
    text = help.described([asked])
    assert re.findall(r"^(\S+): ", text, re.M) == names

  def test_no_such_setting(self):
    with pytest.raises(ValueError, match=r"no such setting: model\.txt\.mask; did you mean model\.text\.mask"):
      help.described(["model.txt.mask"])

  def test_the_page_is_up_to_date(self):
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == help.page(), "run python -m coca.config.help > docs/settings.md"


class TestFlags:
  """As a command line: --config=FILE:arguments --config.name=value."""

  @pytest.fixture
  def file(self, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
      "from coca.commands import arguments\nfrom coca.config import Eval, Source, default, to_dict\n"
      "def get_config(arg=None):\n"
      "  args = arguments(arg, runlocal=False, res=64)\n"
      "  config = default()\n"
      "  config.model.image.update(size=args.res, patch=8)\n"
      "  config.data.batch = 8 if args.runlocal else 64\n"
      "  config.data.sources.web = to_dict(Source(prompts=('a {}',)))\n"
      "  config.evals.mine = to_dict(Eval())\n"
      "  config.optim.lr_scale.image_encoder = 1.0\n"
      "  return config\n"
    )
    return path

  @pytest.fixture
  def read(self, monkeypatch):
    def read(*argv):
      monkeypatch.setattr(sys, "argv", ["train", *argv])  # where ml_collections looks for overrides
      values = flags.FlagValues()
      config_flags.DEFINE_config_file("config", flag_values=values)
      values(sys.argv)
      return parse(values.config)

    return read

  def test_arguments(self, file, read):
    config = read(f"--config={file}:res=128,runlocal")
    assert (config.model.image.size, config.data.batch) == (128, 8)
    assert read(f"--config={file}").data.batch == 64

  def test_overrides(self, file, read):
    config = read(
      f"--config={file}:runlocal",
      "--config.model.image.width=384",
      "--config.optim.lr=1e-3",
      "--config.data.flip=true",
      "--config.steps=1e6 examples",
      "--config.data.crop=(0.5, 1.0)",
      "--config.data.rand_augment=(2, 5)",
      "--config.data.sources.web.path=gs://b/{0..9}.tar",
      "--config.data.sources.web.prompts=('a {}', 'the {}')",
      "--config.evals.mine.source.kind=folder",
      "--config.optim.lr_scale.image_encoder=0.5",
    )
    assert config.model.image.width == 384
    assert config.optim.lr == 1e-3
    assert config.data.flip is True
    assert config.data.rand_augment == (2, 5)
    assert config.steps == "1e6 examples"
    assert config.data.crop == (0.5, 1.0)
    assert config.data.sources["web"].path == "gs://b/{0..9}.tar"
    assert config.data.sources["web"].prompts == ("a {}", "the {}")
    assert config.evals["mine"].source.kind == "folder"
    assert config.optim.lr_scale == {"image_encoder": 0.5}

  def test_whole_numbers_do_for_shares(self, file, read):
    assert read(f"--config={file}", "--config.optim.lr=1", "--config.data.crop=(1, 1)").data.crop == (1.0, 1.0)

  def test_a_wrong_name_is_an_error(self, file, read):
    with pytest.raises((AttributeError, flags.Error), match="widht"):
      read(f"--config={file}", "--config.model.image.widht=384")

  def test_a_wrong_type_is_an_error(self, file, read):
    with pytest.raises(flags.IllegalFlagValueError, match="width"):
      read(f"--config={file}", "--config.model.image.width=wide")

  def test_a_wrong_choice_is_an_error(self, file, read):
    with pytest.raises(ValueError, match=r"config\.model\.remat is 'some'"):
      read(f"--config={file}", "--config.model.remat=some")


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("model.image.width", 2**63),
    ("seed", -(2**64)),
    ("optim.lr", float("nan")),
    ("optim.lr", float("-inf")),
    ("optim.clip", 10**400),
  ],
)
def test_numbers_that_nothing_can_hold_are_refused(name, value):
  """JSON has them, and arrays fail much later at them, with errors that name no setting."""
  plain = changed(**{name.replace(".", "__"): value})
  with pytest.raises(ValueError, match=rf"config\.{name} is .*; it takes a number up to 2\^53"):
    parse(plain)
