"""The official shards, from a server of the same layout: parts, MD5s, faults, and only what is missing."""

import hashlib
import string
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from reeltag.cli.main import main
from reeltag.core import remote_files
from reeltag.core.errors import TransferError, UsageError
from reeltag.core.progress import Progress
from reeltag.data import yt8m_download
from reeltag.data.shards import scan
from reeltag.data.yt8m_download import OFFICIAL_URLS, Part, PlannedShard, UrlTemplates, download, parse_part, read_plan
from yt8m_server import serving

LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits
NAMES = ["".join(pair) for pair in product(LETTERS, repeat=2)]  # in the order of the numbers here
WHOLE = Part()


class Said(Progress):
    """Keeps what was said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote_files, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 1000)


@pytest.fixture
def shards():
    rng = np.random.default_rng(0)
    return {
        f"train{pair}.tfrecord": rng.bytes(2500 + 100 * number) for number, pair in enumerate(["aa", "ab", "bF", "99"])
    }


def fetched(server, out, **changes):
    wanted = {"level": "frame", "split": "train", "part": WHOLE, "mirror": "us", "progress": Progress()} | changes
    return download(out, source=server.source, **wanted)


def test_shards_lie_here_under_their_numbers(shards, tmp_path):
    with serving(shards) as server:
        paths = fetched(server, tmp_path / "new" / "folder")
        assert [path.name for path in paths] == [f"train{n:04}.tfrecord" for n in (0, 1, 93, 3843)]
        assert [path.read_bytes() for path in paths] == list(shards.values())
        assert sorted(path.name for path in paths[0].parent.iterdir()) == [".lock", *(path.name for path in paths)]


def test_addresses_are_those_of_the_official_script():
    assert (
        OFFICIAL_URLS.plan.format(level="frame", split="train")
        == "http://data.yt8m.org/2/download_plans/frame_train.json"
    )
    shard = OFFICIAL_URLS.shard.format(mirror="eu", level="video", split="test", name="testab.tfrecord")
    assert shard == "http://eu.data.yt8m.org/2/video/test/testab.tfrecord"


def planned(split):
    return [PlannedShard(f"{split}{pair}.tfrecord", f"{split}{n:04}.tfrecord", "") for n, pair in enumerate(NAMES)]


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_parts_are_disjoint_and_complete(parts):
    shards = planned("train")
    chosen = [shard for number in range(1, parts + 1) for shard in shards if shard in Part(number, parts)]
    assert sorted(chosen, key=lambda shard: shard.file) == shards


def test_parts_are_those_that_the_official_script_chose():
    """As people who ran it have told: which files the first of 100 parts has, and how many the first of 1000."""
    first = [shard.file for shard in planned("train") if shard in Part(1, 100)]
    assert {"train0093.tfrecord", "train0111.tfrecord", "train0208.tfrecord", "train2072.tfrecord"} <= set(first)
    counts = [sum(shard in Part(1, 1000) for shard in planned(split)) for split in ("train", "validate", "test")]
    assert counts == [5, 5, 4]


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3", "1.5/3", "1/99999999999"])
def test_parts_that_are_none(text):
    with pytest.raises(UsageError, match="part: give i/n"):
        parse_part(text)


def test_a_part_of_the_plan_alone_is_fetched(shards, tmp_path):
    with serving(shards) as server:
        kept = [name for name in shards if int(hashlib.md5(name.encode()).hexdigest(), 16) % 2 == 1]
        assert 0 < len(kept) < 4
        assert len(fetched(server, tmp_path, part=parse_part("2/2"))) == len(kept)
        assert set(server.times_asked) == set(kept)
        with pytest.raises(UsageError, match=r"part: 7/1000 of train has no shards"):
            fetched(server, tmp_path, part=Part(7, 1000))


@pytest.mark.parametrize("faults", [[503, 503], ["drop"], ["short"], [None, "drop", 503, "short"]])
def test_faults_that_pass_leave_no_trace(shards, tmp_path, faults):
    with serving(shards) as server:
        server.faults = {name: list(faults) for name in shards}
        paths = fetched(server, tmp_path)
    assert [path.read_bytes() for path in paths] == list(shards.values())


def test_wrong_bytes_are_fetched_once_more(shards, tmp_path):
    with serving(shards) as server:
        server.faults = {"trainab.tfrecord": [None, "wrong"]}
        paths = fetched(server, tmp_path)
        assert [path.read_bytes() for path in paths] == list(shards.values())
        assert server.times_asked == {
            "trainaa.tfrecord": 3,
            "trainab.tfrecord": 6,
            "trainbF.tfrecord": 3,
            "train99.tfrecord": 3,
        }


def test_wrong_bytes_that_stay_are_one_message_that_names_the_file(shards, tmp_path):
    with serving(shards) as server:
        server.shards["trainbF.tfrecord"] = b"?" * 2700
        with pytest.raises(TransferError) as caught:
            fetched(server, tmp_path)
    message = str(caught.value)
    assert "trainbF.tfrecord: was downloaded twice with another MD5 than the plan's" in message
    assert "train0093.tfrecord" in message and "--mirror" in message
    assert not (tmp_path / "train0093.tfrecord").exists()


def test_a_missing_shard_ends_the_others(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(yt8m_download, "CONCURRENT_DOWNLOADS", 1)
    with serving(shards) as server:
        del server.shards["trainaa.tfrecord"]
        with pytest.raises(TransferError, match=r"trainaa\.tfrecord: there is no such file"):
            fetched(server, tmp_path)
        assert not server.times_asked


def test_what_is_here_is_not_fetched_again(shards, tmp_path):
    with serving(shards) as server:
        paths = fetched(server, tmp_path)
        server.asked.clear()
        said = Said()
        assert fetched(server, tmp_path, progress=said) == paths
        assert not server.times_asked
        assert "4 shards of 4 exist already" in said.lines[0]
        paths[1].unlink()
        fetched(server, tmp_path)
        assert set(server.times_asked) == {"trainab.tfrecord"}
    assert [path.read_bytes() for path in paths] == list(shards.values())


def test_other_shards_of_the_same_names_are_kept(shards, tmp_path):
    """Such as those of the other level."""
    with serving(shards) as server:
        (tmp_path / "train0000.tfrecord").write_bytes(b"the only copy")
        with pytest.raises(UsageError, match=r"train0000\.tfrecord: exists, but its MD5 is not the plan's"):
            fetched(server, tmp_path)
        assert not server.times_asked
        (tmp_path / "train0001.tfrecord").write_bytes(b"another")
        with pytest.raises(UsageError, match="as have 1 more; remove"):
            fetched(server, tmp_path)
    assert (tmp_path / "train0000.tfrecord").read_bytes() == b"the only copy"


def test_a_killed_download_goes_on_where_it_was(tmp_path):
    rng = np.random.default_rng(0)
    shards = {name: rng.bytes(50_000) for name in ("trainaa.tfrecord", "trainab.tfrecord", "train99.tfrecord")}
    with serving(shards) as server:
        server.faults = {"train99.tfrecord": [None, "stall"]}  # of the last shard one chunk arrives
        program = (
            "from pathlib import Path\n"
            "from reeltag.core import remote_files\n"
            "from reeltag.data import yt8m_download as download\n"
            "from reeltag.core.progress import Progress\n"
            "remote_files.CHUNK_BYTES, download.CONCURRENT_DOWNLOADS = 20_000, 1\n"
            f"source = download.UrlTemplates({server.source.plan!r}, {server.source.shard!r})\n"
            f"out, part = Path({str(tmp_path)!r}), download.Part()\n"
            "download.download(out, 'frame', 'train', part, mirror='us', progress=Progress(), source=source)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program])
        stalled = server.stalled.wait(60)
        process.kill()
        process.wait()
        server.released.set()
        assert stalled
        assert {path.name for path in tmp_path.glob("*.tfrecord")} == {"train0000.tfrecord", "train0001.tfrecord"}
        server.asked.clear()
        paths = fetched(server, tmp_path)
        assert set(server.times_asked) == {"train99.tfrecord"}
        assert min(first for name, first, _ in server.asked if name != "plan") == 20_000
    assert [path.read_bytes() for path in paths] == list(shards.values())


def test_leftovers_of_a_killed_run_may_be_damaged(shards, tmp_path):
    with serving(shards) as server:
        (shard, *_) = read_plan("frame", "train", server.source)
        (tmp_path / shard.unfinished).write_bytes(b"x" * 1500)
        paths = fetched(server, tmp_path)
    assert paths[0].read_bytes() == shards["trainaa.tfrecord"]


def test_disk_space_is_checked_before(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(yt8m_download, "free_bytes", lambda path: 9_000)
    with serving(shards) as server:
        with pytest.raises(
            UsageError, match=r"10,600 bytes have to be downloaded, but only 9,000 bytes are free; make room"
        ):
            fetched(server, tmp_path)
        assert not server.times_asked
        # What is here already needs no room.
        (first, *_) = read_plan("frame", "train", server.source)
        (tmp_path / first.file).write_bytes(shards[first.name])
        assert len(fetched(server, tmp_path)) == 4


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"files": 3}',
        b'{"files": {"../../x": "0"}}',
        b'{"files": {"trainaa.tfrecord": "short"}}',
        b'{"files": {"trainaa.tfrecord": 3}}',
    ],
)
def test_a_plan_that_is_none(shards, tmp_path, plan):
    with serving(shards) as server:
        server.plan = plan
        with pytest.raises(TransferError, match="is not a plan of train shards"):
            fetched(server, tmp_path)


def test_a_mirror_out_of_reach_is_one_message(capsys, tmp_path, monkeypatch):
    nobody = "http://127.0.0.1:9/"
    monkeypatch.setattr(
        yt8m_download,
        "OFFICIAL_URLS",
        UrlTemplates(nobody + "{level}_{split}", nobody + "{mirror}{level}{split}{name}"),
    )
    assert main(["data", "download", "yt8m", "--split", "train", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "frame_train: cannot be reached" in message and "Traceback" not in message


def test_the_command(capsys, tmp_path, monkeypatch, tiny_shards, tiny_schema):
    content = [path.read_bytes() for path in sorted(tiny_shards.glob("train-*"))]
    there = {f"validate{pair}.tfrecord": each for pair, each in zip(NAMES, content, strict=False)}
    with serving(there) as server:
        monkeypatch.setattr(yt8m_download, "OFFICIAL_URLS", server.source)
        arguments = ["data", "download", "yt8m", "--split", "validate", "--mirror", "asia", "--out", str(tmp_path)]
        assert main(arguments) == 0
    assert f"{len(content)} shard" in capsys.readouterr().out
    assert len(scan(sorted(tmp_path.glob("validate????.tfrecord")), tiny_schema)) > 0
    assert main([*arguments, "--part", "3/2"]) == 2
    assert "part: give i/n" in capsys.readouterr().err
