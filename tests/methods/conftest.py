"""Small trainings."""

from small_trainings import make_model, own_cache, train, training_of

__all__ = ["make_model", "own_cache", "train", "training_of"]
