"""PaliGemma as a backbone (Beyer et al., PaliGemma: A versatile 3B VLM for transfer): a prompt, and one answer.

It has no chat template. Its processor puts the images first, then the words of the prompt, and reads the answer by
itself: the prompt attends both ways, the answer to what comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapt.backbones.native import PREPARING, ChatImages, ChatRows, NativeVLM
from adapt.chats import Chat
from adapt.common.errors import AdaptError


class PaliGemma(NativeVLM):
    """A PaliGemma with its processor."""

    def _check_template(self) -> None:
        """Accept a processor without a chat template, as PaliGemma has none."""

    @property
    def end(self) -> int | None:
        """The id of the tokenizer's end token, which the processor puts behind an answer."""
        own: int | None = self.tokenizer.eos_token_id
        return own

    def _rows(self, chats: Sequence[Chat], images: Sequence[ChatImages], left: bool, asks: bool) -> ChatRows:
        with PREPARING:
            batch = dict(
                self.processor(
                    text=[self._mark * chat.images + self._words(chat, asks) for chat in chats],
                    suffix=None if asks else [chat.answer for chat in chats],
                    images=[list(own) for own in images],
                    padding=True,
                    padding_side="left" if left else "right",
                    return_tensors="pt",
                )
            )
        del batch["labels"]  # with which the model would compute a loss
        inputs = {name: value.to(self.device) for name, value in batch.items()}
        answers = inputs["token_type_ids"].bool()
        for row, chat in enumerate(chats):
            answers[row] &= chat.turns[-1].learned
        return ChatRows(inputs, answers)

    def _length(self, chat: Chat, sizes: tuple[tuple[int, int], ...], asks: bool) -> int:
        prompt = f"{self.tokenizer.bos_token}{self._words(chat, asks)}\n"
        answer = [] if asks else [chat.answer + self.tokenizer.eos_token]
        parts = self._tokenized([prompt, *answer], special=False)
        return sum(map(len, parts)) + self.processor.image_seq_length * len(sizes)

    def learned_tokens(self, chats: Sequence[Chat]) -> int:
        answers = [chat.answer + self.tokenizer.eos_token for chat in chats if chat.turns[-1].learned]
        return sum(map(len, self._tokenized(answers, special=False))) if answers else 0

    def _words(self, chat: Chat, asks: bool) -> str:
        """Return the words of the prompt. Raises AdaptError for any other form than a question with its answer."""
        roles = [turn.role for turn in chat.turns]
        if roles not in (["user"], ["user"] if asks else ["user", "assistant"]) or not chat.turns[0].images:
            raise AdaptError(
                f"{self.describe()} reads one question about images, and its answer; the conversation has turns of "
                f"{', '.join(roles)} with {chat.images} images: give it as a question with its answer"
            )
        return chat.turns[0].text
