"""Trains models/tiny-gpt2: a small GPT-2 on the plays of Shakespeare, with its own tokenizer.

    python -m tools.models.train_tiny_gpt2                # train, resume where a run stopped
    python -m tools.models.train_tiny_gpt2 --evaluate     # measure the exported folder, sample

The architecture is GPT-2 (Radford et al. 2019), the tokenizer a byte-level BPE of 1024 entries
(Sennrich et al. 2016, arXiv:1508.07909) that sees the training text only. The first 90 % of the
characters train, the last 10 % validate; the weights exported are those of the best validation
loss (early stopping), which tells little about other text than Shakespeare's. Dropout as in
Srivastava et al. 2014; the optimiser is described in common.py. About 35 minutes of one free CPU
core (a GPU is used where there is one).

The exported folder is what transformers' GPT2LMHeadModel reads and writes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from tools.models.common import (
    Block,
    Curve,
    Optimiser,
    Reporter,
    autocast,
    load_checkpoint,
    one_cycle,
    pick_device,
    run,
    save_checkpoint,
    step_generator,
    training_parser,
    write_weights,
)

VOCAB, WINDOW, DIM, DEPTH, HEADS = 1024, 256, 192, 6, 6
DROPOUT, EPS, END = 0.1, 1e-5, "<|endoftext|>"
BATCH, MUON_LR, ADAM_LR, DECAY = 12, 4e-3, 2e-3, 0.1
PATIENCE = 4  # checks without a better validation loss before the run stops


def load_text(data: Path) -> tuple[str, str]:
    """Training and validation text."""
    text = (data / "datasets" / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with END as its first entry."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Token ids (N,) int64."""
    return torch.tensor(tokenizer.encode(text).ids)


class LeanGPT2(nn.Module):
    """The network of transformers' GPT2LMHeadModel; the head is the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB, DIM)
        self.wpe = nn.Embedding(WINDOW, DIM)
        self.blocks = nn.ModuleList(
            Block(DIM, HEADS, causal=True, gelu="tanh", dropout=DROPOUT, eps=EPS)
            for _ in range(DEPTH)
        )
        self.ln_f = nn.LayerNorm(DIM, eps=EPS)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * DEPTH) if residual else 1.0))
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to logits (B, T, VOCAB)."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        x = F.dropout(x, DROPOUT, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def batch_at(tokens: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Windows at random offsets: inputs and targets (BATCH, WINDOW), fixed by seed and step.

    One window in ten begins with END, so that END can stand for an empty prompt.
    """
    generator = step_generator(seed, 1, step)
    offset = torch.randint(0, len(tokens) - WINDOW, (BATCH, 1), generator=generator)
    windows = tokens[offset + torch.arange(WINDOW + 1)]
    inputs = windows[:, :-1].clone()
    inputs[torch.rand(BATCH, generator=generator) < 0.1, 0] = 0
    return inputs, windows[:, 1:]


@torch.no_grad()
def token_loss(model: nn.Module, tokens: Tensor, device: torch.device) -> float:
    """Mean loss in nats over all tokens but the first, in windows without overlap."""
    total = 0.0
    model.eval()
    for first in range(0, len(tokens) - 1, WINDOW):
        window = tokens[first : first + WINDOW + 1].to(device)
        with autocast(device):
            output = model(window[None, :-1])
        logits = output if isinstance(output, Tensor) else output.logits
        total += float(F.cross_entropy(logits[0].float(), window[1:], reduction="sum"))
    return total / (len(tokens) - 1)


def hf_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The lean module's weights under the names and in the (in, out) layout of GPT2LMHeadModel."""
    inner = {
        "ln1": "ln_1", "ln2": "ln_2", "query": "attn.c_attn", "out": "attn.c_proj",
        "up": "mlp.c_fc", "down": "mlp.c_proj",
    }  # fmt: skip
    named = {}
    for name, tensor in weights.items():
        if not name.startswith("blocks."):
            named[f"transformer.{name}"] = tensor
            continue
        _, number, part, kind = name.split(".")
        if part in ("key", "value"):
            continue  # joined to the query
        joined = tensor
        if part == "query":
            others = [weights[name.replace("query", other)] for other in ("key", "value")]
            joined = torch.cat([tensor, *others])
        named[f"transformer.h.{number}.{inner[part]}.{kind}"] = joined.t()
    return named


