import errno
import io
import json
import math
import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX import record_writer

from coca.devices.hardware import PEAKS, device_memory, peak_flops
from coca.files import retries
from coca.training import metrics, metrics_file
from coca.training.curves import plot_curves
from coca.training.metrics import Metrics
from support.events import events


class Device:
  """A number that a device is still computing: reading it waits, and must not be done by the loop's thread."""

  def __init__(self, value):
    self.value, self.ready, self.read = value, threading.Event(), threading.Event()

  def __array__(self, dtype=None, copy=None):
    assert threading.current_thread() is not threading.main_thread(), "the loop waits for the device"
    assert self.ready.wait(30), "read before it was there, by someone who could not wait"
    self.read.set()
    return np.asarray(self.value, np.float32)


class Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: self.now)


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- Writing ---


def test_log_never_waits_for_the_step_just_begun(tmp_path, capsys):
  with Metrics(tmp_path, total_steps=9) as m:
    first, second = Device(1.5), Device(2.5)
    m.log(1, {"train/loss": first})
    with m.waiting():  # the next batch; nothing is there to be written
      pass
    assert lines(tmp_path) == [] and not first.read.is_set()
    first.ready.set()
    m.log(2, {"train/loss": second})
    assert lines(tmp_path) == [{"step": 1, "train/loss": 1.5}]
    assert "step 1/9  loss 1.5\n" in capsys.readouterr().out
    second.ready.set()
    m.flush()
    assert [line["train/loss"] for line in lines(tmp_path)] == [1.5, 2.5]


def test_values_are_shown_as_soon_as_they_are_there(tmp_path):
  with Metrics(tmp_path) as m:
    value = Device(3)
    value.ready.set()
    m.log(1, {"train/loss": value})
    m._pending[1].result(30)
    with m.waiting():
      pass
    assert lines(tmp_path) == [{"step": 1, "train/loss": 3}]


def test_numbers_of_all_kinds(tmp_path):
  with Metrics(tmp_path) as m:
    m.log(
      1,
      {
        "a": jnp.float32(0.1),
        "b": jnp.bfloat16(0.3),
        "c": jnp.int32(7),
        "d": np.array([2.0]),
        "e": 1e-9,
        "nan": jnp.float32("nan"),
        "inf": float("-inf"),
        "skipped": True,
      },
    )
    m.write(5, {"eval/top1": 0.25})
  text = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(text[0], parse_constant=pytest.fail) == {
    "step": 1,
    "a": 0.1,
    "b": 0.300781,
    "c": 7,
    "d": 2.0,
    "e": 1e-9,
    "nan": None,
    "inf": None,
    "skipped": 1,
  }
  assert jnp.bfloat16(0.300781) == jnp.bfloat16(0.3)
  assert json.loads(text[1]) == {"step": 5, "eval/top1": 0.25}  # an evaluator's come after those of steps before


def test_a_metric_that_is_no_number_is_named(tmp_path):
  m = Metrics(tmp_path)
  m.log(1, {"train/loss": jnp.zeros(3)})
  with pytest.raises(ValueError, match=r"'train/loss' has shape \(3,\)"):
    m.flush()
  m.close()


def test_the_first_error_is_the_one_to_see(tmp_path):
  with pytest.raises(KeyError, match="mine"), Metrics(tmp_path) as m:
    m.log(1, {"train/loss": jnp.zeros(3)})
    raise KeyError("mine")


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with Metrics(tmp_path / "w") as m:
    m.log(1, {"train/loss": 1.0})
    m.say("z")
  assert not (tmp_path / "w").exists() and not capsys.readouterr().out


def test_tensorboard_has_scalars(tmp_path):
  with Metrics(tmp_path, resume_step=3) as m:
    m.log(4, {"train/loss": 2.5})
  found = events(tmp_path)
  assert any(e.session_log.status == e.session_log.START and e.step == 4 for e in found)  # hides older events from 4 on
  values = {v.tag: v for e in found for v in e.summary.value}
  assert values["train/loss"].simple_value == 2.5


# --- A disk that fails ---


