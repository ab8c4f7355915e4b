"""What an image was made of, as its file tells: the recipe, its two forms, and the job that asks for it again.

API, worker and command line agree on it here. Encoding pixels is the worker's business.
"""

from farm.recipes.again import job_of_infotext, job_of_picture, job_of_recipe
from farm.recipes.files import NoRecipe, exif_of, read_infotext_of, read_recipe, text_chunks_of, texts_in
from farm.recipes.infotext import Infotext, infotext, read_infotext
from farm.recipes.recipe import RECIPE_VERSION, FileKind, Recipe, told_of

__all__ = [
    "RECIPE_VERSION",
    "FileKind",
    "Infotext",
    "NoRecipe",
    "Recipe",
    "exif_of",
    "infotext",
    "job_of_infotext",
    "job_of_picture",
    "job_of_recipe",
    "read_infotext",
    "read_infotext_of",
    "read_recipe",
    "text_chunks_of",
    "texts_in",
    "told_of",
]
