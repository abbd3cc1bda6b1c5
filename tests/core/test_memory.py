"""Memory that runs out is said in one message that names the key to change; what was saved stays."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import TINY_RUN
from reeltag.cli.main import main
from reeltag.core.errors import OutOfMemoryError
from reeltag.core.memory import explain_out_of_memory
from reeltag.data.loader import Batch
from reeltag.inference.ensemble import predict_batches

# A command whose process may take so many bytes more than it has when all is imported.
LIMITED = """
import resource, sys
import reeltag.pipeline.plan, torch
from reeltag.cli.main import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""
RECIPE = 'name = "tiny"\nbudget_mb = 5000\n' + TINY_RUN.replace("epochs = 6", "epochs = 6000")
NEEDED_DISK = 2e9  # bytes
MODEL = '[models.a]\nfamily = "mean"\nhidden = 60000\n'


def limited(*arguments):
    code = [sys.executable, "-c", LIMITED, *map(str, arguments)]
    return subprocess.run(code, capture_output=True, text=True, timeout=120)


def told(ended):
    """The one message of a command that failed."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)])
def test_whoever_says_so_is_understood(ask):
    message = r"^work: memory ran out( while allocating .*)?; take less$"
    with pytest.raises(OutOfMemoryError, match=message), explain_out_of_memory("work", "take less"):
        ask()


def test_a_gpu_that_says_so_is_named():
    said = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB"
    message = r"a GPU's memory ran out while allocating 20\.00 MiB"
    with pytest.raises(OutOfMemoryError, match=message), explain_out_of_memory("work", "take less"):
        raise torch.OutOfMemoryError(said)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(2, "no such file"), ValueError("memory")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, explain_out_of_memory("work", "take less"):
        raise error
    assert caught.value is error


def test_tagging_that_takes_too_much_says_what_takes_less():
    class Absurd(torch.nn.Linear):
        def forward(self, frames, lengths):
            return torch.empty(2**50)

    batch = Batch(("a", "b"), torch.zeros(2, 1, 4, dtype=torch.uint8), torch.ones(2, dtype=torch.long), None)
    with pytest.raises(OutOfMemoryError, match=r"tagging 2 videos at once: memory ran out.* modes bf16 and small"):
        list(predict_batches(Absurd(1, 1), [batch]))


# A command that prints the bytes that its process took at most beyond those with everything imported.
MEASURED = """
import re, sys
import reeltag.pipeline.plan, torch
from reeltag.cli.main import main
def told(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+)", open("/proc/self/status").read())[1])
used = told("VmRSS")
assert main(sys.argv[1:]) == 0
print(told("VmHWM") - used, told("VmRSS") - used)
"""
LARGE = """[models.a]
family = "netvlad"
clusters = 256
hidden = 4096
gating = { kind = "none" }
"""  # almost all of its weights are one tensor of 7168 x 4096


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_training_and_its_averaging_take_what_they_compute_with_and_give_it_back(tmp_path):
    """Weights, gradient, two moments and the average, and beside them a copy of a tensor at a time."""
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 6000", "epochs = 0.2") + LARGE)
    command = [sys.executable, "-c", MEASURED, "train", tmp_path / "tiny.toml", "--out", tmp_path / "out", "--quiet"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    most, last = map(int, ended.stdout.split()[-2:])
    weights = (tmp_path / "out/a.reeltag").stat().st_size
    assert weights > 4 * 7168 * 4096
    assert 5 * weights < most < 8.5 * weights  # 14.7 with copies, 6.9 without; 0.1 GB of it is torch's
    assert last < 2.5 * weights


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_training_without_memory_names_the_keys_and_keeps_its_checkpoint(tmp_path):
    if shutil.disk_usage(tmp_path).free < NEEDED_DISK:
        pytest.skip(f"needs {NEEDED_DISK / 1e9:g} GB of free disk, or the command refuses to begin")
    (tmp_path / "tiny.toml").write_text(RECIPE + MODEL)
    command = ["train", tmp_path / "tiny.toml", "--out", tmp_path / "out"]
    assert main([*map(str, command), "--max-time", "3s"]) == 75
    (path,) = tmp_path.glob("out/stages/train.a-*/checkpoint.safetensors")
    before = path.read_bytes()
    message = told(limited(8 * 10**7, *command))  # its weights and moments take as much
    assert "train.a: training mean: memory ran out" in message
    assert "training.batch_size (32 now) or training.frames (12 now)" in message
    assert "training.precision = 'bf16-mixed'" in message
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))
    larger = ["--set", "models.a.hidden=400000"]  # 150 MB of weights; a run of larger ones would need more disk too
    message = told(limited(10**8, *command, *larger))
    assert re.search(r"ran out while allocating [\d.]+ [GM]B; lower training.batch_size", message)