def test_training_goes_on_without_tensorboard(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(record_writer, "open_file", lambda path: io.BufferedWriter(io.FileIO("/dev/full", "wb")))
  ended = threading.Event()

  def run():
    with Metrics(tmp_path) as m:
      for step in range(1, 101):
        m.write(step, {"train/loss": 0.5})
        m.flush()
    ended.set()

  threading.Thread(target=run, daemon=True).start()
  assert ended.wait(120), "a value waits for ever"
  assert len(lines(tmp_path)) == 100
  assert capsys.readouterr().out.count("goes on without TensorBoard") == 1


def test_a_folder_in_its_way_costs_tensorboard_alone(tmp_path, capsys):
  (tmp_path / "tensorboard").write_text("a file")
  with Metrics(tmp_path) as m:
    m.write(1, {"a": 1})
  assert lines(tmp_path) == [{"step": 1, "a": 1}] and "without TensorBoard" in capsys.readouterr().out


class Full(io.FileIO):
  """A disk that takes five bytes at a time and then fails, as often as `errors` has."""

  def write(self, data):
    if self.errors and self.turn:
      self.turn = False
      raise self.errors.pop()
    self.turn = True
    return super().write(bytes(data[:5]))


def test_no_line_is_lost_or_torn_while_the_run_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(retries, "PAUSES", (0, 0))
  with Metrics(tmp_path) as m:
    m._lines._file.close()
    m._lines._file = Full(tmp_path / "metrics.jsonl", "a")
    m._lines._file.turn, m._lines._file.errors = False, [OSError(errno.ENOSPC, "No space left on device")] * 2
    m.write(1, {"a": 1})
    m.write(2, {"a": 2})
    assert lines(tmp_path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2}]
    m._lines._file.write = lambda data: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(retries.Unavailable, match=r"metrics\.jsonl: .*Input/output error"):
      m.write(3, {"a": 3})


def test_an_error_is_not_an_empty_file(tmp_path, monkeypatch):
  with Metrics(tmp_path) as m:
    m.write(1, {"a": 1})

  def fail(*_, **__):
    raise OSError(errno.EIO, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(retries, "PAUSES", (0,))
    patch.setattr(os, "stat", fail)
    with pytest.raises(retries.Unavailable):
      metrics_file.cut(tmp_path / "metrics.jsonl", 1)
  assert lines(tmp_path) == [{"step": 1, "a": 1}]


# --- Going on ---


def test_going_on_cuts_what_came_after(tmp_path):
  with Metrics(tmp_path) as m:
    for step in range(1, 7):
      m.log(step, {"train/loss": float(step)})
  before = lines(tmp_path)
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 7, "train/lo')  # killed here
  with Metrics(tmp_path, resume_step=4) as m:
    assert lines(tmp_path) == before[:4]
    m.log(5, {"train/loss": 50.0})
  assert lines(tmp_path) == [*before[:4], {"step": 5, "train/loss": 50.0}]
  with Metrics(tmp_path):  # no checkpoint was there: from the start
    assert lines(tmp_path) == []


@pytest.mark.parametrize(
  "torn", [b'{"step": 3', b'{"step": 3, "a": 1}', b"\xff\xfe", b"3\n[1]\n{}\n\n", b'{"step": true}', b"[" * 100_000]
)
def test_a_torn_end_is_left_out_and_the_next_line_is_whole(tmp_path, torn):
  good = b'{"step": 1, "a": 1.0}\n{"step": 2, "a": null}\n'
  (tmp_path / "metrics.jsonl").write_bytes(good + torn)
  with Metrics(tmp_path, resume_step=2) as m:
    m.write(3, {"a": 3})
  assert (tmp_path / "metrics.jsonl").read_bytes() == good + b'{"step": 3, "a": 3}\n'
  assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["metrics.jsonl"]


# --- Speed ---


def test_speed_counts_training_time_only(tmp_path, monkeypatch, capsys):
  clock = Clock(monkeypatch)
  monkeypatch.setattr(metrics, "peak_flops", lambda kind: 1e6)
  monkeypatch.setattr(metrics, "device_memory", lambda: 3 * 2**29)
  with Metrics(tmp_path, total_steps=100, batch=32, flops_per_pair=lambda step: 5e3) as m:
    m.log(1, {"train/loss": 1.0})
    m._pending[1].result(30)
    clock.now += 8
    with m.waiting():
      clock.now += 2
    with m.paused(after=jnp.ones(3)):
      clock.now += 1000
    m.log(11, {"train/loss": 1.0})
    m._pending[1].result(30)
  first, second = lines(tmp_path)
  assert first == {"step": 1, "train/loss": 1.0}
  assert math.isclose(second["perf/pairs_per_second"], 10 * 32 / 10)
  assert math.isclose(second["perf/data_wait"], 0.2)
  assert math.isclose(second["perf/mfu"], 32 * 5e3 / (1e6 * jax.device_count()))
  assert second["perf/peak_memory_gib"] == 1.5
  left = round(89 * 1010 / 10)  # evaluations included, as they will come again
  assert f"step 11/100  eta {left // 3600}h{left % 3600 // 60:02}m  loss 1  32 pairs/s  mfu 2%  wait 20%" in (
    capsys.readouterr().out
  )


def test_waiting_for_data_counts_only_where_the_devices_wait_too(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)

  class Step:
    def __init__(self, ready):
      self.is_ready = lambda: ready

  with Metrics(tmp_path, batch=4) as m:
    m.log(1, {})
    m._pending[1].result(30)
    clock.now += 5
    for step, seconds in ((Step(ready=False), 4), (Step(ready=True), 1)):
      with m.waiting(step):
        clock.now += seconds
    m.log(2, {})
  assert math.isclose(lines(tmp_path)[1]["perf/data_wait"], 0.1)


def test_cpu_has_no_mfu_and_no_memory(tmp_path):
  with Metrics(tmp_path, batch=4, flops_per_pair=lambda step: 1e9) as m:
    m.log(1, {})
    m.log(2, {})
  assert set(lines(tmp_path)[1]) == {"step", "perf/pairs_per_second", "perf/data_wait"}
  assert device_memory() is None


@pytest.mark.parametrize(
  "kind, tera",
  [
    ("TPU v3", 61.5),
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5", 459),
    ("TPU v5p", 459),
    ("TPU v6 lite", 918),
    ("TPU7x", 1153.5),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989.4),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H200", 989.4),
    ("NVIDIA B200", 2250),
    ("NVIDIA GB200", 2500),
    ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362),
    ("Tesla T4", 65),
    ("Tesla V100-SXM2-16GB", 125),
    ("Tesla V100-PCIE-16GB", 112),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ("NVIDIA A10G", None),
    ("cpu", None),
    ("TPU v4 lite", None),
  ],
)
def test_peaks(kind, tera):
  assert peak_flops(kind) == (tera and tera * 1e12)
  assert len({pattern for pattern, _ in PEAKS}) == len(PEAKS)


