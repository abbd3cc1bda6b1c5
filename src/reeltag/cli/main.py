"""The command line: the app, its error messages and its exit codes.

Each command has a file of its own beside this one. A command imports what it needs when it runs, so that `--help` is
fast and torch is loaded only by commands that compute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from reeltag.cli.average import average
from reeltag.cli.benchmark import benchmark
from reeltag.cli.combine import combine
from reeltag.cli.data import data
from reeltag.cli.doctor import doctor
from reeltag.cli.evaluate import evaluate
from reeltag.cli.export import export
from reeltag.cli.extract import extract
from reeltag.cli.import_tf import import_tf
from reeltag.cli.inspect import inspect
from reeltag.cli.models import models
from reeltag.cli.predict import predict
from reeltag.cli.quantize import quantize
from reeltag.cli.recipe import recipe
from reeltag.cli.report import report
from reeltag.cli.run import run
from reeltag.cli.serve import serve
from reeltag.cli.share import share
from reeltag.cli.simulate import simulate
from reeltag.cli.tag import tag
from reeltag.cli.tensorboard import tensorboard
from reeltag.cli.thresholds import thresholds
from reeltag.cli.train import train
from reeltag.cli.tune import tune
from reeltag.core.environment import keep_freed_memory, limit_openmp_spinning
from reeltag.core.errors import ReeltagError
from reeltag.core.interrupts import Terminated, TimeLimitReached, raise_on_sigterm
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.text import printable
from reeltag.core.version import __version__


def _shown_default(value: object) -> str | None:
    """Return the default that help shows; None if leaving the option out needs no explanation."""
    return str(value) if type(value) in (int, float, str) and value != "" else None


def _format_error(error: CycloptsError) -> str:
    """Describe a usage error; for a missing argument, with the help of that argument."""
    missing = error.argument
    if not isinstance(error, MissingArgumentError) or missing is None or missing.tokens or error.keyword:
        return f"error: {error}"
    command = app
    for name in error.command_chain or ():
        command = command[name]
    described = command.assemble_argument_collection(parse_docstring=True)
    description = next(each.parameter.help for each in described if each.name == missing.name)
    if choices := missing.get_choices():
        description = f"choose one of {', '.join(choices)}"
    return f"error: {missing.name} is missing: {description}"


app = App(
    name="reeltag",
    help="Train video taggers from frame features and ship an ensemble of them as one small file.",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=_shown_default),
    suppress_keyboard_interrupt=False,  # `main` reports how to resume
    error_formatter=_format_error,
)
app.command(average)
app.command(benchmark)
app.command(combine)
app.command(data)
app.command(doctor)
app.command(evaluate)
app.command(export)
app.command(extract)
app.command(import_tf)
app.command(inspect)
app.command(models)
app.command(predict)
app.command(quantize)
app.command(recipe)
app.command(report)
app.command(run)
app.command(serve)
app.command(share)
app.command(simulate)
app.command(tag)
app.command(tensorboard)
app.command(thresholds)
app.command(train)
app.command(tune)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that makes a shell complete the commands and options of reeltag.

    Example: reeltag completion bash > ~/.local/share/bash-completion/completions/reeltag

    Args:
        shell: bash, zsh or fish. For zsh, save the script as _reeltag in a folder of $fpath; for fish, to
            ~/.config/fish/completions/reeltag.fish.
    """
    print(app.generate_completion(shell=shell))


def _resume_note(words: Sequence[str]) -> str:
    """Describe from which point the interrupted command resumes; empty if it would start again."""
    points = {
        "run": "from its last checkpoint",
        "train": "from its last checkpoint",
        "tune": "from the last checkpoint of its trial",
        "extract": "after the videos that are finished",
        "data import": "after the shards that are finished",
        "data download": "after the bytes that are downloaded",
    }
    if any(word.partition("=")[0] == "--out" for word in words):
        points["predict"] = "after the shards that are finished"
    point = next((points[name] for name in (" ".join(words[:2]), *words[:1]) if name in points), None)
    return f"; the same command resumes {point}" if point else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 success, 2 bad input, 75 stopped by --max-time, 130 interrupted, 143 terminated.
    """
    keep_freed_memory()
    limit_openmp_spinning()
    try:
        with (
            raise_on_sigterm(),
            explain_out_of_memory("this command", "end other programs, or use a machine with more memory"),
        ):
            app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # cyclopts has printed the message
    except ReeltagError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        endings = {Terminated: ("terminated", 143), TimeLimitReached: ("out of time", 75)}
        ending, code = endings.get(type(error), ("interrupted", 130))
        print(f"{ending}{_resume_note(sys.argv[1:] if arguments is None else arguments)}", file=sys.stderr)
        return code
    except BrokenPipeError:
        sys.stdout = None  # the reader of the pipe has gone; Python must not flush standard output at exit
        return 0
    return 0
