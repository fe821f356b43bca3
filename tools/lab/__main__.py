"""The command line of the laboratory: ``python -m tools.lab run SCENARIO``, measure, sweep."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.lab import accuracy, options, record, runner
from tools.lab.house import sweep
from tools.lab.network import require_lab
from tools.lab.scenario import ScenarioError, load_scenario
from tools.lab.system import LabError, LabUnavailableError, end_in_order, undisturbed

FAILED, MENDABLE, UNAVAILABLE, INTERRUPTED = 1, 2, 3, 130  # exit statuses


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit status."""
    parsed = _parser().parse_args(arguments)
    end_in_order()
    try:
        if parsed.command == "sweep":
            return _sweep()
        if parsed.command == "measure":
            return _measure()
        if parsed.command == "nemesis":
            return _nemesis(parsed)
        if parsed.command == "figures":
            return _figures(parsed.only)
        if parsed.command == "soak":
            return _soak(parsed)
        return _run(parsed.scenario, parsed.output)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return _status(error)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a scenario with real peers (needs root)")
    run.add_argument("scenario", type=Path, help="TOML or YAML; docs/lab.md explains it")
    run.add_argument(
        "-o", "--output", type=options.file, help="write what happened to this JSON file"
    )
    faults = commands.add_parser("nemesis", help="seeded faults against real peers (needs root)")
    seeds = "as 1-20 or 3,5,9 (default: %(default)s)"
    faults.add_argument("--seeds", type=options.seeds, default="1-20", help=seeds)
    faults.add_argument("--devices", type=int, default=3, choices=range(2, 9), metavar="2..8")
    faults.add_argument("--seconds", type=float, default=12.0, help="how long faults begin")
    faults.add_argument("--slack", type=float, default=1.5, help="seconds that a busy machine adds")
    faults.add_argument(
        "-o", "--output", type=options.file, help="write the histories to this JSON file"
    )
    faults.add_argument(
        "--table", type=options.file, help="append a line of JSON for each seed to this file"
    )
    costs = commands.add_parser("figures", help="what faults cost in time (root, 10 minutes)")
    costs.add_argument("only", nargs="*", help="names in tools/lab/figures.py (default: all)")
    soaking = commands.add_parser("soak", help="requests for an hour while peers are killed")
    soaking.add_argument("--minutes", type=options.above_zero, default=60.0)
    soaking.add_argument("--devices", type=int, default=8, choices=range(2, 9), metavar="2..8")
    soaking.add_argument(
        "--table", type=options.file, help="write what was seen to this file, as JSON"
    )
    commands.add_parser("measure", help="how exact rates, delays, losses and quotas are here")
    commands.add_parser("sweep", help="remove what a killed laboratory left")
    return parser


def _run(path: Path, output: Path | None) -> int:
    scenario = load_scenario(path)
    require_lab()
    _say(f"{scenario.name}: {', '.join(scenario.devices)}")
    document = runner.run(scenario, _say)
    if output is not None:
        with undisturbed():
            record.write(document, output)
        _say(f"written to {output}")
    if document["interrupted"]:
        raise KeyboardInterrupt
    if document["failed"]:
        for device, log in document["logs"].items():
            if log.strip():
                _say(f"--- log of {device}\n{log}".rstrip())
        return FAILED
    return 0


def _nemesis(parsed: argparse.Namespace) -> int:
    from tools.lab import nemesis  # imports torch

    settings = nemesis.Settings(parsed.devices, parsed.seconds, slack_s=parsed.slack)
    documents, failed = [], False
    for history, broken in nemesis.run(parsed.seeds, settings, _say):
        documents.append({**history.as_document(), "broken": broken})
        failed = failed or bool(broken)
        print(nemesis.summary(history, broken), flush=True)
        for text in broken:
            print(f"  {text}", flush=True)
        if parsed.output is not None:
            record.write({"schedules": documents}, parsed.output)
        if parsed.table is not None:
            with parsed.table.open("a", encoding="utf-8") as table:
                table.write(json.dumps(nemesis.row(history, broken)) + "\n")
    return FAILED if failed else 0


def _figures(only: list[str]) -> int:
    from tools.lab import figures

    if unknown := set(only) - figures.FIGURES.keys():
        raise ScenarioError(f"no figure {min(unknown)!r}; there are {', '.join(figures.FIGURES)}")
    for line in figures.measure(only, _say):
        print(line, flush=True)
    return 0


def _soak(parsed: argparse.Namespace) -> int:
    from tools.lab import soak  # imports torch

    found = soak.soak(parsed.minutes, parsed.devices, _say)
    if parsed.table is not None:
        parsed.table.write_text(json.dumps(found.as_document()) + "\n", encoding="utf-8")
    print(soak.summary(found), flush=True)
    broken = soak.findings(found)
    for text in broken:
        print(f"  {text}", flush=True)
    return FAILED if broken else 0


def _measure() -> int:
    for line in accuracy.measure():
        print(line, flush=True)
    return 0


def _sweep() -> int:
    for name in dict.fromkeys(sweep()):  # groups and folders have the names of namespaces
        print(f"removed {name}")
    return 0


def _status(error: LabError) -> int:
    if isinstance(error, LabUnavailableError):
        return UNAVAILABLE
    return MENDABLE if isinstance(error, ScenarioError) else FAILED


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