# --- Progress ---


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_a_bar_and_other_outputs_lines(tmp_path, monkeypatch):
  monkeypatch.setenv("LINES", "24")
  monkeypatch.setenv("COLUMNS", "120")
  shown = {}
  for kind in (Terminal, io.StringIO):
    monkeypatch.setattr(sys, "stdout", kind())
    with Metrics(tmp_path / kind.__name__, total_steps=4) as m:
      for step in (1, 2):
        m.log(step, {"train/loss": 5.1234, "train/contrastive": 3.1, "train/captioning": 1.0, "train/lr": 1e-3})
      m.say("an evaluation")
    shown[kind] = sys.stdout.getvalue()
  start = "step 1/4  loss 5.123  contrastive 3.1  captioning 1"
  assert shown[io.StringIO].startswith(start + "\nan evaluation\nstep 2/4  eta 0m0")
  assert "\r" not in shown[io.StringIO] and "%|" not in shown[io.StringIO]
  assert f"\r 25%|##5       | {start}" in shown[Terminal]
  assert "an evaluation\n" in shown[Terminal]
  monkeypatch.setenv("LINES", "0")  # a terminal of unknown size, as under some schedulers
  monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
  monkeypatch.setattr(sys, "stdout", Terminal())
  metrics.Progress(4).update(1, 0.0, {"train/loss": 5.1234})
  assert sys.stdout.getvalue() == "step 1/4  loss 5.123\n"


@pytest.mark.parametrize(
  "seconds, text", [(0, "0m00s"), (59.6, "1m00s"), (192, "3m12s"), (3600, "1h00m"), (90061, "25h01m")]
)
def test_time_left(seconds, text):
  assert metrics.describe(1, 2, {}, seconds) == f"step 1/2  eta {text}"


# --- Curves ---


def test_curves_have_a_panel_for_each_number(tmp_path):
  with pytest.raises(FileNotFoundError, match="no training or evaluation numbers"):
    plot_curves(tmp_path)
  with Metrics(tmp_path) as m:
    for step in range(1, 300):
      m.log(step, {"train/loss": 5 / step if step != 40 else math.nan, "train/temperature": 0.07, "train/lr": 1.0})
    for step in (100, 200):
      m.write(step, {"eval/twemoji/top1": step / 1000, "eval/twemoji/top5": step / 500})
  path = plot_curves(tmp_path)
  assert path == tmp_path / "curves.png"
  picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
  width = picture.shape[1]
  blue = (abs(picture - [31, 119, 180]) < 40).all(-1)
  orange = (abs(picture - [255, 127, 14]) < 40).all(-1)
  for column in range(4):  # loss, temperature, top-1, top-5
    panel = slice(column * width // 4, (column + 1) * width // 4)
    assert (blue if column < 2 else orange)[:, panel].any()
    assert not (orange if column < 2 else blue)[:, panel].any()
