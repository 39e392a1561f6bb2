"""Models from attackers: one sentence, no code run, nothing written."""

import base64
import io
import json
import os
import pickle
import random
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hostile import MARKER, Call, flip_bits, payloads, rewrite, watched
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_pg import VanillaPG
from sb3_pg.loading import load_model, models
from sb3_pg.saving import TRAINING, read_member

MEMBERS = ("data", "pytorch_variables.pth", "policy.pth", "policy.optimizer.pth", "critic_optimizer.pth")


@pytest.fixture(scope="module")
def honest() -> bytes:
    file = io.BytesIO()
    VanillaPG("MlpPolicy", "CartPole-v1", n_steps=8, policy_kwargs=dict(net_arch=[2]), seed=0).learn(8).save(file)
    VanillaPG.load(file, trusted=False)  # torch imports some of itself when it is first needed
    return file.getvalue()


def refuse(contents: bytes, match: str, folder: Path) -> str:
    """Load it in vain, as a file in the folder. What is said of it comes back."""
    path = folder / "model.zip"
    path.write_bytes(contents)
    before = sorted(folder.parent.rglob("*"))
    with watched() as events, pytest.raises(ValueError, match=match) as refusal:
        VanillaPG.load(path, trusted=False)
    assert events == [] and sorted(folder.parent.rglob("*")) == before
    message = str(refusal.value)
    assert type(refusal.value) in (ValueError, *ValueError.__subclasses__()) and len(message) < 600
    assert message.isprintable() and str(path) in message
    return message


def member(archive: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(name)


def with_data(honest: bytes, **changes: Any) -> bytes:
    """The model with other data; bytes are pickles."""
    data = json.loads(member(honest, "data"))
    for name, value in changes.items():
        is_pickle = isinstance(value, bytes)
        data[name] = {":type:": "x", ":serialized:": base64.b64encode(value).decode()} if is_pickle else value
    return rewrite(honest, {"data": json.dumps(data).encode()})


@pytest.mark.parametrize("key", ["policy_kwargs", "unknown", "_last_obs"])
@pytest.mark.parametrize("kind", payloads(Path()))
def test_pickles_in_the_data(kind: str, key: str, honest: bytes, tmp_path: Path) -> None:
    contents = with_data(honest, **{key: payloads(tmp_path)[kind]})
    refuse(contents, f"{key} asks for|{key} is damaged", tmp_path)
    if key == "unknown" and kind in ("os.system", "exec through getattr"):  # the attack is real
        VanillaPG.load(tmp_path / "model.zip")
        assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", MEMBERS[1:])
@pytest.mark.parametrize("how", ["a pickle", "by torch.save", "in torch's archive"])
def test_pickles_in_the_place_of_weights(how: str, name: str, honest: bytes, tmp_path: Path) -> None:
    call = Call(os.system, f"touch {tmp_path / MARKER}")
    if how == "a pickle":
        contents = pickle.dumps(call, 2)
    else:
        file = io.BytesIO()
        th.save({"weight": call}, file)
        contents = file.getvalue()
        th.load(io.BytesIO(contents), weights_only=False)  # the attack is real
        (tmp_path / MARKER).unlink()
        if how == "in torch's archive":
            contents = rewrite(member(honest, name), {"archive/data.pkl": pickle.dumps(call, 2)})
    refuse(rewrite(honest, {name: contents}), "cannot be read", tmp_path)


def test_a_pickle_as_the_system_info_is_text(honest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = rewrite(honest, {"system_info.txt": b"\x1b]0;owned\x07 OS\n" + payloads(tmp_path)["os.system"]})
    VanillaPG.load(io.BytesIO(contents), trusted=False, print_system_info=True)
    out = capsys.readouterr().out
    assert "?]0;owned? OS\n" in out and "\x1b" not in out and not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil.pth", "..\\evil.pth", "a/../../evil.pth", "policy.pth/", "evil.py",
                                  ".pth", "__class__.pth", "policy..optimizer.pth"])  # fmt: skip
def test_members_that_no_model_has(name: str, honest: bytes, tmp_path: Path) -> None:
    refuse(rewrite(honest, {name: b"evil"}), r"it has a member '.*', as no model has", tmp_path)


