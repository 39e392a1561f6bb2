"""NaN and infinity are found and placed."""

import numpy as np
import pytest

from sb3_pg.finite import require_finite, require_finite_rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers(value: float) -> None:
    require_finite("the loss", 1e300)
    with pytest.raises(ValueError, match="NaN or infinity in the loss;"):
        require_finite("the loss", value)


def test_rows() -> None:
    rows = np.zeros((4, 3, 2))
    require_finite_rows("reward", rows)
    require_finite_rows("observation", np.ones((4, 3), dtype=np.uint8))
    rows[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="in the reward of environment 1, step 2 of"):
        require_finite_rows("reward", rows)
    with pytest.raises(ValueError, match="in the observation of environment 1, step 2 of"):
        require_finite_rows("observation", {"a": np.zeros((4, 3)), "b": rows})
    with pytest.raises(ValueError, match="in the observation of environment 1, step 7 of"):
        require_finite_rows("observation", rows[2], step=7)
    with pytest.raises(ValueError, match="in the terminal observation of environment 5, step 7 of"):
        require_finite_rows("terminal observation", rows[2, 1:2], step=7, env=5)
