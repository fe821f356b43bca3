"""What a model is, for everybody who does not need its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["last", "class", "mean", "all"]


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and kind of a model; field names as in Hugging Face configs where they exist there."""

    family: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int  # 0 where the input is an image
    max_tokens: int  # positions, class token included
    causal: bool
    has_class_token: bool  # position 0 is a token that the answer is read from
    tasks: tuple[str, ...]  # values of wire.messages.Task

    @property
    def q_size(self) -> int:
        """Width of all queries of one token."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys (and of all values) of one token."""
        return self.num_key_value_heads * self.head_dim

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def pooling(self, task: str) -> Pooling:
        """Which final hidden rows the task's head reads."""
        if task == "generate":
            return "last"
        return "class" if task == "classify" else "mean"
