"""What one peer offers: its models by id and name."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from shlex import quote

from msgspec.structs import replace

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.copies import Words, best_words
from astra_mesh.errors import InputError, UnknownModelError
from astra_mesh.families import ModelSpec
from astra_mesh.families.model import check_ids, require, such_as
from astra_mesh.limits import MODELS_PER_PEER, NAMES_PER_MODEL
from astra_mesh.peer.complaints import Complaints
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.measured import Conditions, Figures
from astra_mesh.peer.shelf import Read, Shelf
from astra_mesh.wire.messages import ModelId, ModelOffer, Task, names_of

_NAMED = 3  # peers or models in a sentence

log = logging.getLogger(__name__)


@dataclass
class Entry:
    """A model that is offered, and what this peer knows of it."""

    bundle: Bundle
    words: Bundle  # of its copies, the one whose tokenizer and chat template count
    spec: ModelSpec
    offer: ModelOffer
    chat: bool  # that has a chat template
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    loaded: Loaded | None = None
    figures: Figures | None = None  # of its speed, once loaded
    about: Conditions | None = None  # that those hold for
    turns_s: float = 0.0  # of the compute thread, that a block takes
    wanted: int = 0  # requests that wait until it is loaded
    doubtful: bool = False  # whether its figures may not hold any more
    checked_s: float = -math.inf  # when they were last compared
    pace: float = 1.0  # times as long as its figures say everything takes now
    felt: float | None = None  # another pace, which was seen once

    def move(self, bundle: Bundle) -> None:
        """Its folder went, and this one is a copy."""
        self.bundle = bundle
        if self.loaded is not None:
            self.loaded.bundle = bundle


def _and(names: Sequence[str]) -> str:
    """Some of the names."""
    return ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")


class Offers:
    """The models of this peer, as they were read from its folders.

    Args:
        names: to offer; None: all on this device.
    """

    def __init__(self, names: tuple[str, ...] | None) -> None:
        self._complaints = Complaints()
        self._shelf = Shelf(names, self._complaints)
        self._entries: dict[ModelId, Entry] = {}
        # Other peers that have a model of a name, and its id there.
        self.holders: Callable[[str], list[tuple[str, ModelId]]] = lambda name: []

    def offers(self) -> list[ModelOffer]:
        """What this peer tells the others."""
        return [entry.offer for entry in self._entries.values()]

    def offer(self, model: ModelId) -> ModelOffer | None:
        """The offer of one model."""
        entry = self._entries.get(model)
        return None if entry is None else entry.offer

    def require(self, model: ModelId, task: Task, *, picture: bool = False) -> None:
        """WrongTaskError unless a model that is offered does a task, InputError if it does so with
        texts only and a picture is given. Others that can are named.
        """
        entry = self._entry(model)
        reads_text = bool(entry.spec.vocab_size)
        others = self._able(task, picture=picture)
        require(entry.offer.family, [one.value for one in entry.offer.tasks], task.value, others)
        if picture and reads_text:
            such = f", or choose a model that reads pictures{such_as(others)}"
            raise InputError(f"{entry.offer.name} reads text: give a text, not an image{such}")

    def _able(self, task: Task, *, picture: bool) -> list[str]:
        """Names of some models that do a task with pictures, or with texts."""
        able = [
            one.offer.name
            for one in self._entries.values()
            if task in one.offer.tasks and picture is not bool(one.spec.vocab_size)
        ]
        return sorted(able)[:_NAMED]

    def check_tokens(self, model: ModelId, tokens: Sequence[int]) -> None:
        """InputError, or its kin, if a model that reads text cannot take these token ids."""
        spec = self._entry(model).spec
        if spec.vocab_size:
            check_ids(spec, len(tokens), min(tokens, default=0), max(tokens, default=0))

    def bundle(self, model: ModelId) -> Bundle | None:
        """The files of a model of this peer."""
        entry = self._entries.get(model)
        return None if entry is None else entry.bundle

    def reader(self, model: ModelId) -> Bundle | None:
        """The folder whose files read texts, or pictures, for a model of this peer."""
        entry = self._entries.get(model)
        if entry is None:
            return None
        return entry.words if entry.spec.vocab_size else entry.bundle

    def holds_conversations(self, model: ModelId) -> bool:
        """Whether a model of this peer has a chat template."""
        entry = self._entries.get(model)
        return entry is not None and entry.chat

    def find(self, name: str) -> ModelId:
        """The model of that name, or whose id begins so (8 digits at least).

        Raises:
            UnknownModelError: none; the text lists what there is.
            ModelError: It is here, but cannot be used.
        """
        for model, entry in self._entries.items():
            if name in names_of(entry.offer) or (len(name) >= 8 and model.startswith(name)):
                return model
        if (why := self._shelf.left_out_because(name)) is not None:
            raise why
        known = sorted(name for offer in self.offers() for name in names_of(offer))
        names = ", ".join(known) or "none"
        hint = "`astra-mesh models` lists them"
        if holders := self.holders(name):
            hint = self._how_to_get(name, holders)
        raise UnknownModelError(f"no model {name!r} on this device; it has: {names}. {hint}")

    def _how_to_get(self, name: str, holders: Sequence[tuple[str, ModelId]]) -> str:
        """What to do for a model that others have by this name."""
        peers = list(dict.fromkeys(peer for peer, _ in holders))
        who = f"{_and(peers)} {'has' if len(peers) == 1 else 'have'} it"
        command = f"astra-mesh models pull {quote(name)}"
        models = {model for _, model in holders}
        known = self.offer(next(iter(models))) if len(models) == 1 else None
        if known is None:
            return f"{who}: `{command}` brings it here"
        return (
            f"{who}, with the weights of {known.name} here: ask for {quote(known.name)}, or "
            f"`{command} --name {quote(name)}` brings its tokenizer and chat template too"
        )

    def is_loaded(self, model: ModelId) -> bool:
        """Whether a request for a model of this peer need not wait until it is loaded."""
        entry = self._entries.get(model)
        return entry is not None and entry.loaded is not None

    def _entry(self, model: ModelId) -> Entry:
        entry = self._entries.get(model)
        if entry is None:
            raise UnknownModelError(f"no model {model[:12]} on this device")
        return entry

    # --- what was read ----------------------------------------------------------------------------

    def _take(self, found: Sequence[Read]) -> bool:
        """Offer what was read; whether anything is new."""
        new = False
        copies: dict[ModelId, list[tuple[Bundle, Words]]] = {}
        for bundle, _, offer, words in found:
            copies.setdefault(offer.id, []).append((bundle, words))
        best_first = sorted(found, key=lambda one: -len(one[2].codebooks))
        for bundle, spec, offer, _ in best_first:
            known = self._entries.get(offer.id)
            reader, words = best_words(copies[offer.id])
            if known is not None:
                if known.bundle.path not in {one.path for one, _ in copies[offer.id]}:
                    known.move(bundle)
                known.words, known.chat = reader, words.chat
                continue
            if len(self._entries) >= MODELS_PER_PEER:
                self._complaints.make(f"the model {offer.name} is left out: there are too many")
                continue
            self._entries[offer.id] = Entry(bundle, reader, spec, offer, words.chat)
            new = True
        return self._name_copies(found) or new

    def _name_copies(self, found: Sequence[Read]) -> bool:
        """Copies of a model are one, by all their names; whether names came or went."""
        names: dict[ModelId, dict[str, None]] = {}
        for _, _, offer, _ in found:
            names.setdefault(offer.id, {})[offer.name] = None
        changed = False
        for model, entry in self._entries.items():
            first = next(iter(names.get(model, ())), entry.offer.name)
            if entry.offer.name not in names.get(model, (first,)):
                entry.offer = replace(entry.offer, name=first)
                changed = True
            also = [name for name in names.get(model, ()) if name != entry.offer.name]
            if also[:NAMES_PER_MODEL] != entry.offer.also:
                entry.offer = replace(entry.offer, also=also[:NAMES_PER_MODEL])
                changed = True
        return changed

    def _withdraw(self, here: Set[ModelId]) -> bool:
        """Offer only what is here; whether anything went. Requests that have it in memory go on."""
        gone = self._entries.keys() - here
        for model in gone:
            log.warning("%s is not offered any more", self._entries.pop(model).offer.name)
        return bool(gone)
