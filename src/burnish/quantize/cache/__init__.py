"""KV caches in few bytes: keys and values coded as they leave the last tokens, by codes that are fitted to a model.

    from burnish.quantize.cache import CodedCache

    cache = CodedCache.load("cache", "rotated:3", model)  # what `burnish kv-cache` has written
    model.generate(**inputs, past_key_values=cache)

`codes` says what is stored of a vector, `layer` and `cached` are transformers' cache, `collect` and `fitting` learn
what a code needs from text, and `measure` says what each costs and what it leaves of the model's predictions.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.quantize.cache.cached import CodedCache
    from burnish.quantize.cache.codes import CacheCode, code_of
    from burnish.quantize.cache.fitted import FittedCodes, read_fitted
    from burnish.quantize.cache.fitting import fit
    from burnish.quantize.cache.measure import compare_codes

_PUBLIC = {
    "CacheCode": ".codes",
    "CodedCache": ".cached",
    "FittedCodes": ".fitted",
    "code_of": ".codes",
    "compare_codes": ".measure",
    "fit": ".fitting",
    "read_fitted": ".fitted",
}

__all__ = ["CacheCode", "CodedCache", "FittedCodes", "code_of", "compare_codes", "fit", "read_fitted"]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
