"""Preferences: two answers in a conversation about images, of which one is better (DPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapt.common.errors import AdaptError
from adapt.data.item import Cell, Item, filled, labels_of
from adapt.tasks.conversations import Conversation, Conversations

if TYPE_CHECKING:
    from adapt.chats import Chat
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method, Step, Terms
    from adapt.methods.base.training import Training
    from adapt.models.base import Adapted
    from adapt.models.native_vlm import ChatStep


@dataclass(frozen=True)
class Preference(Conversation):
    """A conversation that ends with the chosen answer, and the answer that was rejected in its place."""

    rejected: str

    @property
    def columns(self) -> dict[str, str]:
        return super().columns | {"rejected": self.rejected}


class Preferences(Conversations):
    """The task of preferences: training raises the probability of the chosen answers over that of the rejected ones."""

    name = "preferences"
    title = "preferences between two answers about images"
    example = "emoji-preferences"
    label_type = Preference
    needs = frozenset({"chat", "rejected"})
    noun = "pairs of answers"
    items_are = "pairs of answers about images, of which one is better"
    has_summed_loss = True
    _loss: ClassVar[str] = "dpo"

    def read(self, cells: Mapping[str, Cell], where: str) -> Preference:
        chat, rejected = super().read(cells, where).chat, filled(cells, "rejected", where)
        if chat.answer.strip() == rejected.strip():
            raise AdaptError(f"{where}: the chosen and the rejected answer are equal: change one, or take the row out")
        return Preference(chat, rejected)

    def facts(self, items: Sequence[Item]) -> Sequence[str]:
        longer = sum(len(label.words) > len(label.rejected) for label in labels_of(items, Preference))
        return tuple(f"{fact}; the chosen answer is longer in {longer:,}" for fact in super().facts(items))

    def validates(self, model: Adapted) -> bool:
        return True  # answers that are given are scored in one pass

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        from adapt.methods.base.traits import ChoosesOnValidation, trait

        super().check_learnt(method, items)
        chooses = trait(method, ChoosesOnValidation)
        if chooses is not None and chooses.chosen_on_validation is not None:
            raise AdaptError(
                f"{method.name} chooses {chooses.chosen_on_validation} by the loss on validation items, for which the "
                f"reference of preferences is not computed: set method.{chooses.chosen_on_validation}"
            )

    def chats(self, item: Item, question: str) -> Sequence[Chat]:
        [label] = labels_of([item], Preference)
        return label.chat, label.chat.question.answered(label.rejected)

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> ChatStep:
        from adapt.models.dpo import PreferenceStep

        rejected = [label.rejected for label in labels_of(items, Preference)]
        return PreferenceStep(model, inputs, rejected).of(self, items)

    def prepare(self, training: Training) -> None:
        from adapt.models.dpo import refer

        refer(training, getattr(training.settings, self._loss))

    def loss(self, step: Step) -> Terms:
        return {self._loss: getattr(step, self._loss)}

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.free_text import scored_pairs

        return scored_pairs(items, inference.of_batches(model, items, lambda step: step.sums.cpu().tolist()))
