"""Features that a method may read while it decides how to change a tower in the present call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from adapt.common.errors import AdaptError


class Context:
    """Tower outputs that a method may read during one forward call of the adapted model, each computed at most once."""

    def __init__(
        self,
        features: dict[str, Callable[[], Tensor]] | None = None,
        tokens: dict[str, Callable[[], Tensor]] | None = None,
        class_features: Callable[[Sequence[str]], Tensor] | None = None,
        class_tokens: dict[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        self._class_features = class_features
        self._compute = {("features", name): compute for name, compute in (features or {}).items()}
        self._compute |= {("tokens", name): compute for name, compute in (tokens or {}).items()}
        self._compute |= {("class tokens", name): compute for name, compute in (class_tokens or {}).items()}
        self._known: dict[tuple[str, str], Tensor] = {}

    def features(self, tower: str) -> Tensor:
        """Return the unit-length features `(b, e)` that `tower` computes for the inputs of the current forward call."""
        return self._read("features", tower)

    def tokens(self, tower: str) -> Tensor:
        """Return the token features `(b, l, d)` that `tower` computes for the images of the current forward call.

        On a dual encoder, the features are the outputs of the last block for all tokens, including a class token. On a
        vision LLM, they are the features of patches alone.
        """
        return self._read("tokens", tower)

    def class_token(self, tower: str) -> Tensor:
        """Return the feature `(b, d)` of the class token that `tower` computes beside the patches, on a vision LLM."""
        return self._read("class tokens", tower)

    def class_features(self, templates: Sequence[str]) -> Tensor:
        """Return the frozen backbone's unit-length features `(n, e)` of the classes in hand-written `templates`."""
        if self._class_features is None:
            raise AdaptError("the method reads class features, which only a dual encoder has: use a dual encoder")
        return self._class_features(templates)

    def _read(self, kind: str, tower: str) -> Tensor:
        key = (kind, tower)
        if key not in self._compute:
            raise AdaptError(
                f"the method reads {kind} of the {tower} tower, which this call does not compute: "
                "call model(images), or model.class_features(model.image_features(images))"
            )
        if key not in self._known:
            self._known[key] = self._compute[key]()
        return self._known[key]
