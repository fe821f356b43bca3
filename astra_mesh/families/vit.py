"""ViT (Dosovitskiy et al., arXiv 2010.11929): pre-LN encoder of a class token and image patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from astra_mesh.errors import InputError
from astra_mesh.families.block import Block, FeedForward, Linear, Norm, activation, fold_norm
from astra_mesh.families.config import Config
from astra_mesh.families.model import Model, ModelInput, labels_of
from astra_mesh.families.spec import ModelSpec
from astra_mesh.families.specs import geometry, read_vit
from astra_mesh.families.weights import Export, Weights


class ViT(Model):
    """ViT image classifier."""

    def __init__(
        self,
        spec: ModelSpec,
        blocks: list[Block],
        *,
        patch: Linear,  # (D, C * P * P)
        image_shape: tuple[int, int, int],  # C, H, W
        patch_size: int,
        class_token: Tensor,  # (D,)
        positions: Tensor,  # (T, D)
        norm: Norm,
        head: Linear,
    ) -> None:
        super().__init__(spec, blocks)
        self.patch, self.norm, self.head = patch, norm, head
        self.shape, self.patch_size = image_shape, patch_size
        self.image_shape = image_shape
        self.class_token, self.positions = nn.Parameter(class_token), nn.Parameter(positions)

    def count_tokens(self, inputs: ModelInput) -> int:
        """See :meth:`Model.count_tokens`."""
        if inputs.pixels is None:
            raise InputError("a vit model reads an image; give an image, not a text")
        if tuple(inputs.pixels.shape) != self.shape:
            raise InputError(
                f"the picture has shape {tuple(inputs.pixels.shape)}, the model reads "
                f"{self.shape} (channels, height, width)"
            )
        return self.spec.max_tokens

    def embed(self, inputs: ModelInput, start: int, stop: int) -> Tensor:
        """See :meth:`Model.embed`."""
        assert inputs.pixels is not None
        first = max(start, 1)
        x = self._patches(inputs.pixels.to(self.positions.dtype), first - 1, max(stop, 1) - 1)
        if start == 0 and stop > 0:
            x = torch.cat([self.class_token[None], x])
        return x + self.positions[start:stop]

    def _patches(self, pixels: Tensor, start: int, stop: int) -> Tensor:
        """Projected patches ``start`` to ``stop`` (row-major): (stop - start, D)."""
        c, _, w = self.shape
        p, across = self.patch_size, w // self.patch_size
        top, bottom = start // across, -(-stop // across)  # the patch rows that are touched
        band = pixels[:, top * p : bottom * p]
        tiles = band.reshape(c, bottom - top, p, across, p).permute(1, 3, 0, 2, 4)
        rows = tiles.reshape(-1, c * p * p)[start - top * across : stop - top * across]
        return self.patch(rows)  # type: ignore[no-any-return]

    def final(self, x: Tensor) -> Tensor:
        """See :meth:`Model.final`."""
        return self.norm(x)  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Norm:
        """See :meth:`Model.final_norm`."""
        return self.norm

    def classify(self, pooled: Tensor) -> Tensor:
        """See :meth:`Model.classify`."""
        return self.head(pooled)  # type: ignore[no-any-return]


def build(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ViT:
    """The model from its config and tensors."""
    spec, config = read_vit(values), Config(values)
    weights = Weights(tensors, ("vit.", ""))
    (c, h, w), p = geometry(values)
    d, eps = spec.hidden_size, config.number("layer_norm_eps", default=1e-12)
    act = activation(config.get("hidden_act", "gelu"))
    projection = "embeddings.patch_embeddings.projection"
    classes = weights.rows("classifier.weight")
    model = ViT(
        spec,
        [
            _block(spec, weights, f"encoder.layer.{i}.", eps, act)
            for i in range(spec.num_hidden_layers)
        ],
        patch=Linear(
            weights.take(f"{projection}.weight", d, c, p, p).reshape(d, -1),
            weights.take(f"{projection}.bias", d),
        ),
        image_shape=(c, h, w),
        patch_size=p,
        class_token=weights.take("embeddings.cls_token", 1, 1, d)[0, 0],
        positions=weights.take("embeddings.position_embeddings", 1, spec.max_tokens, d)[0],
        norm=Norm(
            "layer", eps, weights.take("layernorm.weight", d), weights.take("layernorm.bias", d)
        ),
        head=Linear(
            weights.take("classifier.weight", classes, d), weights.take("classifier.bias", classes)
        ),
    )
    model.labels = labels_of(values.get("id2label"), classes)
    return model


def _block(spec: ModelSpec, weights: Weights, at: str, eps: float, act: Any) -> Block:
    d, f = spec.hidden_size, spec.intermediate_size

    def dense(name: str, inner: int, outer: int) -> tuple[Tensor, Tensor | None]:
        return (
            weights.take(f"{at}{name}.weight", outer, inner),
            weights.maybe(f"{at}{name}.bias", outer),
        )

    def norm(name: str) -> tuple[Tensor, Tensor]:
        return weights.take(f"{at}{name}.weight", d), weights.take(f"{at}{name}.bias", d)

    attention = [f"{at}attention.attention.{name}" for name in ("query", "key", "value")]
    return Block(
        spec,
        post_norm=False,
        norm_1=Norm("layer", eps),
        norm_2=Norm("layer", eps),
        qkv=fold_norm(*weights.stacked(attention, d, (d, d, d)), *norm("layernorm_before")),
        out=Linear(*dense("attention.output.dense", d, d)),
        ffn=FeedForward(
            fold_norm(*dense("intermediate.dense", d, f), *norm("layernorm_after")),
            Linear(*dense("output.dense", f, d)),
            act,
            gated=False,
        ),
    )


def export(model: ViT) -> dict[str, Tensor]:
    """The tensors of a Hugging Face checkpoint of the model."""
    spec, found = model.spec, Export()
    d, (c, _, _), p = spec.hidden_size, model.shape, model.patch_size
    found.put("vit.embeddings.cls_token", model.class_token.view(1, 1, d))
    found.put("vit.embeddings.position_embeddings", model.positions[None])
    patch = "vit.embeddings.patch_embeddings.projection"
    found.dense(patch, model.patch.weight.view(d, c, p, p), model.patch.bias)
    for index in range(spec.num_hidden_layers):
        at, block = f"vit.encoder.layer.{index}.", model.block(index)
        names = [f"{at}attention.attention.{name}" for name in ("query", "key", "value")]
        found.split(names, (d, d, d), block.qkv.weight, block.qkv.bias)
        found.dense(f"{at}attention.output.dense", block.out.weight, block.out.bias)
        found.dense(f"{at}intermediate.dense", block.ffn.up.weight, block.ffn.up.bias)
        found.dense(f"{at}output.dense", block.ffn.down.weight, block.ffn.down.bias)
        for name in ("layernorm_before", "layernorm_after"):
            found.unit_norm(f"{at}{name}", d, bias=True)
    found.put("vit.layernorm.weight", model.norm.weight)
    found.put("vit.layernorm.bias", model.norm.bias)
    found.dense("classifier", model.head.weight, model.head.bias)
    return found.tensors
