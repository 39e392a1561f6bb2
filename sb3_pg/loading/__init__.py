"""Files from strangers: models, statistics of VecNormalize, results and settings, read so that nothing in them is run.

What is promised, and what is not, is said in SECURITY.md.
"""

from sb3_pg.loading.errors import NotTrustedError
from sb3_pg.loading.files import load_vec_normalize, parse_normalize, read_pickle, read_settings, settings_loader
from sb3_pg.loading.models import load_model, read_model, set_up

__all__ = [
    "NotTrustedError",
    "load_model",
    "load_vec_normalize",
    "parse_normalize",
    "read_model",
    "read_pickle",
    "read_settings",
    "set_up",
    "settings_loader",
]
