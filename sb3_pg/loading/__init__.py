"""Files from strangers: models, statistics of VecNormalize, results and settings, read so that nothing in them is run.

What is promised, and what is not, is said in SECURITY.md. Which function reads what:

- a model, SB3's zip file: :func:`load_model`, or ``load(…, trusted=False)`` of our classes (by :func:`read_model` and
  :func:`set_up`)
- ``vecnormalize.pkl``: :func:`load_vec_normalize`
- another pickle of plain data, NumPy's arrays, spaces, schedules and ``VecNormalize``: :func:`read_pickle`; of its bytes
  :func:`loads`
- a zip file with members of other names: :func:`read_archive`, or one of them :func:`read_member`; what ``torch.save``
  wrote: :func:`read_weights`, which takes dictionaries and lists of tensors (no ``Parameter``), numbers and texts
- ``args.yml`` and ``config.yml``: :func:`read_settings`; a ``normalize`` string: :func:`parse_normalize`

A new format can be read without trust if it is plain data: no functions or objects of its own, and generators by their
states (tensors, arrays, numbers).
"""

from sb3_pg.loading.archives import read_archive, read_member, read_weights
from sb3_pg.loading.errors import NotTrustedError
from sb3_pg.loading.files import load_vec_normalize, parse_normalize, read_pickle, read_settings, settings_loader
from sb3_pg.loading.models import load_model, read_model, set_up
from sb3_pg.loading.unpickling import loads

__all__ = [
    "NotTrustedError",
    "load_model",
    "load_vec_normalize",
    "loads",
    "parse_normalize",
    "read_archive",
    "read_member",
    "read_model",
    "read_pickle",
    "read_settings",
    "read_weights",
    "set_up",
    "settings_loader",
]
