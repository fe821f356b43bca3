"""Models that peers give each other."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from astra_mesh import limits
from astra_mesh.bundle import Bundle, install, open_bundle
from astra_mesh.bundle.store import user_models_path
from astra_mesh.client import Mesh, fetch
from astra_mesh.client.fetch import Fetch
from astra_mesh.client.finding import own_way
from astra_mesh.client.holders import Holder, Holders, holders_of, seek
from astra_mesh.errors import BadBundleError, InputError, MeshError, ModelError, UnknownModelError
from astra_mesh.mesh.connect import TLS_NAME
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.peer.share import Listing, Share, SharedFile
from tests.bundles import word_tokenizer
from tests.forks import python
from tests.integration.mesh_fixtures import mesh_of, until
from tests.integration.test_share_codebooks import giving
from tests.timings import patient

PIECE = 16_000

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(scope="module")
def words(models: Path) -> Bundle:
    bundle = open_bundle(models / "words")
    assert bundle.model_id  # read here, outside of any event loop
    return bundle


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_PAUSE_S", 0.01)


async def holders(peer: Peer, model: str = "words") -> Holders:
    async with Mesh(("127.0.0.1", peer.port)) as mesh:
        secure = await asyncio.to_thread(own_way)
        return holders_of(model, await mesh.peers(), mesh.peer_address, secure)


def same_files(folder: Path, source: Path) -> None:
    for path in source.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert {p.name for p in folder.iterdir()} - {p.name for p in source.iterdir()} <= {
        "manifest.json"
    }


@asynccontextmanager
async def counting(peers: list[Peer]) -> AsyncIterator[dict[str, int]]:
    """How many pieces each peer gives."""
    given = dict.fromkeys((peer.name for peer in peers), 0)
    before = Share._stream

    async def stream(self: Share, request: web.Request, path: Path) -> web.StreamResponse:
        name = next(p.name for p in peers if self._find == p.models.bundle)
        given[name] += 1
        return await before(self, request, path)

    Share._stream = stream  # type: ignore[method-assign]
    try:
        yield given
    finally:
        Share._stream = before  # type: ignore[method-assign]


async def test_a_model_comes_from_all_that_hold_it(models: Path, words: Bundle) -> None:
    async with mesh_of(["left", "right"], models) as peers, counting(peers) as given:
        found = await holders(peers[-1])
        assert {one.name for one in found.peers} == {"left", "right"}
        wanted = Fetch(found, "mine", PIECE)
        await wanted.look()
        bundle = await wanted.run()
    assert bundle.path == user_models_path() / "mine"
    assert bundle.model_id == words.model_id
    assert wanted.done_bytes == wanted.size_bytes > 10 * PIECE
    assert min(given.values()) > 2, "both peers gave their part"
    same_files(bundle.path, models / "words")


async def test_a_model_is_found_where_the_asked_peer_has_no_link(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_TELL_S", 600.0)  # else they soon had one

    def peer(name: str, offered: tuple[str, ...], *others: Peer) -> Peer:
        places = tuple(("127.0.0.1", other.port) for other in others)
        return Peer(
            PeerConfig(
                name=name,
                port=0,
                discovery=False,
                ephemeral=True,
                threads=1,
                models=offered,
                peers=places,
            )
        )

    async with (
        peer("far", (str(models / "words"),)) as far,
        peer("middle", (), far) as middle,
        peer("near", (), middle) as near,
    ):
        await until(lambda: len(middle.others()) == 2)
        model = far.models.find("words")
        async with Mesh(("127.0.0.1", near.port)) as mesh:
            assert [one.name for one in await mesh.peers()] == ["near", "middle"]
            secure = await asyncio.to_thread(own_way)
            for wanted in ("words", model, model[:10]):
                found = await seek(wanted, mesh, secure)
                (holder,) = found.peers
                assert (found.model, holder.name, holder.address[1]) == (model, "far", far.port)
            with pytest.raises(UnknownModelError, match="no peer here has a model 'verse'"):
                await seek("verse", mesh, secure)
        fetched = Fetch(found, "mine")
        await fetched.look()
        assert (await fetched.run()).model_id == model


async def test_what_came_is_kept_when_it_is_cancelled(models: Path) -> None:
    async with mesh_of(["left"], models) as peers, counting(peers) as given:
        first = Fetch(await holders(peers[0]), "mine", PIECE)
        await first.look()
        running = asyncio.create_task(first.run())
        while first.done_bytes < first.size_bytes // 2:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait([running])
        kept, asked = first.done_bytes, given["left"]
        again = Fetch(await holders(peers[0]), "mine", PIECE)
        await again.look()
        assert kept <= again.done_bytes < again.size_bytes
        left = again.size_bytes - again.done_bytes
        bundle = await again.run()
        assert given["left"] - asked <= left // PIECE + len(list(bundle.path.iterdir()))
    same_files(bundle.path, models / "words")


async def test_a_peer_that_goes_away_is_done_without(models: Path) -> None:
    async with mesh_of(["left", "right"], models) as peers:
        wanted = Fetch(await holders(peers[-1]), "mine", PIECE)
        await wanted.look()
        running = asyncio.create_task(wanted.run())
        while wanted.done_bytes < wanted.size_bytes // 4:
            await asyncio.sleep(0.001)
        await peers[0].stop()
        bundle = await running
    same_files(bundle.path, models / "words")


async def test_a_copy_with_other_files_gives_what_is_the_same_and_holds_nothing_up(
    models: Path, words: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_PAUSE_S", 600.0)  # nobody is asked twice for what it has not
    copy = shutil.copytree(models / "words", tmp_path / "copy")
    (copy / "manifest.json").unlink(missing_ok=True)
    (copy / "tokenizer.json").write_text(word_tokenizer(60))
    for path in copy.glob("codebook*"):
        path.unlink()
    other = await asyncio.to_thread(open_bundle, copy)
    assert await asyncio.to_thread(lambda: other.model_id) == words.model_id
    async with mesh_of(["left"], models) as peers, giving(other) as copied:
        found = await holders(peers[0])
        both = Holders(found.model, found.name, (*found.peers, copied))
        wanted = Fetch(both, "mine", PIECE)
        async with asyncio.timeout(patient(60)):
            await wanted.look()
            bundle = await wanted.run()
    same_files(bundle.path, models / "words")


async def test_when_all_go_away_it_says_so_and_can_go_on(models: Path) -> None:
    async with mesh_of(["left"], models) as peers:
        wanted = Fetch(await holders(peers[0]), "mine", PIECE)
        await wanted.look()
    with pytest.raises(MeshError, match="run it again to go on"):
        await wanted.run()
    assert not (user_models_path() / "mine").exists()


@asynccontextmanager
async def liar(bundle: Bundle, listing: Listing | None = None) -> AsyncIterator[Holder]:
    """Gives the right sizes and wrong bytes, or another listing."""
    share = Share(lambda model: bundle, lambda: False)

    async def lies(request: web.Request) -> web.Response:
        wanted = request.http_range
        size = (wanted.stop or 0) - (wanted.start or 0)
        return web.Response(status=206, body=b"\1" * size)

    async def lists(request: web.Request) -> web.StreamResponse:
        if listing is None:
            return await share._list(request)
        return web.Response(body=msgspec.json.encode(listing))

    app = web.Application()
    app.router.add_get("/share/{model}", lists)
    app.router.add_get("/share/{model}/{sha256}", lies)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Holder("liar", ("127.0.0.1", runner.addresses[0][1]))
    finally:
        await runner.cleanup()


async def test_a_peer_that_gives_wrong_bytes_cannot_spoil_a_model(
    models: Path, words: Bundle
) -> None:
    async with mesh_of(["honest"], models) as peers, liar(words) as bad:
        found = await holders(peers[0])
        both = Holders(found.model, found.name, (bad, *found.peers))
        wanted = Fetch(both, "mine", PIECE)
        await wanted.look()
        bundle = await wanted.run()
        same_files(bundle.path, models / "words")
        alone = Fetch(Holders(found.model, found.name, (bad,)), "other", PIECE)
        await alone.look()
        with pytest.raises(BadBundleError, match="as liar gives it is not the model's"):
            await alone.run()
    assert not (user_models_path() / "other").exists()


async def test_whom_it_asks_after_wrong_bytes_may_lack_the_file(
    models: Path, words: Bundle, tmp_path: Path
) -> None:
    copy = shutil.copytree(models / "words", tmp_path / "copy")
    (copy / "manifest.json").unlink(missing_ok=True)
    (copy / "tokenizer.json").write_text(word_tokenizer(60))
    other = await asyncio.to_thread(open_bundle, copy)
    async with (
        mesh_of(["honest"], models) as peers,
        liar(words) as bad,
        giving(other) as lacking,
    ):
        found = await holders(peers[0])
        wanted = Fetch(Holders(found.model, found.name, (bad, lacking, *found.peers)), "mine")
        await wanted.look()
        bundle = await wanted.run()
        assert wanted.done_bytes == wanted.size_bytes
    same_files(bundle.path, models / "words")


@pytest.mark.parametrize(
    ("name", "size"), [("../../evil.json", 1), ("model.py", 1), ("config.json", -1)]
)
async def test_a_listing_that_no_model_has_is_refused(words: Bundle, name: str, size: int) -> None:
    listing = Listing("", "x", [SharedFile(name, size, "ab" * 32)])
    async with liar(words, listing) as bad:
        model = words.model_id
        with pytest.raises(MeshError, match="liar"):
            await Fetch(Holders(model, "words", (bad,)), "mine").look()
    other = Listing("", "x", [SharedFile("config.json", 1, "ab" * 32)])
    async with liar(words, other) as bad:
        with pytest.raises(MeshError, match="other files than the model's"):
            await Fetch(Holders(model, "words", (bad,)), "mine").look()


async def test_a_full_disk_is_said_before_anything_comes(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(["left"], models) as peers:
        found = await holders(peers[0])
        real = shutil.disk_usage(models)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=70 << 20))
        await Fetch(found, "fits").look()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
        with pytest.raises(ModelError, match="free some"):
            await Fetch(found, "mine").look()


async def test_names_that_cannot_be(models: Path, words: Bundle) -> None:
    async with mesh_of(["left"], models) as peers:
        with pytest.raises(UnknownModelError, match="feelings, pictures, plain, words"):
            await holders(peers[0], "nothing")
        found = await holders(peers[0], words.model_id[:10])
        assert found.name == "words"
        for name in ("..", "a/b", ".hidden", "x" * 65):
            with pytest.raises(InputError, match="no name for a model"):
                await Fetch(found, name).look()


async def test_while_requests_run_it_gives_a_trickle(words: Bundle) -> None:
    share = Share(lambda model: words, lambda: True)
    began = asyncio.get_running_loop().time()
    await share._wait()
    assert asyncio.get_running_loop().time() - began >= limits.SHARE_TRICKLE_S * 0.9


async def test_ranges_and_what_is_not_there(models: Path, words: Bundle) -> None:
    async with mesh_of(["left"], models) as peers, aiohttp.ClientSession() as http:
        root = f"https://127.0.0.1:{peers[0].port}/share"
        secure = await asyncio.to_thread(own_way)
        way: dict[str, Any] = {"ssl": secure.tls, "server_hostname": TLS_NAME}
        model = words.model_id
        async with http.get(f"{root}/{model}", **way) as answer:
            listing: dict[str, Any] = await answer.json()
        file = next(one for one in listing["files"] if one["name"] == "config.json")
        text = (models / "words" / "config.json").read_bytes()
        url = f"{root}/{model}/{file['sha256']}"
        for given, status, body in (
            ({}, 200, text),
            ({"Range": "bytes=2-5"}, 206, text[2:6]),
            ({"Range": f"bytes={len(text) - 3}-{len(text) + 50}"}, 206, text[-3:]),
            ({"Range": "bytes=x"}, 416, None),
        ):
            async with http.get(url, headers=given, **way) as answer:
                assert answer.status == status
                assert body is None or await answer.read() == body
        for path in (f"{root}/{'0' * 64}", f"{root}/{model}/{'0' * 64}", f"{root}/../etc"):
            async with http.get(path, **way) as answer:
                assert answer.status == 404


@pytest.mark.parametrize("listed", [False, True])
async def test_a_model_whose_folder_went_is_no_longer_given(
    models: Path, words: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, listed: bool
) -> None:
    """Before a listing was made of it, or after."""
    shutil.copytree(models / "words", tmp_path / "models" / "words")
    async with mesh_of(["left"], tmp_path / "models") as peers, aiohttp.ClientSession() as http:
        url = f"https://127.0.0.1:{peers[0].port}/share/{words.model_id}"
        secure = await asyncio.to_thread(own_way)
        way: dict[str, Any] = {"ssl": secure.tls, "server_hostname": TLS_NAME}
        if listed:
            async with http.get(url, **way) as answer:
                url += f"/{(await answer.json())['files'][0]['sha256']}"
        shutil.rmtree(tmp_path / "models" / "words")
        async with http.get(url, **way) as answer:
            assert answer.status == 404
            assert "no longer here" in await answer.text()
    assert not [record for record in caplog.records if record.exc_info]


async def test_all_hear_of_a_model_that_went_and_came_back(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astra_mesh.peer.models.RESCAN_S", 0.1)
    folder = tmp_path / "models" / "words"
    shutil.copytree(models / "words", folder)
    async with mesh_of(["left", "right"], tmp_path / "models") as peers:

        def offered() -> list[str]:
            return [offer.name for one in peers[0].peer_list() for offer in one.models]

        await until(lambda: offered() == ["words", "words"])
        shutil.move(folder, tmp_path / "away")
        await until(lambda: not offered())
        shutil.move(tmp_path / "away", folder)
        await until(lambda: offered() == ["words", "words"])


async def test_who_pulls_a_model_whose_files_went_is_told_what_to_do(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "words", tmp_path / "models" / "words")
    async with mesh_of(["left"], tmp_path / "models") as peers:
        asked = await holders(peers[0])
        shutil.rmtree(tmp_path / "models" / "words")
        with pytest.raises(MeshError, match=r"left: it does not have its files.*`astra-mesh mod"):
            await fetch.Fetch(asked, "mine").look()


async def test_strangers_get_no_model(models: Path, words: Bundle) -> None:
    async with mesh_of(["left"], models) as peers, aiohttp.ClientSession() as http:
        where = f"127.0.0.1:{peers[0].port}/share/{words.model_id}"
        for url in (f"http://{where}", f"https://{where}"):
            with pytest.raises((aiohttp.ClientError, OSError)):
                await http.get(url, ssl=False)


async def test_the_command_pulls_from_the_mesh(models: Path, tmp_path: Path) -> None:
    async with mesh_of(["left", "right"], models) as peers:
        argv = ["models", "pull", "words", "--connect", f"127.0.0.1:{peers[0].port}", "--json"]
        process = await asyncio.create_subprocess_exec(
            *python(), "-m", "astra_mesh", *argv, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    about = json.loads(out)
    assert about["name"] == "words"
    assert set(about["peers"]) == {"left", "right"}
    same_files(Path(about["path"]), models / "words")


INTERRUPTED = """
import asyncio, os
from astra_mesh.cli import main
from astra_mesh.client import fetch