def export(weights: dict[str, Tensor], tokenizer: Tokenizer, out: Path) -> None:
    """Writes config.json, the tokenizer and model.safetensors (float16)."""
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCAB,
        "n_positions": WINDOW, "n_embd": DIM, "n_layer": DEPTH, "n_head": HEADS,
        "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": EPS,
        "attn_pdrop": 0.0, "embd_pdrop": DROPOUT, "resid_pdrop": DROPOUT,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "dtype": "float16",
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": WINDOW,
        "bos_token": END, "eos_token": END, "unk_token": END,
    }  # fmt: skip
    write_weights(hf_names(weights), out)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))


def learn(
    model: LeanGPT2, optimiser: Optimiser, tokens: Tensor, step: int, args: argparse.Namespace
) -> float:
    """One training step; its loss."""
    torch.manual_seed(args.seed * args.steps + step)  # dropout, the same after a resume
    device = model.wte.weight.device
    inputs, targets = batch_at(tokens, args.seed, step)
    model.train()
    with autocast(device):
        logits = model(inputs.to(device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
    loss.backward()
    factor = one_cycle(step, args.steps)
    optimiser.step(MUON_LR * factor, ADAM_LR * factor, step)
    return float(loss.detach())


def train(args: argparse.Namespace) -> None:
    """Trains, resuming from the checkpoint where there is one, and exports the best weights."""
    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    train_text, valid_text = load_text(args.data)
    tokenizer = train_tokenizer(train_text)
    tokens, valid = encode(tokenizer, train_text), encode(tokenizer, valid_text)
    model, averaged = LeanGPT2().to(device), LeanGPT2().to(device)
    optimiser = Optimiser(model, decay=DECAY, ema=0.98)
    checkpoint = args.work / "checkpoint.pt"
    start = load_checkpoint(checkpoint, model, optimiser)
    curve = Curve(args.out / "training.csv", ["step", "seconds", "train", "valid"], start)
    losses: list[float] = []
    with Reporter("tiny-gpt2", args.steps, start) as report:
        for done in report.steps():
            losses.append(learn(model, optimiser, tokens, done - 1, args))
            report.advance(done, f"loss {np.mean(losses[-50:]):.3f}")
            if done % args.check and done < report.total:
                continue
            averaged.load_state_dict(optimiser.average)
            score = token_loss(averaged, valid, device)
            report.say(f"step {done}: train {np.mean(losses):.4f}, valid {score:.4f} nats/token")
            curve.add(done, report.elapsed, float(np.mean(losses)), score)
            losses.clear()
            history = curve.column("valid")
            if history[-1] == min(history):
                export(optimiser.average, tokenizer, args.out)
            save_checkpoint(checkpoint, model, optimiser, done)
            if min(history) < min(history[-PATIENCE:]):
                break


def evaluate(args: argparse.Namespace) -> None:
    """Prints the validation loss of the exported folder and two samples, with transformers."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(args.out, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    _, text = load_text(args.data)
    tokens = encode(tokenizer, text)
    loss = token_loss(model, tokens, torch.device("cpu"))
    print(f"validation text: {len(text)} characters, {len(tokens)} tokens")
    print(f"{loss:.4f} nats per token, {loss * (len(tokens) - 1) / len(text):.4f} per character")
    prompt = torch.tensor([tokenizer.encode("ROMEO:\n").ids])
    torch.manual_seed(args.seed)
    length = {"max_new_tokens": 80, "pad_token_id": 0}
    greedy = model.generate(prompt, **length, do_sample=False)
    sampled = model.generate(prompt, **length, do_sample=True, temperature=0.8, top_k=40)
    print(f"--- greedy\n{tokenizer.decode(greedy[0].tolist())}")
    print(f"--- temperature 0.8, top 40\n{tokenizer.decode(sampled[0].tolist())}")


def main() -> None:
    """Command line."""
    parser = training_parser(__doc__, "tiny-gpt2", steps=1100, check=50)
    run(parser, train, evaluate)


if __name__ == "__main__":
    main()
