"""The keyword transformer KWT-1 (Berg, O'Connor, Cruz, arXiv 2104.00769) inside the engine.

A post-LN encoder of one token per audio frame and a class token. Its checkpoint has no Hugging Face
layout, hence it is test support and no family of the product. T is 98 frames of one second, F is 40
coefficients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from astra_mesh.bundle.tensors import open_tensors
from astra_mesh.errors import InputError
from astra_mesh.families.block import Block, FeedForward, Linear, Norm, activation
from astra_mesh.families.config import Config
from astra_mesh.families.model import Model, ModelInput, load_dtype
from astra_mesh.families.spec import ModelSpec
from astra_mesh.families.weights import Weights

MODEL = Path("models") / "kwt1"
GOLDEN = Path("golden") / "kwt1.npz"
CLIPS = Path("datasets") / "speech_commands_39.npz"

# The audio front end of that repository (kws_streaming's "mfcc_tf" with KWT's flags).
SAMPLE_RATE_HZ = 16_000
FRAME, HOP, FFT = 480, 160, 512  # samples: 30 ms, 10 ms, the next power of two
MEL_BANDS, MEL_LOW_HZ, MEL_HIGH_HZ = 80, 20.0, 7600.0
LOG_FLOOR = 1e-12
COEFFICIENTS = 40

Array = npt.NDArray[np.float64]


# --- features -------------------------------------------------------------------------------------


def window() -> Array:
    """Periodic Hann window: (FRAME,)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)


def _mel(hertz: npt.ArrayLike) -> Array:
    """The HTK mel scale, as TensorFlow has it."""
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


