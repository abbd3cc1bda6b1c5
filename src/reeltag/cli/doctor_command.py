"""The command `reeltag doctor`."""

from __future__ import annotations

from dataclasses import asdict

from reeltag.cli.output import Json, say


def doctor(*, json: Json = False) -> None:
    """Say what works on this machine, what would make it faster, and what to do about what is missing.

    Example: reeltag doctor
    """
    from reeltag.cli.doctor import findings

    found = findings()
    width = max(len(each.name) for each in found)
    text = []
    for each in found:
        text.append(f"{'hint' if each.hint else 'ok':<4}  {each.name:<{width}}  {each.value}")
        text += [f"{'':<{width + 6}}  → {each.hint}"] if each.hint else []
    say({"findings": [asdict(each) for each in found]}, text, json)