async def run(self):
    self.done_bytes = int(os.environ["CAME"])
    raise asyncio.CancelledError

fetch.Fetch.run = run
main()
"""


@pytest.mark.parametrize("came", ["0", "1"])
async def test_who_interrupts_a_pull_is_told_what_is_kept(
    models: Path, monkeypatch: pytest.MonkeyPatch, came: str
) -> None:
    monkeypatch.setenv("CAME", came)
    async with mesh_of(["left"], models) as peers:
        argv = ["models", "pull", "words", "--name", "mine"]
        process = await asyncio.create_subprocess_exec(
            *(*python(), "-c", INTERRUPTED, *argv),
            *("--connect", f"127.0.0.1:{peers[0].port}"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
    assert process.returncode == 130
    assert (b"what came is kept" in said) == (came == "1")


async def test_a_model_that_comes_is_offered_without_a_new_start(
    models: Path, words: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astra_mesh.peer.models.RESCAN_S", 0.05)
    config = PeerConfig(name="one", port=0, listen="127.0.0.1", discovery=False, ephemeral=True)
    async with Peer(config) as peer:
        assert peer.models.offer(words.model_id) is None
        await asyncio.to_thread(install.add, words.path, "later")
        await until(lambda: peer.models.offer(words.model_id) is not None)
        assert peer.models.find("later") == words.model_id


async def test_who_asks_for_a_model_that_another_peer_has_is_told_how_to_get_it(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "words", tmp_path / "models" / "lonely")
    hint = "it has: lonely. left has it: `astra-mesh models pull plain` brings it here"
    async with (
        mesh_of(["left", "right"], [models, tmp_path / "models"]) as peers,
        Mesh(("127.0.0.1", peers[1].port)) as mesh,
    ):
        with pytest.raises(UnknownModelError, match=hint):
            await mesh.embed("plain", "w1")
        with pytest.raises(UnknownModelError, match=r"it has: lonely\. `astra-mesh models` lists"):
            await mesh.embed("nowhere", "w1")


async def test_who_has_a_model_by_another_name_is_told_what_brings_its_tokenizer(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "words", tmp_path / "left" / "chatty")
    (tmp_path / "left" / "chatty" / "manifest.json").unlink(missing_ok=True)
    (tmp_path / "left" / "chatty" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    await asyncio.to_thread(install.add, models / "words", "plain")
    async with mesh_of(["left", "right"], [tmp_path / "left", user_models_path()]) as peers:
        async with Mesh(("127.0.0.1", peers[1].port)) as mesh:
            with pytest.raises(UnknownModelError) as unknown:
                await mesh.embed("chatty", "w1")
        text = unknown.value.message
        assert "left has it, with the weights of plain here: ask for plain, or " in text
        (command,) = re.findall(r"`astra-mesh (.*)`", text)
        here = await pulled(peers[1], "models", "pull", "chatty")
        assert "it is here already" in here
        assert "it is called plain here" in here
        assert f"`astra-mesh {command}`" in " ".join(here.split())
        await pulled(peers[1], *command.split())
    same_files(user_models_path() / "chatty", tmp_path / "left" / "chatty")


async def pulled(peer: Peer, *argv: str) -> str:
    """What the command says beside its output."""
    process = await asyncio.create_subprocess_exec(
        *(*python(), "-m", "astra_mesh", *argv, "--connect", f"127.0.0.1:{peer.port}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return err.decode()