def mel_bank() -> Array:
    """Triangles that are linear in mel, not in hertz: (MEL_BANDS, FFT // 2 + 1)."""
    bins = _mel(np.arange(FFT // 2 + 1) * (SAMPLE_RATE_HZ / FFT))
    edges = np.linspace(_mel(MEL_LOW_HZ), _mel(MEL_HIGH_HZ), MEL_BANDS + 2)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def dct() -> Array:
    """DCT-II scaled by sqrt(2 / N), its first row too: (COEFFICIENTS, MEL_BANDS)."""
    angle = np.pi / MEL_BANDS * np.outer(np.arange(COEFFICIENTS), np.arange(MEL_BANDS) + 0.5)
    return np.sqrt(2 / MEL_BANDS) * np.cos(angle)


def features(audio: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """MFCC (T, F) of the log of magnitudes, not of powers; audio (samples,) at 16 kHz."""
    samples = audio.astype(np.float64) / 32768.0
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP] * window()
    bands = np.abs(np.fft.rfft(frames, FFT)) @ mel_bank().T  # (T, MEL_BANDS)
    return (np.log(np.maximum(bands, LOG_FLOOR)) @ dct().T).astype(np.float32)


# --- the model ------------------------------------------------------------------------------------


class KeywordTransformer(Model):
    """Reads ``ModelInput.pixels`` as features (1, T, F) float32."""

    def __init__(
        self,
        spec: ModelSpec,
        blocks: list[Block],
        *,
        frame: Linear,  # (D, F)
        class_token: Tensor,  # (D,)
        positions: Tensor,  # (1 + T, D)
        head: Linear,  # (classes, D)
    ) -> None:
        super().__init__(spec, blocks)
        self.frame, self.head = frame, head
        self.class_token, self.positions = nn.Parameter(class_token), nn.Parameter(positions)

    def count_tokens(self, inputs: ModelInput) -> int:
        """See :meth:`Model.count_tokens`."""
        wanted = (1, self.spec.max_tokens - 1, self.frame.weight.shape[1])
        if inputs.pixels is None or tuple(inputs.pixels.shape) != wanted:
            raise InputError(f"a {self.spec.family} model reads audio features of shape {wanted}")
        return self.spec.max_tokens

    def embed(self, inputs: ModelInput, start: int, stop: int) -> Tensor:
        """See :meth:`Model.embed`."""
        assert inputs.pixels is not None
        first = max(start, 1)
        x = self.frame(inputs.pixels[0, first - 1 : max(stop, 1) - 1].to(self.positions.dtype))
        if start == 0 and stop > 0:
            x = torch.cat([self.class_token[None], x])
        return x + self.positions[start:stop]

    def final(self, x: Tensor) -> Tensor:
        """See :meth:`Model.final`."""
        return x

    def classify(self, pooled: Tensor) -> Tensor:
        """See :meth:`Model.classify`."""
        return self.head(pooled)


def read_spec(values: Mapping[str, Any]) -> ModelSpec:
    """The spec of KWT-1's ``config.json``."""
    config = Config(values)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    return ModelSpec(
        family="kwt",
        hidden_size=hidden,
        intermediate_size=config.size("intermediate_size"),
        num_hidden_layers=config.blocks("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.head_dim(hidden, heads),
        vocab_size=0,
        max_tokens=config.size("n_frames") + 1,
        causal=False,
        has_class_token=True,
        tasks=("classify",),
    )


def _norm(weights: Weights, name: str, d: int, eps: float) -> Norm:
    return Norm("layer", eps, weights.take(f"{name}.weight", d), weights.take(f"{name}.bias", d))


def _dense(weights: Weights, name: str, inner: int, outer: int) -> Linear:
    return Linear(weights.take(f"{name}.weight", outer, inner), weights.take(f"{name}.bias", outer))


def _block(spec: ModelSpec, config: Config, weights: Weights, at: str) -> Block:
    d, f, eps = spec.hidden_size, spec.intermediate_size, config.positive("layer_norm_eps")
    attention = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
    return Block(
        spec,
        post_norm=True,
        norm_1=_norm(weights, f"{at}attention.output.LayerNorm", d, eps),
        norm_2=_norm(weights, f"{at}output.LayerNorm", d, eps),
        qkv=Linear(*weights.stacked(attention, d, (d, d, d))),  # without bias
        out=_dense(weights, f"{at}attention.output.dense", d, d),
        ffn=FeedForward(
            _dense(weights, f"{at}intermediate.dense", d, f),
            _dense(weights, f"{at}output.dense", f, d),
            activation(config.get("hidden_act", "gelu")),
            gated=False,
        ),
    )


def build(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KeywordTransformer:
    """The model from its config and tensors."""
    spec, config, weights = read_spec(values), Config(values), Weights(tensors)
    d, labels = spec.hidden_size, list(values["labels"])
    at = "embeddings."
    model = KeywordTransformer(
        spec,
        [
            _block(spec, config, weights, f"encoder.layer.{i}.")
            for i in range(spec.num_hidden_layers)
        ],
        frame=_dense(weights, f"{at}projection", config.size("n_mfcc"), d),
        class_token=weights.take(f"{at}cls_token", 1, 1, d)[0, 0],
        positions=weights.take(f"{at}position_embeddings", 1, spec.max_tokens, d)[0],
        head=_dense(weights, "classifier", d, len(labels)),
    )
    model.labels = dict(enumerate(labels))
    return model


# --- files ----------------------------------------------------------------------------------------


def _existing(data_dir: Path, name: Path) -> Path:
    """The path, or the test is skipped."""
    path = data_dir / name
    if not path.exists():
        pytest.skip(f"the development data have no {name}")
    return path


def load_tensors(data_dir: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint, the tables of its front end (``frontend.*``) too."""
    return open_tensors(_existing(data_dir, MODEL) / "model.safetensors")


def load_model(data_dir: Path) -> Model:
    """The model, ready for inference, float32."""
    values = json.loads((_existing(data_dir, MODEL) / "config.json").read_text())
    return load_dtype(build(values, load_tensors(data_dir)), torch.float32)


def load_clips(data_dir: Path) -> tuple[list[ModelInput], list[int]]:
    """Features and the true label of each of the 39 clips."""
    with np.load(_existing(data_dir, CLIPS)) as clips:
        inputs = [
            ModelInput(pixels=torch.from_numpy(features(audio))[None]) for audio in clips["audio"]
        ]
        return inputs, clips["label"].tolist()


def load_golden(data_dir: Path) -> npt.NDArray[np.float32]:
    """Reference logits (39, 12) of the clips."""
    with np.load(_existing(data_dir, GOLDEN)) as golden:
        return np.asarray(golden["logits"], np.float32)
