"""Arguments behind `config.py:`, and mistakes as a line."""

import errno
import os

import pytest

from coca.capfilt.__main__ import parse_command
from coca.config.command_line import arguments, one_line
from coca.storage.lock import locked
from support.processes import ROOT, run_here


class TestArguments:
  def test_defaults(self):
    for arg in (None, ""):
      assert arguments(arg, runlocal=False, res=288).to_dict() == {"runlocal": False, "res": 288}

  def test_values_take_the_type_of_their_default(self):
    args = arguments("res=128,runlocal,lr=1e-3,path=gs://b/run=1", runlocal=False, res=288, lr=0.1, path="")
    assert args.to_dict() == {"runlocal": True, "res": 128, "lr": 1e-3, "path": "gs://b/run=1"}

  @pytest.mark.parametrize(
    ("text", "value"),
    [
      ("runlocal=0", False),
      ("runlocal=False", False),
      ("runlocal=1", True),
      ("runlocal=true", True),
      ("runlocal", True),
    ],
  )
  def test_truth(self, text, value):
    assert arguments(text, runlocal=not value).runlocal is value

  def test_an_unknown_one_is_refused_and_the_known_ones_listed(self):
    with pytest.raises(ValueError, match="'runlocall' is unknown; this config takes: runlocal=False, res=288"):
      arguments("runlocall", runlocal=False, res=288)

  @pytest.mark.parametrize(
    ("text", "message"),
    [
      ("res=big", "'res' takes a value of type int"),
      ("res", "'res' needs a value: res=288"),
      ("runlocal=maybe", "'runlocal' takes true or false"),
      ("runlocal=", "'runlocal' takes true or false"),
    ],
  )
  def test_wrong_values(self, text, message):
    with pytest.raises(ValueError, match=message):
      arguments(text, runlocal=False, res=288)


class TestOneLine:
  @pytest.mark.parametrize(
    ("error", "code", "said"),
    [
      (ValueError("no such model"), "error: no such model", ""),
      (FileNotFoundError("gone"), "error: gone", ""),
      (KeyboardInterrupt(), 130, "stopped\n"),
    ],
  )
  def test_a_line_in_place_of_a_traceback(self, error, code, said, capsys):
    with pytest.raises(SystemExit) as ended, one_line(ValueError, OSError):
      raise error
    assert ended.value.code == code and capsys.readouterr().err == said

  def test_what_is_not_expected_has_its_traceback(self):
    with pytest.raises(ZeroDivisionError), one_line(ValueError):
      raise ZeroDivisionError

  def test_another_status(self, capsys):
    with pytest.raises(SystemExit) as ended, one_line(OSError, status=70):
      raise OSError("disk full")
    assert ended.value.code == 70 and capsys.readouterr().err == "error: disk full\n"

  def test_an_error_that_names_no_file_has_its_place(self, tmp_path, capsys, monkeypatch):
    def full(*_):
      raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SystemExit), one_line(OSError, status=70), locked(tmp_path / "run"):
      pass
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device (in storage/lock.py, _write)\n"

  def test_what_jax_says_of_a_lost_process_is_no_mistake(self):
    with pytest.raises(ValueError, match="UNKNOWN"), one_line(ValueError):
      raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

  def test_the_traceback_on_demand(self, monkeypatch):
    monkeypatch.setenv("COCA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"), one_line(ValueError):
      raise ValueError("wrong")


def test_a_setting_of_decoding_by_another_name_is_answered_with_ours():
  command = ["capfilt", "--config=configs/capfilt.py", "--config.decoding.num_beams=3"]
  with pytest.raises(SystemExit, match=r"config\.decoding\.num_beams is called beams, with strategy 'beam'"):
    parse_command(command)
  with pytest.raises(SystemExit, match=r"config\.decoding\.max_lenght: no such setting; did you mean max_length\?"):
    parse_command([*command[:2], "--config.decoding.max_lenght=9"])


@pytest.mark.parametrize(("flag", "part"), [("--config.optim.lrr", "lrr"), ("--config.optimm.lr", "optimm")])
def test_a_setting_that_is_not_there_is_named_whole(flag, part):
  said = run_here(ROOT / "coca/train.py", f"--config={ROOT}/configs/coca_tiny.py", f"{flag}=3")
  assert said.startswith(f"error: {flag}: no such setting: '{part}' Did you mean")
