"""Training with two processes under torchrun, over gloo on this machine's loopback."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor
from torch.distributed.run import get_args_parser
from typer.core import TyperGroup
from typer.main import get_command

from astra_mesh.bundle import open_bundle, verify
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.cli.app import app
from astra_mesh.quant.codebook import load_codebook
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.forks import python
from tests.timings import patient
from tests.unit.quality.making import picture, toy_bundle, write
from tests.unit.tune import two

REPO_ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = patient(200.0)  # seen: 9 s on two busy cores, 35 to 65 s beside long calculations

TOOL = "torch.distributed.run"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(patient(480)),
    pytest.mark.usefixtures("forks"),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of ``python -m ARGUMENTS``, which import nothing anew."""
    return launched(*python(), "-m", TOOL, *place(), "--no-python", *python(), "-m", *arguments)


def place() -> tuple[object, ...]:
    return ("--nproc-per-node", 2, "--master-addr", "127.0.0.1", "--master-port", free_port())


def launched(*words: object) -> subprocess.CompletedProcess[str]:
    """The command, of whose processes all are gone afterwards."""
    command = [str(word) for word in words]
    settings = {"PYTHONPATH": str(REPO_ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command,
        cwd=REPO_ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = running.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        raise
    return subprocess.CompletedProcess(command, running.returncode, out, err)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "toy", GPT2, gpt2_tensors(GPT2))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Text in which each word follows from the one before: 60 windows."""
    path, word, found = tmp_path / "text.txt", 1, []
    for _ in range(60 * 96):
        word = (word * 7 + 3) % 64
        found.append(f"w{word}")
    path.write_text(" ".join(found) + "\n")
    return path


def test_the_command_fine_tunes_with_two_processes(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    """One bundle, one report, and the model has learned."""
    output = tmp_path / "new"
    options = (
        "--codewords 16 --rates 4,8 --default-rate 8 --tokens 2000 --steps 20 --batch 4 --check 5 "
        "--held-out 6 --learning-rate 0.003 --covariance full --finetune --json"
    )
    fit = ("astra_mesh", "fit", bundle, "--data", data, *options.split(), "-o", output)
    done = launched(sys.executable, "-m", TOOL, *place(), "-m", *fit)  # as people start it
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # the second process says nothing
    told = json.loads(line)
    assert (told["bundle"], told["steps"]) == (str(output), 20)
    found = open_bundle(output)
    assert {"model.safetensors", "codebook.safetensors"} <= set(verify(found))
    assert load_codebook(found.codebook_paths[""], found.model_id).id == told["codebook"]
    assert all(bool(one.isfinite().all()) for one in load_weights(found).values())
    rows = curve(output)
    assert [row["step"] for row in rows] == ["0", "5", "10", "15", "20"]
    losses = [float(row["held_out_mesh"]) for row in rows]
    assert losses[-1] < losses[1] - 0.3
    assert told["best_step"] == 5 * losses.index(min(losses))
    assert told["held_out_loss"] == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("kind", ["all rates", "one rate", "codebook", "vit"])
def test_two_processes_print_no_warning(
    bundle: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    """In steps that use all that is trained, and in others."""
    more = {
        "all rates": "--history 0",  # some steps use all, some the first stage only
        "one rate": "--rates 8 --train all",  # all of them use all
        "codebook": "--history 0 --train codebook",
        "vit": "--rates 8",
    }[kind]
    if kind == "vit":
        bundle, data = toy_bundle(tmp_path / "vit", "vit").path, tmp_path / "pictures"
        pictures = {f"{name}/{i}.png": picture(2 * i) for name in ("cat", "dog") for i in range(60)}
        write(data, dict(pictures))
    options = (
        "--codewords 16 --rates 4,8 --default-rate 8 --tokens 2000 --steps 6 --batch 4 --check 6 "
        "--held-out 6 --learning-rate 0.003 --sensitivity 0 --seed 1 --finetune --json"
    )
    options = f"{options} {more}"
    new = ("-o", tmp_path / "new")
    done = torchrun("astra_mesh", "fit", bundle, "--data", data, *new, *options.split())
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "waiting for the first" not in line]
    assert told == []


def test_the_commands_of_the_documentation_have_options_that_exist() -> None:
    text = (REPO_ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "torchrun --n" in line]
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    parser, fit = get_args_parser(), group.commands["fit"]
    ours = {name for one in fit.params for name in one.opts}
    assert len(lines) == 3
    for line in lines:
        before, _, after = line.partition("torchrun ")[2].partition(" -m astra_mesh fit ")
        told = parser.parse_args([*before.replace("...", "").split(), "script"])
        assert told.nproc_per_node == "4" or told.nnodes == "2"
        options = [word.strip("`.,") for word in after.split() if word.startswith("--")]
        assert set(options) <= ours
        assert bool(after) == ("..." not in line)


def test_two_halves_of_a_batch_are_one_batch(bundle: Path, data: Path, tmp_path: Path) -> None:
    """Two processes with four sequences each end where one with all eight does."""
    done = torchrun(two.__name__, bundle, data, tmp_path / "both", 4)
    assert done.returncode == 0, done.stderr
    two.run(bundle, data, tmp_path / "one", 8)
    two.run(bundle, data, tmp_path / "half", 4)
    start, both, one, half = (
        load_weights(open_bundle(folder))
        for folder in (bundle, *(tmp_path / name for name in ("both", "one", "half")))
    )
    way = distance(start, one)
    assert distance(both, one) < 1e-3 * way  # seen: 1e-6
    assert distance(half, one) > 0.1 * way  # seen: 0.18; half of the data lead elsewhere
    for ours, theirs in zip(curve(tmp_path / "both"), curve(tmp_path / "one"), strict=True):
        for name in ("held_out_mesh", "held_out_alone"):
            # Four decimals are written.
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=2e-4)


def test_processes_need_no_folder_in_common(bundle: Path, data: Path, tmp_path: Path) -> None:
    """The first one's codebook is everybody's, and the others say what they wait for."""
    done = torchrun(two.__name__, bundle, data, tmp_path / "apart", 4, "apart")
    assert done.returncode == 0, done.stderr
    assert "process 1: waiting for the first process, which fits the codebook" in done.stderr
    assert "process 0: waiting" not in done.stderr
    assert [row["step"] for row in curve(tmp_path / "apart" / "0" / "new")] == ["0", "3", "6"]
    assert not (tmp_path / "apart" / "1").exists()


def test_a_checkpoint_of_the_first_process_is_everybody_s(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    first = tmp_path / "apart" / "0"

    def stop(done: int, total: int, what: str) -> None:
        if "loss" in what and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two.run(bundle, data, first / "new", 4, first / "work", stop)
    (before,) = [row for row in curve(first / "work") if row["step"] == "3"]
    done = torchrun(two.__name__, bundle, data, tmp_path / "apart", 4, "apart")
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr
    rows = curve(first / "new")
    assert [row["step"] for row in rows] == ["0", "3", "6"]
    assert rows[1] == before
    assert not (tmp_path / "apart" / "1").exists()


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the matrices that no norm is folded into when they are written."""
    names = [name for name in one if "wte" in name or "c_proj" in name]
    return sum(float((one[name] - other[name]).square().sum()) for name in names) ** 0.5


def curve(bundle: Path) -> list[dict[str, str]]:
    with (bundle / "training.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
