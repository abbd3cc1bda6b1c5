"""Logs that are sent to a tracker: every row once, in order, and no training ends because of it."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

from conftest import SMALL_RECIPE
from reeltag.cli.main import main
from reeltag.core.progress import Progress
from reeltag.pipeline.follow import Follower
from reeltag.training.log import LOG, Row, TrainingLog, read_rows
from reeltag.training.trackers.files import CsvFiles
from reeltag.training.trackers.tracker import Run

RECIPE = SMALL_RECIPE.replace("epochs = 1", "epochs = 2\nevaluate_every = 1")
FOLDER = "train.a-0123"


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class Recorder:
    """A tracker that fails as often as it is told."""

    def __init__(self, failures=0, place="here"):
        self.failures, self.rows, self.closed, self.place = failures, {}, None, place

    def log(self, training, rows):
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("no route to host")
        self.rows.setdefault(training, []).extend(rows)

    def close(self, *, finished):
        self.closed = finished


@pytest.fixture
def stage(tmp_path):
    folder = tmp_path / "stages" / FOLDER
    folder.mkdir(parents=True)
    return folder


def write(stage, rows):
    TrainingLog([Row(step, step / 8, 1 / step, 1e-3, 0.5 if step == 2 else None) for step in range(1, rows + 1)]).write(
        stage / LOG
    )


def follower(stage, tracker):
    said = Said()
    follows = Follower("mine", tracker, stage.parents[1] / "logs" / "mine.json", said)
    follows.add(stage)
    (stage.parents[1] / "logs").mkdir(exist_ok=True)
    return follows, said.lines


def test_every_row_is_sent_once_also_by_a_process_that_goes_on(stage):
    first, second = Recorder(), Recorder()
    follows, said = follower(stage, first)
    follows.send()  # there is no log yet
    for rows in (2, 2, 5):
        write(stage, rows)
        follows.send()
    again, _ = follower(stage, second)
    write(stage, 7)
    again.close(finished=True)
    assert [row.step for tracker in (first, second) for row in tracker.rows[FOLDER]] == list(range(1, 8))
    assert first.rows[FOLDER] + second.rows[FOLDER] == read_rows(stage / LOG)
    assert second.closed is True and not said
    for place, rows in (("there", 7), ("there", 0), ("here", 0)):
        other = Recorder(place=place)
        follower(stage, other)[0].send()
        assert sum(map(len, other.rows.values())) == rows


def test_a_tracker_that_cannot_be_reached_is_said_once_and_gets_the_rest_later(stage):
    tracker = Recorder(failures=3)
    follows, said = follower(stage, tracker)
    write(stage, 4)
    for _ in range(5):
        follows.send()
    (line,) = said
    assert line.startswith("--log mine: cannot be reached (no route to host); training goes on")
    assert [row.step for row in tracker.rows[FOLDER]] == [1, 2, 3, 4]
    tracker.failures = 1
    write(stage, 6)
    follows.close(finished=False)
    assert said[1:] == ["--log mine: 2 rows not sent; the same command sends them later"]


def test_csv_files_have_what_the_log_has(stage):
    tracker = CsvFiles(Run("small", stage.parents[1], {}))
    follows, _ = follower(stage, tracker)
    for rows in (3, 5):
        write(stage, rows)
        follows.send()
        assert (stage.parents[1] / "logs" / "train.a.csv").read_bytes() == (stage / LOG).read_bytes()


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_without_a_tracker_its_extra_is_named_before_anything_is_trained(tmp_path, capsys, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "small.toml").write_text(RECIPE)
    assert main(["train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--log", name]) == 2
    assert f"error: --log {name}: needs {module}, which is not installed; pip install" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "stages").iterdir())


def train(tmp_path, *options, **environment):
    """Train in a process of its own, as trackers start threads and processes."""
    (tmp_path / "small.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "reeltag", "train", "small.toml", "--out", "out", "--quiet", *options]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, check=True)
    (log,) = (tmp_path / "out").glob(f"stages/*/{LOG}")
    return read_rows(log)


def leveldb_records(content):
    """Yield the records of a log in LevelDB's format, after W&B's header of seven bytes."""
    place, parts = 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:  # too short for a record's header
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_has_the_rows_in_its_offline_files(tmp_path):
    from wandb.proto import wandb_internal_pb2 as records

    rows = train(tmp_path, "--log", "wandb", WANDB_API_KEY="", WANDB_MODE="offline")
    assert train(tmp_path, "--log", "wandb", WANDB_API_KEY="", WANDB_MODE="offline") == rows  # sends nothing twice
    (file,) = (tmp_path / "out" / "logs" / "wandb").glob("offline-run-*/*.wandb")
    found, groups = [], set()
    for data in leveldb_records(file.read_bytes()):
        record = records.Record.FromString(data)
        if record.HasField("history"):
            items = {
                (item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            found.append(items)
        if record.HasField("run"):
            groups.add(record.run.run_group)
    assert groups == {"out"}
    assert [each["_step"] for each in found] == [row.step for row in rows]
    assert [each["loss"] for each in found] == [row.loss for row in rows]
    gaps = [row.holdout_gap for row in rows if row.holdout_gap is not None]
    assert [each["holdout_gap"] for each in found if "holdout_gap" in each] == gaps


def check_mlflow(uri, rows):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    names = {run.info.run_name: run for run in runs}
    assert names.keys() == {"out", "train.a"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    training = names["train.a"]
    assert training.data.tags["mlflow.parentRunId"] == names["out"].info.run_id
    assert names["out"].data.params["models.a.family"] == "mean"
    history = client.get_metric_history(training.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(row.step, row.loss) for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_has_the_rows_in_its_file(tmp_path):
    rows = train(tmp_path, "--log", "mlflow", MLFLOW_TRACKING_URI="")
    assert train(tmp_path, "--log", "mlflow", MLFLOW_TRACKING_URI="") == rows
    check_mlflow(f"sqlite:///{tmp_path / 'out' / 'logs' / 'mlflow.db'}", rows)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("mlflow") is None or find_spec("flask_cors") is None, reason="MLflow's server is not installed"
)
def test_mlflow_has_the_rows_on_its_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--port",
        uri.rpartition(":")[2],
        "--workers",
        "1",
    ]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *store], stderr=subprocess.DEVNULL)
    try:
        rows = train(tmp_path, "--log", "mlflow", MLFLOW_TRACKING_URI=uri)  # most likely before it answers
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(1)
        assert train(tmp_path, "--log", "mlflow", MLFLOW_TRACKING_URI=uri) == rows
        check_mlflow(uri, rows)
    finally:
        server.terminate()
        server.wait()
