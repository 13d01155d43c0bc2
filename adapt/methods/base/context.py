"""What a method may read while it says what it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from adapt.errors import AdaptError


class Context:
    """What a method may read while one call of the adapted model runs: outputs of a tower, each computed once."""

    def __init__(
        self,
        features: dict[str, Callable[[], Tensor]] | None = None,
        tokens: dict[str, Callable[[], Tensor]] | None = None,
        class_features: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        self._class_features = class_features
        self._compute = {("features", name): compute for name, compute in (features or {}).items()}
        self._compute |= {("tokens", name): compute for name, compute in (tokens or {}).items()}
        self._known: dict[tuple[str, str], Tensor] = {}

    def features(self, tower: str) -> Tensor:
        """Unit-length features `(b, e)` of this call's inputs to `tower`."""
        return self._read("features", tower)

    def tokens(self, tower: str) -> Tensor:
        """Features `(b, l, d)` of the patches of this call's images, as the backbone reads them off `tower`.

        Of a dual encoder they are what the last block gives, for a class token too.
        """
        return self._read("tokens", tower)

    def class_features(self, templates: Sequence[str]) -> Tensor:
        """Unit-length features `(n, e)` of this call's classes in hand-written templates, by the backbone alone."""
        if self._class_features is None:
            raise AdaptError("the method reads features of the classes, and this model has none: take a dual encoder")
        return self._class_features(templates)

    def _read(self, kind: str, tower: str) -> Tensor:
        key = (kind, tower)
        if key not in self._compute:
            raise AdaptError(
                f"the method reads {kind} of the {tower} tower, and this call was given none: "
                "call model(images), or model.class_features(model.image_features(images))"
            )
        if key not in self._known:
            self._known[key] = self._compute[key]()
        return self._known[key]
