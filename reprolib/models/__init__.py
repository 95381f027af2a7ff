"""Models: an encoder becomes embeddings, cached under their identity.

Light to import: torch and transformers are imported where a model is loaded.
"""

from reprolib.models.embed import load_embeddings
from reprolib.models.registry import find_model, load_model_manifest, models

__all__ = ["find_model", "load_embeddings", "load_model_manifest", "models"]
