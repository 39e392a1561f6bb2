"""Settings of runs from attackers: plain data, of a size that is stated."""

from pathlib import Path

import pytest

from sb3_pg.loading import NotTrustedError, parse_normalize, read_settings

SETTINGS = {
    "mappings that are merged": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "names of tuples in tuples": "a0: &a0 !!python/tuple [1]\n"
    + "".join(f"a{i}: &a{i} !!python/tuple [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)) + "b: {? *a59 : 1}\n",
    "names of an OrderedDict": "a0: &a0 [1]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    + "b: !!python/object/apply:collections.OrderedDict [[[*a8, 1]]]\n",
    "lists in lists": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "depth": "[" * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_grow(kind: str, tmp_path: Path) -> None:
    (tmp_path / "args.yml").write_text(SETTINGS[kind])
    with pytest.raises(ValueError, match=r"args\.yml cannot be read"):
        read_settings(tmp_path / "args.yml")


@pytest.mark.parametrize(
    "text", ["(" * 10_000, "-" * 10_000 + "1", "dict(a=[].append(1))", "dict(**{'a': open})", "dict(a=1)(b=2)"]
)
def test_normalize_strings_are_literals(text: str) -> None:
    with pytest.raises(NotTrustedError, match="more than names and values"):
        parse_normalize(text)
    assert parse_normalize("dict(norm_obs=True, clip_obs=5.0)") == parse_normalize("{'norm_obs': True, 'clip_obs': 5.0}")
