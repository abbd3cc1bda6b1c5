"""A bad record ends the work, or is skipped up to a cap, counted, reported, and the same after a resume."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from badshards import FORGIVEN, KINDS, NEED_LABELS, REPEATED, SCHEMA, Case, make_case
from conftest import assert_same
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.tfrecord import ShardFile
from reeltag.data.holdout import split_holdout
from reeltag.data.loader import training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.shards import Manifest, Shards, scan
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reliability import Promise

COLUMNS = ("frames", "id_hashes", "class_counts")
PREDICT_KINDS = [kind for kind in KINDS if kind not in (NEED_LABELS, REPEATED, *FORGIVEN)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = parse_config({"family": "mean", "hidden": 3})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    path = tmp_path_factory.mktemp("model") / "m.reeltag"
    save_artifact(path, Artifact(SCHEMA, None, (Member("a", config, 1.0, state),), {}))
    return path


def as_places(manifest: Manifest) -> list[tuple[str, int, int]]:
    return [(record.file, record.record, record.offset) for record in manifest.left_out]


def check_manifest(case: Case, folder: Path) -> None:
    """Exactly the bad records are skipped, and all else is as in shards without."""
    most = len(case.places)
    found = scan(case.bad, SCHEMA, max_bad_records=most, labelled=True)
    clean = scan(case.clean, SCHEMA, labelled=True)
    assert as_places(found) == [place[:3] for place in case.places]
    assert all(kind in record.reason for record, (*_, kind) in zip(found.left_out, case.places, strict=True))
    assert found.labelled == clean.labelled == len(found) == len(clean)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(found, column), getattr(clean, column))
    assert found.first_records.tolist() == clean.first_records.tolist()
    found.save(folder / "manifest")
    again = Manifest.load(folder / "manifest")
    assert again.left_out == found.left_out
    shards, others = Shards(again), Shards(clean)
    for index in range(len(again)):
        assert_same(shards.read(index), others.read(index))
        path, number, offset = shards.location(index)
        assert ShardFile(Path(path)).offsets()[number] == offset  # numbers are those in the shard
    one, other = (split_holdout(manifest, 7, fraction=0.2) for manifest in (again, clean))
    for indices, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(indices, same)
    batches, same_batches = (
        training_batches(each, one[0], shuffle=Shuffle(3), batch_size=5, steps=range(9)) for each in (shards, others)
    )
    for batch, same in zip(batches, same_batches, strict=True):
        assert batch.ids == same.ids
        assert batch.frames.equal(same.frames)


def check_limit(case: Case) -> None:
    """One more than the limit is an error that names it and those before."""
    most = len(case.places) - 1
    path, record, offset, kind = case.places[-1]
    with pytest.raises(DataError, match=re.escape(kind)) as caught:
        scan(case.bad, SCHEMA, max_bad_records=most, labelled=True)
    error = caught.value
    assert (error.file, error.record, error.offset) == (path, record, offset)
    assert f"one more than max_bad_records, {most}, after\n  " in error.reason
    first = case.places[0]
    assert f"{first[0]}, record {first[1]}, byte {first[2]}: " in error.reason
    assert f"and {most - 5} more" in error.reason
    with pytest.raises(DataError) as caught:
        scan(case.bad, SCHEMA, labelled=True)
    assert (caught.value.file, caught.value.record, caught.value.offset) == first[:3]
    assert "max_bad_records" not in caught.value.reason


def test_what_is_left_out_is_what_is_bad_and_nothing_else_changes(promise: Promise, tmp_path: Path) -> None:
    cases = promise.amount(3, 200)
    for seed in range(cases):
        case = make_case(tmp_path / str(seed), random.Random(seed))
        check_manifest(case, tmp_path)
        check_limit(case)
    promise.found(
        6,
        f"{cases} sets of shards with {len(KINDS)} kinds of bad records: the manifest, the hold-out, the order of "
        "training and every video are those of the same shards without them; one more than the limit ends the work and "
        "names it. A whole recipe with students gives the same file, byte for byte, also after a stop; `predict --out` "
        "too, with one and two workers",
    )


def length_of(path: Path, change: int) -> None:
    """Change a byte of the third record's length, or cut the shard there."""
    content, offset = bytearray(path.read_bytes()), int(ShardFile(path).offsets()[2])
    content[offset + 1] ^= change
    path.write_bytes(content if change else content[: offset + 30])


