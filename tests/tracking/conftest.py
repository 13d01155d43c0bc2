from small_trainings import at_step, make_model, own_cache, train

__all__ = ["at_step", "make_model", "own_cache", "train"]
