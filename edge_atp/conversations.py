"""Questions that follow one another: what was asked, seen and answered, with its KV cache.

Bounded by number, by turns, by age and by memory. Knows nothing of prompts or graphs. A question
is checked in one thread while another is answered, so the store may be asked from several.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_atp.runtime.kv_prefix import HeldKv
from edge_atp.runtime.prompt import Turn
from edge_atp.types import Frame, PatchMask


@dataclass(frozen=True)
class Conversation:
    """What is remembered of a conversation.

    turns: oldest first.
    masks: of the newest images, those of the last turn that brought any.
    held: keys and values of all turns but the last tokens; None where the decoder cannot hand
        them out, and the next turn is computed from its beginning.
    num_turns: questions answered so far, forgotten ones included.
    """

    turns: tuple[Turn, ...] = ()
    masks: tuple[PatchMask, ...] = ()
    held: HeldKv | None = None
    num_turns: int = 0

    @property
    def num_images(self) -> int:
        """Images in the remembered turns."""
        return sum(len(turn.images) for turn in self.turns)

    @property
    def num_bytes(self) -> int:
        """Memory of images, visual tokens, keys and values."""
        frames = sum(int(mask.frame.image.nbytes) for mask in self.masks)
        tokens = sum(turn.num_bytes for turn in self.turns)
        return frames + tokens + (self.held.num_bytes if self.held else 0)


def without_oldest(turns: Sequence[Turn], new_images: bool) -> tuple[Turn, ...] | None:
    """The turns without the oldest one that can go.

    Args:
        new_images: the next question brings images; without, the last turn with images stays,
            since the question is about them.
    Returns:
        None where no turn can go.
    """
    seen = [number for number, turn in enumerate(turns) if turn.images]
    needed = seen[-1] if seen and not new_images else -1
    for number in range(len(turns)):
        if number != needed:
            return (*turns[:number], *turns[number + 1 :])
    return None


class ConversationStore:
    """Conversations by id.

    Args:
        max_conversations: the one longest unused goes first.
        max_age_s: one unused for longer is forgotten.
        max_bytes: of all together; those longest unused go first, one that is larger by itself is
            not kept.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        max_conversations: int,
        max_age_s: float,
        max_bytes: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_conversations = max_conversations
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._now_s = now_s
        self._kept: OrderedDict[str, tuple[float, Conversation]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._forget_old()
            return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Memory of all conversations."""
        with self._lock:
            return self._sum_bytes()

    def get(self, conversation_id: str) -> Conversation:
        """The conversation of that id; an empty one where none is remembered."""
        with self._lock:
            self._forget_old()
            return self._kept.get(conversation_id, (0.0, Conversation()))[1]

    def frames(self, conversation_id: str) -> tuple[Frame, ...]:
        """The newest images of a conversation, what a question without images is about."""
        return tuple(mask.frame for mask in self.get(conversation_id).masks)

    def put(self, conversation_id: str, conversation: Conversation) -> None:
        """Remember a conversation as just used."""
        with self._lock:
            self._kept[conversation_id] = (self._now_s(), conversation)
            self._kept.move_to_end(conversation_id)
            self._forget_old()
            while len(self._kept) > self._max_conversations or self._sum_bytes() > self._max_bytes:
                self._kept.popitem(last=False)

    def forget(self, conversation_id: str) -> None:
        """Forget one conversation; fine where none is remembered."""
        with self._lock:
            self._kept.pop(conversation_id, None)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def _sum_bytes(self) -> int:
        return sum(conversation.num_bytes for _, conversation in self._kept.values())

    def _forget_old(self) -> None:
        oldest_s = self._now_s() - self._max_age_s
        # In order of use: the first one young enough ends the search.
        while self._kept and next(iter(self._kept.values()))[0] < oldest_s:
            self._kept.popitem(last=False)
