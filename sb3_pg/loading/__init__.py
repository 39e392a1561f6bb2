"""Files from strangers: models, statistics of VecNormalize, results and settings, read so that nothing in them is run.

What is promised, and what is not, is said in SECURITY.md.
"""

from sb3_pg.loading.errors import NotTrustedError, fitting_together
from sb3_pg.loading.files import load_vec_normalize, parse_normalize, read_pickle, read_settings
from sb3_pg.loading.models import load_model, read_model

__all__ = [
    "NotTrustedError",
    "fitting_together",
    "load_model",
    "load_vec_normalize",
    "parse_normalize",
    "read_model",
    "read_pickle",
    "read_settings",
]
