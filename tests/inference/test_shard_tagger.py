"""Tagging shards into one file: the bytes do not depend on workers, threads or interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from conftest import make_video
from processgroup import all_end, living
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.environment import install_command
from reeltag.core.errors import DataError, UsageError
from reeltag.core.progress import Progress
from reeltag.data.flat_videos import is_flat, rgb_feature_index
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.schema import Feature, Schema, preset_schema
from reeltag.inference import shard_tagger
from reeltag.inference.predictor import load
from reeltag.inference.shard_tagger import ShardTagger, TagCounts, predict_to_file
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

WITH_PYARROW = find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not WITH_PYARROW, reason="pyarrow is missing: pip install 'reeltag[parquet]'")
ENDINGS = ["csv", "jsonl", pytest.param("parquet", marks=needs_pyarrow)]


def save_model(path, schema, **table):
    config = parse_config(table)
    state = build_tagger(config, schema.widths, schema.classes, 0).state_dict()
    save_artifact(path, Artifact(schema, None, (Member("a", config, 1.0, state),), {}))
    return path


def make_shard(path, schema, count):
    videos = (make_video(schema, 3 + number % 5, name=f"{path.stem}-{number}") for number in range(count))
    write_shard(path, (encode(video, schema) for video in videos))


@pytest.fixture(scope="module")
def shards(tiny_schema, tmp_path_factory):
    """Write forty shards, most of them larger than one batch."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(40):
        make_shard(folder / f"s-{number:02}.tfrecord", tiny_schema, 40 + 5 * number)
    return folder


@pytest.fixture(scope="module")
def model(tiny_schema, tmp_path_factory):
    """Write a model whose products are so large that their rounding depends on the number of torch's threads."""
    path = tmp_path_factory.mktemp("model") / "model.reeltag"
    return save_model(path, tiny_schema, family="rnn", cell="lstm", cells=128, hidden=64)


