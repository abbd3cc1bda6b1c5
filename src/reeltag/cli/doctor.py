"""The command `reeltag doctor`: check this machine and suggest how to fix problems."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from reeltag.cli.output import Json, say
from reeltag.core.environment import (
    BF16_FLAGS,
    GPU_PROVIDER,
    INT8_FLAGS,
    available_cpus,
    cpu_flags,
    default_device,
    install_command,
    onnx_providers,
    onnx_runtime,
    versions,
)
from reeltag.core.errors import UsageError
from reeltag.core.text import megabytes

LITTLE_DISK, LITTLE_SHARED, LITTLE_MEMORY = 5e9, 1e9, 2e9  # bytes


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: of the check.
        value: its result.
        hint: the next step; empty if there is no problem.
    """

    name: str
    value: str
    hint: str = ""


def doctor(*, forget: bool = False, json: Json = False) -> None:
    """Check this machine: versions, CPU, GPU, extras, memory and disk, with a hint for each problem.

    Example: reeltag doctor

    Args:
        forget: Forget the engines that `--mode auto` chose, so that the next use of each model measures again.
    """
    if forget:
        from reeltag.inference.engines.choice import forget_choices

        forget_choices()
    found = findings()
    width = max(len(each.name) for each in found)
    text = []
    for each in found:
        text.append(f"{'hint' if each.hint else 'ok':<4}  {each.name:<{width}}  {each.value}")
        text += [f"{'':<{width + 6}}  → {each.hint}"] if each.hint else []
    say({"findings": [asdict(each) for each in found]}, text, json)


def findings() -> list[Finding]:
    """Return the results of all checks, in the order in which they are printed."""
    found = [Finding(name, version) for name, version in versions().items()]
    checks: list[Callable[[], Iterator[Finding]]] = [_cpu, _threads, _gpu, _encoders, _extras, _memory, _disk, _choices]
    return found + [finding for check in checks for finding in check()]


def _cpu() -> Iterator[Finding]:
    flags = cpu_flags()
    if flags is None:
        yield Finding("CPU", "instruction sets unknown on this system; `reeltag benchmark` compares the modes")
        return
    for name, wanted, gains, without in (
        ("bf16 products", BF16_FLAGS, "training.precision=bf16-mixed and --mode bf16", "are slower"),
        ("8-bit products", INT8_FLAGS, "--mode fast", "may be slower"),
    ):
        if has := sorted(wanted & flags):
            yield Finding(name, f"{', '.join(has)}: {gains} gain")
        else:
            yield Finding(name, f"none of {', '.join(sorted(wanted))}: {gains} {without} than float32 here")


def _threads() -> Iterator[Finding]:
    import torch

    allowed, threads = allowed_cpus(), torch.get_num_threads()
    variables = ", ".join(
        f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if key in os.environ
    )
    hint = ""
    if threads > allowed:
        hint = f"export OMP_NUM_THREADS={allowed:.0f}: more threads than CPUs wait for each other"
    elif threads < int(allowed):
        hint = f"only {threads} of {allowed:g} CPUs are used; unset OMP_NUM_THREADS, or set it to {int(allowed)}"
    yield Finding("threads", f"{threads} on {allowed:g} CPUs{variables and f' ({variables})'}", hint)


def allowed_cpus(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Return the number of CPUs that the affinity and the container quota of this process allow."""
    count = available_cpus()
    try:
        quota, period = limit.read_text().split()
        return count if quota == "max" else max(1, min(count, int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or one without cgroup v2
        return count


def _gpu() -> Iterator[Finding]:
    if default_device() == "cuda":
        import torch

        size = torch.cuda.get_device_properties(0).total_memory
        yield Finding("GPU", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {_gb(size)}")
    elif shutil.which("nvidia-smi"):
        hint = "this build of torch cannot use the NVIDIA driver; install the build for its CUDA version"
        yield Finding("GPU", "none visible to torch", f"{hint} (https://pytorch.org/get-started)")
    else:
        yield Finding("GPU", "none; models run on the CPU")


def _encoders() -> Iterator[Finding]:
    try:
        onnxruntime = onnx_runtime("video")
    except UsageError:  # the extra is reported as missing
        return
    on_gpu = len(onnx_providers(onnxruntime)) > 1
    value = f"{GPU_PROVIDER}, if its libraries load" if on_gpu else "CPU"
    hint = "" if on_gpu or default_device() != "cuda" else "pip install onnxruntime-gpu instead of onnxruntime"
    yield Finding("ONNX encoders", value, hint)


def _extras() -> Iterator[Finding]:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    missing: dict[str, list[str]] = {}
    for text in requires("reeltag") or ():
        needed = Requirement(text)
        for extra in extras():
            if needed.marker and needed.marker.evaluate({"extra": extra}) and not needed.marker.evaluate({"extra": ""}):
                missing.setdefault(extra, [])
                if not _installed(needed.name):
                    missing[extra].append(needed.name)
    for extra, names in missing.items():
        hint = install_command(extra) if names else ""
        yield Finding(f"extra {extra}", f"{', '.join(names)} missing" if names else "installed", hint)


def extras() -> list[str]:
    """Return the extras that users may install."""
    from importlib.metadata import distribution

    return [name for name in distribution("reeltag").metadata.get_all("Provides-Extra") or () if name != "dev"]


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _memory() -> Iterator[Finding]:
    from reeltag.core.storage import free_bytes

    if (meminfo := Path("/proc/meminfo")).exists():
        lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
        sizes = {line[0]: int(line[1]) * 1024 for line in lines}
        free, total = sizes["MemAvailable:"], sizes["MemTotal:"]
        hint = "close programs, or tag with --mode small" if free < LITTLE_MEMORY else ""
        yield Finding("memory", f"{_gb(free)} free of {_gb(total)}", hint)
    if (shared := Path("/dev/shm")).is_dir():  # loader processes pass their batches through it
        free = free_bytes(shared)
        hint = "keep training.workers = 0, or give the container more memory (docker run --shm-size=2g)"
        yield Finding("shared memory", f"{_gb(free)} free", hint if free < LITTLE_SHARED else "")


def _disk() -> Iterator[Finding]:
    from reeltag.core.download_cache import cache_folder
    from reeltag.core.storage import free_bytes
    from reeltag.data.shard_cache import limit_bytes

    free = free_bytes(Path())
    hint = "free some space, or choose an --out on another disk" if free < LITTLE_DISK else ""
    yield Finding("disk", f"{_gb(free)} free in this folder", hint)
    hint = "" if os.access(".", os.W_OK) else "choose another --out, or change the permissions of this folder"
    yield Finding("this folder", "not writable" if hint else "writable", hint)
    cache = cache_folder()
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file() and not path.is_symlink())
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    hint = "" if os.access(existing, os.W_OK) else "set REELTAG_CACHE to a writable folder"
    yield Finding("cache", f"{cache}: {megabytes(size)}; shards take at most {_gb(limit_bytes())}", hint)


def _choices() -> Iterator[Finding]:
    from reeltag.core.text import counted
    from reeltag.inference.engines.choice import kept_choices

    chosen = kept_choices()
    if not chosen:
        yield Finding("mode auto", "nothing is chosen yet; a model is measured when it is first used")
    for path, kept in chosen.items():
        if kept is None:
            yield Finding("mode auto", f"{path} is damaged", "reeltag doctor --forget removes it")
        else:
            videos, threads = (counted(getattr(kept.circumstances, f"{one}s"), one) for one in ("video", "thread"))
            yield Finding("mode auto", f"{kept.model}, {videos}, {threads}: {kept.choice} ({kept.choice.why})")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
