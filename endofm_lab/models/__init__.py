"""Models that are built from public data: ``lab.models.list()``, ``show``, ``build``, ``get`` and ``publish``."""

from endofm_lab.models.building import build
from endofm_lab.models.fetch import get
from endofm_lab.models.publishing import publish
from endofm_lab.models.recipe import ModelRecipe, load_model_recipe
from endofm_lab.models.shelf import folder_of, show
from endofm_lab.models.shelf import list_models as list

__all__ = ["ModelRecipe", "build", "folder_of", "get", "list", "load_model_recipe", "publish", "show"]