@pytest.fixture(scope="module")
def whole(model, shards, tmp_path_factory):
    """Write the output of an uninterrupted run in each format."""
    folder = tmp_path_factory.mktemp("whole")
    names = ["p.csv", "p.jsonl", *(["p.parquet"] if WITH_PYARROW else [])]
    for name in names:
        assert main(["predict", str(model), f"{shards}/*", "--out", str(folder / name)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == names
    return folder


def launch(model, shards, out, workers):
    """Start the command in a process group of its own."""
    code = "import sys; from reeltag.cli.main import main; __name__ == '__main__' and sys.exit(main())"
    command = [sys.executable, "-c", code, "predict", model, f"{shards}/*", "--out", out, "--workers", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    return subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Processes that a shell starts in the background ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def start(model, shards, out, workers):
    """Start the command and wait until its first shard is finished."""
    process = launch(model, shards, out, workers)
    while not list(parts_of(out).glob("*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


def parts_of(out):
    return out.with_name(out.name + ".parts")


def resume(capsys, model, shards, out, whole):
    """Run the command again; assert that it reuses finished shards and writes the bytes of an uninterrupted run."""
    done = len(list(parts_of(out).glob("*.json")))
    assert 0 < done < 40
    assert main(["predict", str(model), f"{shards}/*", "--out", str(out)]) == 0
    assert f"{done} of 40 shards were done before" in capsys.readouterr().err
    assert out.read_bytes() == (whole / f"p{out.suffix}").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_killed_run_resumes_and_writes_the_same_bytes(capsys, model, shards, whole, tmp_path):
    out = tmp_path / "p.csv"
    process = start(model, shards, out, 1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert all_end(process.pid)
    (parts_of(out) / ".part-0.csv.1.partial").touch()
    (tmp_path / f".{out.name}.1.partial").touch()
    resume(capsys, model, shards, out, whole)


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_keeps_finished_shards(capsys, model, shards, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    process = start(model, shards, out, 2)
    os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "the same command resumes after the shards that are finished" in printed
    assert "Traceback" not in printed
    assert all_end(process.pid)
    assert not list(parts_of(out).glob(".part-*"))
    resume(capsys, model, shards, out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_ctrl_c_while_workers_start_prints_no_traceback(model, shards, tmp_path, seconds):
    process = launch(model, shards, tmp_path / "p.csv", 2)
    while not any("spawn_main" in args for args in living(process.pid).values()):
        assert process.poll() is None
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert all_end(process.pid)


@pytest.mark.slow
def test_the_shard_of_a_killed_worker_is_tagged_again(capsys, model, shards, whole, tmp_path):
    out = tmp_path / "p.csv"
    process = start(model, shards, out, 2)
    worker = next(pid for pid, args in living(process.pid).items() if "spawn_main" in args)
    os.kill(worker, signal.SIGKILL)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    assert all_end(process.pid)
    assert out.read_bytes() == (whole / "p.csv").read_bytes()


@needs_pyarrow
@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes(capsys, model, shards, whole, tmp_path):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    assert main(["predict", str(model), f"{shards}/*", "--out", str(tmp_path / "p.csv"), "--executor", "ray"]) == 0
    assert (tmp_path / "p.csv").read_bytes() == (whole / "p.csv").read_bytes()
    assert "videos" in capsys.readouterr().out


def test_workers_and_threads_do_not_change_the_output(model, shards, whole, tmp_path):
    counts = predict_to_file(model, [f"{shards}/*"], tmp_path / "p.parquet", workers=2)
    assert counts == TagCounts(videos=sum(40 + 5 * number for number in range(40)))
    assert (tmp_path / "p.parquet").read_bytes() == (whole / "p.parquet").read_bytes()
    shard = sorted(shards.iterdir())[-1]
    one, three = (list(ShardTagger(load(model), threads).tag(shard, TagCounts())) for threads in (1, 3))
    assert [part.ids for part in one] == [part.ids for part in three]
    for part, other in zip(one, three, strict=True):
        np.testing.assert_array_equal(part.probabilities.numpy(), other.probabilities.numpy())


def test_a_damaged_shard_stops_the_run_and_a_repaired_one_is_resumed(capsys, model, shards, whole, tmp_path):
    copies, out = tmp_path / "copies", tmp_path / "p.csv"
    shutil.copytree(shards, copies)
    bad = copies / "s-30.tfrecord"
    content = bytearray(bad.read_bytes())
    content[-20] ^= 1
    bad.write_bytes(content)
    command = ["predict", str(model), f"{copies}/*", "--out", str(out), "--workers", "2"]
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert f"error: {bad}, record 189, byte " in printed
    assert "CRC of the payload does not match" in printed
    assert "Traceback" not in printed
    assert not out.exists()
    assert not list(parts_of(out).glob(".part-*"))
    # A worker may have been killed between a part and its marker; such a part is written again.
    kept = {
        path.name: path.stat().st_mtime_ns
        for marker in parts_of(out).glob("*.json")
        for path in (marker, marker.with_suffix(".csv"))
    }
    assert len(kept) >= 30
    shutil.copy(shards / bad.name, bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shard_tagger, "remove_folder", lambda folder: None
        )  # keeps the parts, whose times tell which were written again
        assert main(command[:-2]) == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in parts_of(out).iterdir()}.items()
    assert out.read_bytes() == (whole / "p.csv").read_bytes()


class Listener(Progress):
    """Progress that records its lines."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.mark.parametrize(
    ("change", "done"),
    [("nothing", 3), ("shard", 2), ("model", 0), ("mode", 0), ("drop_flat", 0), ("frames", 0), ("format", 0)],
)
def test_a_changed_run_does_not_reuse_stale_parts(tiny_schema, tmp_path, change, done):
    one, other = (save_model(tmp_path / f"{k}.reeltag", tiny_schema, family="mean", hidden=k) for k in (3, 4))
    for number in range(5):
        make_shard(tmp_path / f"s-{number}.tfrecord", tiny_schema, 6)
    last = tmp_path / "s-3.tfrecord"
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    pattern, out, options = [str(tmp_path / "s-*")], tmp_path / "p.csv", {}
    with pytest.raises(DataError, match="truncated"):
        predict_to_file(one, pattern, out)
    last.write_bytes(content)
    if change == "model":
        other.replace(one)
    elif change == "shard":  # another content of the same size
        videos = (make_video(tiny_schema, 3 + number % 5, name=f"t-0-{number}") for number in range(6))
        write_shard(tmp_path / "s-0.tfrecord", (encode(video, tiny_schema) for video in videos))
    elif change == "format":
        parts_of(out).rename(tmp_path / "p.jsonl.parts")
        out = tmp_path / "p.jsonl"
    elif change != "nothing":
        options[change] = {"mode": "bf16", "drop_flat": True, "frames": 2}[change]
    listener = Listener()
    predict_to_file(one, pattern, out, progress=listener, **options)
    assert listener.lines == ([f"{done} of 5 shards were done before"] if done else [])
    predict_to_file(one, pattern, tmp_path / f"fresh{out.suffix}", **options)
    assert out.read_bytes() == (tmp_path / f"fresh{out.suffix}").read_bytes()


def test_a_marker_without_its_part_is_unfinished(tiny_schema, tmp_path):
    model = save_model(tmp_path / "m.reeltag", tiny_schema, family="mean", hidden=3)
    make_shard(tmp_path / "s-0.tfrecord", tiny_schema, 6)
    out, shards = tmp_path / "p.csv", [str(tmp_path / "s-0.tfrecord")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_tagger, "remove_folder", lambda folder: None)
        predict_to_file(model, shards, out)
    whole = out.read_bytes()
    out.unlink()
    for part in parts_of(out).glob("*.csv"):
        part.unlink()
    assert predict_to_file(model, shards, out).videos == 6
    assert out.read_bytes() == whole


def test_progress_and_summary_of_predict(capsys, model, shards, tmp_path):
    assert main(["predict", str(model), f"{shards}/s-0*", "--out", str(tmp_path / "p.csv")]) == 0
    printed = capsys.readouterr()
    size = sum(path.stat().st_size for path in shards.glob("s-0*"))
    assert f"predict: {size / 1e6:.1f}/{size / 1e6:.1f} MB" in printed.err
    assert ", 625 videos\n" in printed.err
    assert printed.out == f"{tmp_path / 'p.csv'}: 625 videos\n"


def test_standard_output_equals_the_json_lines_file(capsys, model, shards, whole):
    assert main(["predict", str(model), f"{shards}/*"]) == 0
    assert capsys.readouterr().out == (whole / "p.jsonl").read_text()


@needs_pyarrow
def test_parquet_holds_the_content_of_json_lines(whole):
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(whole / "p.parquet")
    expected = {"id": pyarrow.string()}
    expected |= {
        name: pyarrow.list_(kind)
        for name, kind in zip(
            ("classes", "names", "scores"), (pyarrow.int32(), pyarrow.string(), pyarrow.float32()), strict=True
        )
    }
    assert {name: table.schema.field(name).type for name in table.schema.names} == expected
    lines = [json.loads(line) for line in (whole / "p.jsonl").open()]
    for row, line in zip(table.to_pylist(), lines, strict=True):
        assert row["id"] == line["id"]
        assert row["classes"] == [tag["class"] for tag in line["tags"]]
        assert row["names"] == [tag["name"] for tag in line["tags"]]
        np.testing.assert_allclose(row["scores"], [tag["score"] for tag in line["tags"]], atol=6e-7)
    assert parquet.ParquetFile(whole / "p.parquet").num_row_groups == 40


def test_parquet_without_pyarrow_is_an_error_before_tagging(capsys, model, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # its import fails
    assert main(["predict", "no.reeltag", f"{shards}/*", "--out", str(tmp_path / "p.parquet")]) == 2
    assert install_command("parquet") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["predict", str(model), f"{shards}/s-00*", "--out", str(tmp_path / "p.csv")]) == 0


def test_invalid_arguments_are_errors_before_tagging(capsys, model, shards, tmp_path):
    own = tmp_path / "p.csv.parts" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    for options, message in [
        (["--out", "p.csv"], "holds more than parts of predictions"),
        (["--out", "q.csv", "--workers", "0"], "workers: must be 1 or more, not 0"),
        (["--workers", "2"], "give --out"),
    ]:
        options = [str(tmp_path / option) if option.endswith("csv") else option for option in options]
        assert main(["predict", str(model), f"{shards}/*", *options]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["p.csv.parts", "notes.txt"]


def test_videos_are_refused_with_the_command_that_tags_them(capsys, model, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "labels.csv").write_text("file,labels\na.mp4,beach\n")
    (videos / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(400))
    for command in ("predict", "evaluate"):
        for given, what in [
            (videos / "a.mp4", "is a video"),
            (videos / "*.mp4", "is a video"),
            (videos, "is a folder of"),
        ]:
            assert main([command, str(model), str(given)]) == 2
            said = capsys.readouterr().err
            assert what in said
            assert "`reeltag tag`" in said
            assert said.count("\n") == 1


FLAT = Schema(features=(Feature(name="audio", width=4), Feature(name="rgb", width=64)), classes=8)


def image_video(name, spread, rng):
    """Generate a video whose mean frame has a standard deviation of about `spread`."""
    count = int(rng.integers(1, 9))
    mean = 127 + rng.normal(size=64) * spread * 255 / 4
    rgb = np.clip(np.round(mean + rng.normal(size=(count, 64))), 0, 255).astype(np.uint8)
    return Video(name, None, (rng.integers(0, 256, (count, 4), dtype=np.uint8), rgb))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_flat_videos_are_dropped_by_the_authors_rule(capsys, tmp_path, workers):
    rng, expected = np.random.default_rng(0), []
    for shard in range(3):
        videos = [image_video(f"{shard}-{number}", rng.uniform(0.05, 0.15), rng) for number in range(90)]
        write_shard(tmp_path / f"s-{shard}.tfrecord", [encode(video, FLAT) for video in videos])
        for video in videos:
            values = video.features[1].astype(np.float64) * 4 / 255 + 4 / 512 - 2
            if np.std(values.mean(0)) > 0.1:
                expected.append(video.id)
    assert 90 < len(expected) < 180
    model = save_model(tmp_path / "model.reeltag", FLAT, family="mean", hidden=3)
    command = ["predict", str(model), str(tmp_path / "s-*"), "--drop-flat"]
    assert main([*command, "--out", str(tmp_path / "p.jsonl"), "--workers", str(workers)]) == 0
    assert f"{270 - len(expected)} flat videos dropped" in capsys.readouterr().err
    assert [json.loads(line)["id"] for line in (tmp_path / "p.jsonl").open()] == expected
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "p.jsonl").read_text()
    assert printed.err == f"{270 - len(expected)} flat videos dropped\n"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_shard_of_only_flat_videos_gives_an_empty_file(capsys, tmp_path, ending):
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "s", [encode(image_video(str(number), 0.01, rng), FLAT) for number in range(3)])
    model, out = save_model(tmp_path / "m.reeltag", FLAT, family="mean", hidden=3), tmp_path / f"p.{ending}"
    assert main(["predict", str(model), str(tmp_path / "s"), "--drop-flat", "--out", str(out)]) == 0
    assert capsys.readouterr().err.endswith("3 flat videos dropped\n")
    if ending == "parquet":
        from pyarrow import parquet

        assert parquet.read_table(out).num_rows == 0
    else:
        assert out.read_text() == {"csv": "VideoId,LabelConfidencePairs\n", "jsonl": ""}[ending]


def test_flat_videos_of_video_level_features_and_without_images():
    rng = np.random.default_rng(0)
    for spread in (0.09, 0.11):
        values = rng.normal(size=(1, 1024))
        values *= spread / values.std()
        video = Video("a", None, (values.astype(np.float32), np.zeros((1, 128), np.float32)))
        assert is_flat(video, rgb_feature_index(preset_schema("yt8m-video"))) == (spread < 0.1)
    with pytest.raises(UsageError, match="the model reads audio_embedding"):
        rgb_feature_index(preset_schema("audioset"))