def test_paths_that_climb_out_of_torchs_archive(honest: bytes, tmp_path: Path) -> None:
    inner = rewrite(member(honest, "policy.pth"), {"../evil": b"evil"})
    refuse(rewrite(honest, {"policy.pth": inner}), r"it has a member '\.\./evil'", tmp_path)


def test_two_members_of_one_name(honest: bytes, tmp_path: Path) -> None:
    file = io.BytesIO(honest)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("data", "{}")
    refuse(file.getvalue(), "two members 'data'", tmp_path)


# Bombs


def test_a_bomb(honest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAX_ARCHIVE", 2**20)
    bomb = rewrite(honest, {"policy.pth": bytes(2**21)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16
    refuse(bomb, "unpacked it would be larger than 1 MiB", tmp_path)
    # One that says that it is small is read no further than it says
    declared = (2**21).to_bytes(4, "little")
    assert bomb.count(declared) >= 2
    refuse(bomb.replace(declared, (2**10).to_bytes(4, "little")), "cannot be read: (BadZipFile|policy.pth)", tmp_path)


def test_the_limit_is_what_is_said() -> None:
    assert models.MAX_ARCHIVE == 2**30  # SECURITY.md


def test_many_members_that_share_their_contents(honest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory lists one compressed block a hundred times."""
    monkeypatch.setattr(models, "MAX_ARCHIVE", 2**20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a0.pth", bytes(2**18))
        (info,) = archive.infolist()
        for i in range(1, 100):
            copy = zipfile.ZipInfo(f"a{i}.pth")
            for slot in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(copy, slot, getattr(info, slot))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    refuse(file.getvalue(), "unpacked it would be larger than 1 MiB", tmp_path)


def test_a_bomb_in_torchs_archive(honest: bytes, tmp_path: Path) -> None:
    inner = rewrite(member(honest, "policy.pth"), {"archive/data/0": bytes(2**21)}, zipfile.ZIP_DEFLATED)
    refuse(rewrite(honest, {"policy.pth": inner}), "unpacked it would be larger", tmp_path)


def test_a_tensor_that_is_larger_than_its_numbers(honest: bytes, tmp_path: Path) -> None:
    state = th.load(io.BytesIO(member(honest, "policy.optimizer.pth")), weights_only=True)
    state["state"][0]["exp_avg"] = th.zeros(1).expand(2**40)
    file = io.BytesIO()
    th.save(state, file)
    refuse(rewrite(honest, {"policy.optimizer.pth": file.getvalue()}), "a tensor that is larger than its numbers", tmp_path)


HUGE: dict[str, Any] = {
    "layers": dict(policy_kwargs={"net_arch": [2, 20_000, 20_000]}),
    "many layers": dict(policy_kwargs={"net_arch": [1] * 100_000}),
    "observations": dict(observation_space=pickle.dumps(spaces.Discrete(2**40))),
    "actions": dict(action_space=pickle.dumps(spaces.Discrete(2**32))),
    "memory": dict(
        policy_class=pickle.dumps(RecurrentActorCriticPolicy), policy_kwargs={"lstm_hidden_size": 9, "n_lstm_layers": 10**7}
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_networks_that_are_described_in_a_few_words(kind: str, honest: bytes, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(with_data(honest, **HUGE[kind]), "size mismatch|Missing key|more than 10000 parameters", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


WEIGHTS = {
    "many bytes": (b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.", "asks for builtins.bytearray"),
    "another storage": (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x00\x40tQ.",
                        "a storage of another size"),
    "a missing storage": (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00xX\x03\x00\x00\x00cpuK\x01tQ.",
                          "KeyError"),
    "structure": (b"]" * (2**22 + 1), "too many tensors"),
    "something of torch": (b"ctorch.serialization\nload\n.", "asks for torch.serialization.load"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_pickles_among_weights(kind: str, honest: bytes, tmp_path: Path) -> None:
    pickled, match = WEIGHTS[kind]
    inner = rewrite(member(honest, "policy.pth"), {"archive/data.pkl": b"\x80\x02" + pickled})
    refuse(rewrite(honest, {"policy.pth": inner}), match, tmp_path)


def test_another_compression(honest: bytes, tmp_path: Path) -> None:
    contents = rewrite(honest, {"data": member(honest, "data")}, zipfile.ZIP_LZMA)
    refuse(contents, "is compressed in a way that no model is", tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_is_read_alone(compression: int, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.zip"
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(TRAINING, bytes(2**20))
    with pytest.raises(ValueError, match=r"training.pt of .* is compressed in a way that no model is"):
        read_member(file, TRAINING)


def test_a_directory_of_many_members(honest: bytes, tmp_path: Path) -> None:
    """Empty members take hardly more than their names in the archive, and an object each when they are listed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.filelist += [zipfile.ZipInfo(f"a{i}.pth") for i in range(2**17)]
        for info in archive.filelist:
            info.compress_size = info.CRC = info.header_offset = 0
        archive._didModify = True  # type: ignore[attr-defined]
    refuse(file.getvalue(), "it has too many members", tmp_path)
    (tmp_path / "checkpoint_1_steps.zip").write_bytes(file.getvalue())
    with pytest.raises(ValueError, match="it has too many members"):
        read_member(tmp_path / "checkpoint_1_steps.zip", TRAINING)


def test_a_long_list_in_the_data(honest: bytes, tmp_path: Path) -> None:
    data = member(honest, "data").rstrip()[:-1] + b', "nested": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    refuse(rewrite(honest, {"data": data}), "cannot be read: (RecursionError|its nested is)", tmp_path)
    refuse(with_data(honest, wide=[[]] * 1_000_001), "too many objects", tmp_path)


# Damage


def test_truncated_files(honest: bytes, tmp_path: Path) -> None:
    for n in np.linspace(0, len(honest) - 1, 40).astype(int):
        refuse(honest[:n], "cannot be read", tmp_path)
    refuse(b"not a zip file", "cannot be read: BadZipFile", tmp_path)


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_truncated_or_missing(name: str, honest: bytes, tmp_path: Path) -> None:
    contents = member(honest, name)
    for n in (0, 1, len(contents) // 2, len(contents) - 1):
        refuse(rewrite(honest, {name: contents[:n]}), "cannot be read", tmp_path)
    if name != "pytorch_variables.pth":  # which SB3 takes to be none
        refuse(rewrite(honest, {name: None}), "cannot be read|fit", tmp_path)


@pytest.mark.parametrize("a", MEMBERS)
@pytest.mark.parametrize("b", MEMBERS)
def test_members_that_are_swapped(a: str, b: str, honest: bytes, tmp_path: Path) -> None:
    if a < b:
        refuse(rewrite(honest, {a: member(honest, b), b: member(honest, a)}), str(tmp_path), tmp_path)


def test_the_weights_of_another_model(honest: bytes, tmp_path: Path) -> None:
    other = io.BytesIO()
    VanillaPG("MlpPolicy", "CartPole-v1", n_steps=8, policy_kwargs=dict(net_arch=[3])).learn(8).save(other)
    for name in MEMBERS[2:]:
        refuse(rewrite(honest, {name: member(other.getvalue(), name)}), str(tmp_path), tmp_path)


def test_bits_that_are_flipped(honest: bytes, tmp_path: Path) -> None:
    """Whatever is flipped, a model comes out or one sentence."""
    rng = random.Random(0)
    outcomes = []
    with watched() as events:
        for i in range(500):
            if i % 4:  # bits of the file, which has checksums
                contents = flip_bits(honest, rng, 1 + i % 3)
            else:  # bits of a member, before it is sealed
                name = MEMBERS[i // 4 % len(MEMBERS)]
                contents = rewrite(honest, {name: flip_bits(member(honest, name), rng, 1 + i % 3)})
            try:
                VanillaPG.load(io.BytesIO(contents), trusted=False, device="cpu")
                outcomes.append("loaded")
            except ValueError as error:
                assert str(error).isprintable() and len(str(error)) < 600
                outcomes.append("refused")
    assert events == [] and outcomes.count("refused") > 300 and outcomes.count("loaded") > 10


def test_pickles_of_the_data_that_are_fuzzed(honest: bytes) -> None:
    from hostile import fuzz

    rng = random.Random(1)
    data = json.loads(member(honest, "data"))
    names = [name for name, item in data.items() if isinstance(item, dict) and ":serialized:" in item]
    refused = 0
    with watched() as events:
        for i in range(80):
            name = names[i % len(names)]
            pickled = fuzz(base64.b64decode(data[name][":serialized:"]), rng)
            try:
                VanillaPG.load(io.BytesIO(with_data(honest, **{name: pickled})), trusted=False, device="cpu")
            except ValueError as error:
                assert str(error).isprintable()
                refused += 1
    assert events == [] and 40 < refused < 80


# Attributes

NOT_SETTINGS = (
    *("learn", "predict", "_setup_model", "train", "collect_rollouts", "set_parameters", "logger", "kind", "uses_critic"),
    *("policy", "env", "device", "_logger", "rollout_buffer", "critic_optimizer", "_vec_normalize_env", "policy_aliases"),
    *("__class__", "__dict__", "_kind", "_left", "_ending", "n_steps.real", "a b", ""),
)


@pytest.mark.parametrize("name", NOT_SETTINGS)
def test_what_is_no_setting_is_not_set(name: str, honest: bytes, tmp_path: Path) -> None:
    refuse(with_data(honest, **{name: "x"}), "which is no setting of VanillaPG", tmp_path)


WRONG: dict[str, Any] = {
    "policy_class": ["MlpPolicy", None, {"a": 1}, pickle.dumps(RolloutBuffer), pickle.dumps(th.optim.Adam)],
    "observation_space": [None, "Box", pickle.dumps(RolloutBuffer), [1, 2]],
    "action_space": [7, pickle.dumps({"n": 2})],
    "policy_kwargs": [
        None,
        [],
        "dict()",
        pickle.dumps({"activation_fn": RolloutBuffer}),
        {"activation_fn": "Tanh"},
        {"features_extractor_class": "x"},
        {"net_arch": "x"},
        {"nonsense": 1},
        {"optimizer_kwargs": {"lr": "x"}},
        pickle.dumps({"features_extractor_kwargs": {"cls": th.nn.Tanh}}),
        {"net_arch": [-1]},
        {"use_sde": {}},
    ],
    "rollout_buffer_class": ["x", pickle.dumps(th.nn.Tanh), {}],
    "rollout_buffer_kwargs": [None, {"buffer_size": 3}, {"nonsense": 1}],
    "n_steps": ["16", -1, 0, None, 10**30, [1], float("nan"), {}],
    "n_envs": ["1", -3, None, 10**30, 1.5],
    "gamma": ["x", {}, 7],
    "learning_rate": ["x", {}, -1, pickle.dumps(th.optim.Adam)],
    "batch_size": [{}, "8"],
    "seed": ["x", [1], -1, 10**40],
    "weights": ["x", 3, {}],
    "num_timesteps": ["x", []],
    "use_sde": ["x", 3],
    "_total_timesteps": ["x"],
    "verbose": [{}, "1"],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_the_wrong_kind(name: str, honest: bytes, tmp_path: Path) -> None:
    for value in WRONG[name]:
        contents = with_data(honest, **{name: value})
        path = tmp_path / "model.zip"
        path.write_bytes(contents)
        with watched() as events, pytest.raises((ValueError, TypeError)) as refusal:
            VanillaPG.load(path, trusted=False, device="cpu")
        assert events == [] and str(refusal.value).isprintable(), value


@pytest.mark.parametrize(
    "data", [b"[]", b"3", b"null", b"{", b"", b"\xff\xfe", b'{"policy_class": 1' + b"0" * 5000 + b"}", b"{}"]
)
def test_data_that_are_none(data: bytes, honest: bytes, tmp_path: Path) -> None:
    refuse(rewrite(honest, {"data": data}), "cannot be read", tmp_path)


def test_variables_lead_nowhere(honest: bytes, tmp_path: Path) -> None:
    """SB3 sets ``data`` of whatever the name of a variable leads to."""
    file = io.BytesIO()
    th.save({"__class__": th.zeros(1)}, file)
    contents = rewrite(honest, {"pytorch_variables.pth": file.getvalue()})
    VanillaPG.load(io.BytesIO(contents))
    assert isinstance(VanillaPG.data, th.Tensor)  # the attack is real
    del VanillaPG.data
    refuse(contents, "variables that are none of SB3's", tmp_path)


@pytest.mark.parametrize("algorithm, policy", [(A2C, "MlpPolicy"), (RecurrentPPO, "MlpLstmPolicy")])
def test_other_algorithms_refuse_too(algorithm: Any, policy: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    algorithm(policy, "CartPole-v1").save(file)
    with pytest.raises(ValueError, match=r"unknown asks for posix\.system"):
        load_model(algorithm, io.BytesIO(with_data(file.getvalue(), unknown=payloads(tmp_path)["os.system"])))
    assert not (tmp_path / MARKER).exists()
