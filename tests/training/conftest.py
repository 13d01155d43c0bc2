"""Small trainings."""

from small_trainings import at_step, make_model, own_cache, train, training_of

__all__ = ["at_step", "make_model", "own_cache", "train", "training_of"]
