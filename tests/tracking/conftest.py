from small_trainings import make_model, own_cache, train

__all__ = ["make_model", "own_cache", "train"]