@pytest.mark.parametrize(("change", "reason"), [(1, "so no later record can be found"), (0, "bytes are missing")])
def test_what_hides_the_records_after_it_always_ends_the_work(tmp_path: Path, change: int, reason: str) -> None:
    case = make_case(tmp_path, random.Random(1))
    offset = int(ShardFile(case.bad[1]).offsets()[2])
    length_of(case.bad[1], change)
    with pytest.raises(DataError, match=reason) as caught:
        scan(case.bad, SCHEMA, max_bad_records=1000)
    assert (caught.value.file, caught.value.record, caught.value.offset) == (str(case.bad[1]), 2, offset)


def test_no_limit_is_below_zero(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_bad_records: must be 0 or more, not -1"):
        scan([tmp_path], SCHEMA, max_bad_records=-1)


# --- a whole recipe -----------------------------------------------------------------------------

RECIPE = """name = "r"
budget_mb = 1
[data]
train = ["train-*"]
test = ["test-*"]
max_bad_records = 10
schema = { features = [{ name = "rgb", width = 6 }, { name = "audio", width = 2 }], classes = 8, max_frames = 9 }
[training]
epochs = 2
batch_size = 8
workers = 0
[models.a]
family = "mean"
hidden = 3
[distillation]
teachers = 1
"""


def run(folder: Path, command: str, data: str) -> int:
    arguments = [str(folder / "r.toml"), "--out", str(folder / f"out-{data}"), "--set", f"data.root={folder / data}"]
    return main([command, *arguments])


def test_a_run_is_that_of_the_sound_records_also_after_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    train = make_case(tmp_path, random.Random(3), videos=20)
    test = make_case(tmp_path, random.Random(4), kinds=["no id"], shards=1, prefix="test")
    assert run(tmp_path, "run", "clean") == 0
    assert run(tmp_path, "train", "bad") == 0  # as if it had been stopped there
    printed = capsys.readouterr().err
    assert f"10 bad records left out:\n  {train.places[0][0]}, record {train.places[0][1]}, byte " in printed
    assert "and 5 more" in printed
    assert run(tmp_path, "run", "bad") == 0
    one, other = ((tmp_path / f"out-{data}" / "model.reeltag").read_bytes() for data in ("bad", "clean"))
    assert one == other
    results = json.loads((tmp_path / "out-bad" / "results.json").read_text())
    for split, case in (("train", train), ("test", test)):
        told = [(record["file"], record["record"], record["offset"]) for record in results["bad_records"][split]]
        assert told == [(Path(path).name, record, offset) for path, record, offset, _ in case.places]
    report = (tmp_path / "out-bad" / "report" / "report.md").read_text()
    assert "10 bad records of data.train left out:\n\n- train-" in report
    assert "1 bad record of data.test left out:\n\n- test-0.tfrecord, record" in report
    assert "left out" not in (tmp_path / "out-clean" / "report" / "report.md").read_text()


# --- commands -----------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize("workers", [1, 2])
def test_predictions_leave_out_the_same_with_any_workers_and_after_a_stop(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    case = make_case(tmp_path, random.Random(5), PREDICT_KINDS, shards=5)
    assert main(["predict", str(model), *map(str, case.clean), "--out", str(tmp_path / "clean.jsonl")]) == 0
    out = tmp_path / "bad.jsonl"
    command = ["predict", str(model), *map(str, case.bad), "--out", str(out), "--workers", str(workers)]
    most = len(case.places)
    capsys.readouterr()
    assert main([*command, "--max-bad-records", str(most - 1)]) == 2  # parts are finished, and then it is one too many
    printed = capsys.readouterr().err
    assert f"one more than max_bad_records, {most - 1}, after" in printed
    assert not out.exists()
    done = len(list((tmp_path / "bad.jsonl.parts").glob("*.json")))
    assert done >= 1
    assert main([*command, "--max-bad-records", str(most - 1)]) == 2  # the parts remember
    assert "one more than max_bad_records" in capsys.readouterr().err
    assert main([*command, "--max-bad-records", str(most)]) == 0
    printed = capsys.readouterr().err
    assert re.search(r"[1-5] of 5 shards were done before", printed)
    first = case.places[0]
    assert f"{most} bad records left out:\n  {first[0]}, record {first[1]}, byte {first[2]}: " in printed
    assert lines_of(out) == lines_of(tmp_path / "clean.jsonl")
    assert main(["predict", str(model), *map(str, case.bad), "--max-bad-records", str(most)]) == 0
    printed_here = capsys.readouterr()
    assert printed_here.out == out.read_text()
    assert printed_here.err == printed[printed.index(f"{most} bad records") :]
    assert main(["predict", str(model), *map(str, case.bad)]) == 2
    assert f"error: {first[0]}, record {first[1]}, byte {first[2]}: " in capsys.readouterr().err


def test_a_shard_that_cannot_be_walked_ends_predictions_and_once_mended_they_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make_case(tmp_path, random.Random(6), PREDICT_KINDS[:2], shards=3)
    shutil.copy(case.bad[2], tmp_path / "whole")
    length_of(case.bad[2], 1)
    command = ["predict", str(model), *map(str, case.bad), "--out", str(tmp_path / "p.csv"), "--max-bad-records", "9"]
    assert main(command) == 2
    assert "so no later record can be found" in capsys.readouterr().err
    shutil.copy(tmp_path / "whole", case.bad[2])
    assert main(command) == 0
    printed = capsys.readouterr().err
    assert "2 of 3 shards were done before" in printed
    assert "2 bad records left out:" in printed
    assert len(lines_of(tmp_path / "p.csv")) == 1 + 3 * 12


def test_evaluate_and_verify_take_the_same_limit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [kind for kind in KINDS if kind != REPEATED]
    case = make_case(tmp_path, random.Random(7), kinds)
    assert main(["evaluate", str(model), *map(str, case.clean)]) == 0
    expected = capsys.readouterr().out
    limit = ["--max-bad-records", str(len(case.places))]
    assert main(["evaluate", str(model), *map(str, case.bad), *limit]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected
    assert f"{len(case.places)} bad records left out:" in printed.err
    assert main(["evaluate", str(model), *map(str, case.bad), "--max-bad-records", "2"]) == 2
    assert "one more than max_bad_records, 2" in capsys.readouterr().err
    (tmp_path / "r.toml").write_text(RECIPE)
    assert main(["data", "verify", *map(str, case.bad), "--schema", str(tmp_path / "r.toml"), *limit]) == 0
    printed = capsys.readouterr()
    told = [line for line in printed.out.splitlines() if line.startswith("bad ")]
    assert len(told) == len(case.places) - 1  # verify does not ask for labels
    for path, record, offset, kind in case.places:
        assert (f"{path}, record {record}, byte {offset}: " in printed.out) == (kind != NEED_LABELS)
    assert main(["predict", str(model), str(case.bad[0]), "--max-bad-records", "-1"]) == 2
    assert "max_bad_records: must be 0 or more, not -1" in capsys.readouterr().err


def test_soft_targets_know_records_by_their_number_in_the_shard(tmp_path: Path) -> None:
    import torch

    from reeltag.data.soft_targets import SoftTargets, TargetsWriter

    case = make_case(tmp_path, random.Random(8))
    whole = scan(case.bad, SCHEMA, max_bad_records=99, labelled=True)
    probabilities = torch.rand(len(whole), SCHEMA.classes).half().float()
    writer = TargetsWriter(tmp_path / "targets", whole, "dense")
    writer.put(np.arange(len(whole)), probabilities)
    writer.finish({})
    # Alone, a shard leaves out less: nothing stands before its first videos.
    for path in case.bad:
        alone = scan([path], SCHEMA, max_bad_records=99, labelled=True)
        targets = SoftTargets(tmp_path / "targets", alone)
        by_id = {Shards(whole).read(index).id: probabilities[index] for index in range(len(whole))}
        names = [Shards(alone).read(index).id for index in range(len(alone))]
        assert torch.equal(targets.rows(np.arange(len(alone))), torch.stack([by_id[name] for name in names]))
