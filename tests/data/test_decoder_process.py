"""A decoder process answers as this process would, and outlives neither its owner nor a file that holds it up."""

import os
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from clips import tone, write_clip
from reeltag.core.errors import VideoError
from reeltag.data.video import decode
from reeltag.data.video.decode import Damage, DecoderCrashError, process


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "a b\u00e9\udcff.mp4", 3, 10, sound=tone(3))


@pytest.fixture(scope="module")
def decoder():
    with closing(process.DecoderProcess()) as opened:
        yield opened


def test_it_answers_as_this_process_does(decoder, clip):
    assert decoder.probe(clip) == decode.probe(clip)
    for size in ((24, 32), 64, None):
        ours, theirs = Damage(), Damage()
        mine = list(decode.pictures(clip, size, ours, seconds=2))
        others = list(decoder.pictures(clip, size, theirs, seconds=2))
        np.testing.assert_array_equal(others, mine)
        assert ours == theirs
    np.testing.assert_array_equal(decoder.sound(clip, 8000, Damage()), decode.sound(clip, 8000, Damage()))


def test_errors_and_damage_come_through(decoder, clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    content = bytearray(clip.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)
    broken.write_bytes(content)
    (tmp_path / "none.mp4").write_bytes(b"no video")
    for path in (tmp_path / "none.mp4", tmp_path / "gone.mp4"):
        with pytest.raises(VideoError) as theirs:
            decoder.probe(path)
        with pytest.raises(VideoError) as ours:
            decode.probe(path)
        assert str(theirs.value) == str(ours.value)
    damage = {}
    for name, each in (("ours", decode), ("theirs", decoder)):
        damage[name] = Damage()
        each.sound(broken, 8000, damage[name])
    assert damage["ours"] == damage["theirs"]


def test_an_answer_that_is_broken_off_does_not_pass_for_the_next(decoder, clip):
    pictures = decoder.pictures(clip, (8, 8), Damage())
    next(pictures)
    pictures.close()
    assert decoder.probe(clip).pictures


def test_a_silent_process_is_killed_and_the_next_file_is_read(decoder, clip, monkeypatch):
    monkeypatch.setattr(process, "SILENT_SECONDS", 0.01)
    with pytest.raises(VideoError, match="yielded nothing for"):
        list(decoder.pictures(clip, (2000, 2000), Damage()))
    monkeypatch.undo()
    assert len(list(decoder.pictures(clip, (8, 8), Damage()))) == 3


@pytest.mark.parametrize("shape", [[4, 4], [-1], [1 << 40], [2, 1 << 30, 3]])
def test_a_process_that_was_taken_over_cannot_take_memory(shape):
    with pytest.raises(OSError, match="an array of shape"):
        process._received(None, shape, np.uint8)


@pytest.mark.slow
def test_a_process_that_answers_nonsense_is_replaced(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_MODULE", "crashing")
    with closing(process.DecoderProcess()) as decoder:
        with pytest.raises(DecoderCrashError, match="gave an answer that cannot be read"):
            decoder.probe(tmp_path / "nonsense.mp4")
        assert decoder.probe(clip).pictures


def test_a_closed_decoder_starts_no_process(clip):
    decoder = process.DecoderProcess()
    decoder.close()
    with pytest.raises(DecoderCrashError, match="was stopped"):
        decoder.probe(clip)


def test_it_imports_nothing_from_the_current_folder(clip, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with closing(process.DecoderProcess()) as decoder:
        assert decoder.probe(clip).pictures


def test_it_ends_with_the_process_that_started_it(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from reeltag.data.video.decode import DecoderProcess\n"
        "decoder = DecoderProcess(); decoder.probe(Path(sys.argv[1]))\n"
        "print(decoder._child.process.pid, flush=True); os._exit(0)"  # as after a crash
    )
    clip = write_clip(tmp_path / "a.mp4", 1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, clip], capture_output=True, check=True, env=environment)
    assert ends(int(done.stdout))


def ends(pid):
    """Return True if a process ends within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False
