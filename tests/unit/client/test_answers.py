from __future__ import annotations

import subprocess
import sys

import pytest

import astra_mesh
from astra_mesh.client.answers import Token, models_of
from astra_mesh.wire.messages import Device, ModelId, ModelOffer, PeerId, PeerInfo, Task

DEVICE = Device(host="h", cores=1.0, host_cores=1.0, threads=1)


def info(name: str, *models: tuple[str, str]) -> PeerInfo:
    offers = [
        ModelOffer(id=ModelId(digit * 64), name=model, family="gpt2", tasks=[Task.GENERATE])
        for model, digit in models
    ]
    return PeerInfo(
        peer=PeerId("0" * 64), name=name, address="", self=False, device=DEVICE, models=offers
    )


def test_models_of_one_name_and_different_weights_stay_apart() -> None:
    found = models_of(
        [info("left", ("b", "1"), ("a", "2")), info("right", ("b", "1")), info("old", ("b", "3"))]
    )
    assert [(one.name, one.id[0], one.peers) for one in found] == [
        ("a", "2", ("left",)),
        ("b", "1", ("left", "right")),
        ("b", "3", ("old",)),
    ]


def test_a_token_prints_as_its_text() -> None:
    assert f"{Token(5, ' upon', 1)}" == " upon"


def test_the_package_names_what_it_has() -> None:
    assert {"connect", "Mesh", "Token", "__version__"} <= set(dir(astra_mesh))
    assert astra_mesh.Mesh is astra_mesh.client.Mesh
    with pytest.raises(AttributeError, match="nonsense"):
        _ = astra_mesh.nonsense


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("astra_mesh", ["torch", "aiohttp", "numpy"]),
        ("astra_mesh.client", ["torch", "PIL", "numpy"]),
        ("astra_mesh.cli.app", ["torch", "aiohttp", "numpy", "msgspec"]),
    ],
)
def test_imports_stay_light(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
