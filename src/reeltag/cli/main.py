"""The command line: parse and call. torch is imported only by commands that compute."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from reeltag.cli.average import average
from reeltag.cli.benchmark import benchmark
from reeltag.cli.data import data
from reeltag.cli.doctor import doctor
from reeltag.cli.evaluate import evaluate
from reeltag.cli.export import export
from reeltag.cli.extract import extract
from reeltag.cli.import_tf import import_tf
from reeltag.cli.inspect import inspect
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
from reeltag.cli.train import train
from reeltag.core.environment import keep_freed_memory, limit_openmp_spinning
from reeltag.core.errors import ReeltagError
from reeltag.core.interrupts import Terminated, TimeLimitReached, raise_on_sigterm
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.text import printable
from reeltag.core.version import __version__


def _shown_default(value: object) -> str | None:
    """A default as help shows it; none where leaving the option out means just that."""
    return str(value) if type(value) in (int, float, str) and value != "" else None


def _said(error: CycloptsError) -> str:
    """What is wrong with the words of a command; of one that is missing, what it should be."""
    missing = error.argument
    if not isinstance(error, MissingArgumentError) or missing is None or missing.tokens or error.keyword:
        return f"error: {error}"
    command = app
    for name in error.command_chain or ():
        command = command[name]
    described = command.assemble_argument_collection(parse_docstring=True)
    what = next(each.parameter.help for each in described if each.name == missing.name)
    if choices := missing.get_choices():
        what = f"choose one of {', '.join(choices)}"
    return f"error: {missing.name} is missing: {what}"


app = App(
    name="reeltag",
    help="Train video taggers from frame features and ship an ensemble of them as one small file.",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=_shown_default),
    suppress_keyboard_interrupt=False,  # `main` says how to go on
    error_formatter=_said,
)
app.command(average)
app.command(benchmark)
app.command(data)
app.command(doctor)
app.command(evaluate)
app.command(export)
app.command(extract)
app.command(import_tf)
app.command(inspect)
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
app.command(train)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that makes a shell complete the commands and options of reeltag.

    Example: reeltag completion bash > ~/.local/share/bash-completion/completions/reeltag

    Args:
        shell: bash, zsh or fish. For zsh, save the script as _reeltag in a folder of $fpath; for fish, to
            ~/.config/fish/completions/reeltag.fish.
    """
    print(app.generate_completion(shell=shell))


def _on_again(words: Sequence[str]) -> str:
    """How a command that was ended goes on, if it does."""
    ways = {
        "run": "from its last checkpoint",
        "train": "from its last checkpoint",
        "extract": "after the videos that are finished",
        "data download": "where it was",
    }
    if any(word.partition("=")[0] == "--out" for word in words):
        ways["predict"] = "after the shards that are finished"
    way = next((ways[name] for name in (" ".join(words[:2]), *words[:1]) if name in ways), None)
    return f"; the same command goes on {way}" if way else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 2 bad input, 75 the time of --max-time is over, 130 interrupted, 143 terminated.
    """
    keep_freed_memory()
    limit_openmp_spinning()
    try:
        with (
            raise_on_sigterm(),
            explain_out_of_memory("this command", "end other programs, or take a machine with more"),
        ):
            app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # printed already
    except ReeltagError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        endings = {Terminated: ("terminated", 143), TimeLimitReached: ("out of time", 75)}
        what, code = endings.get(type(error), ("interrupted", 130))
        print(f"{what}{_on_again(sys.argv[1:] if arguments is None else arguments)}", file=sys.stderr)
        return code
    except BrokenPipeError:
        sys.stdout = None  # the reader left; nothing may be flushed at exit
        return 0
    return 0
