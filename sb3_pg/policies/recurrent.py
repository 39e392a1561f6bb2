"""Policies with memory: sb3-contrib's RecurrentActorCriticPolicy family.

A *segment* is an episode's part in a rollout: it begins with the episode, without memory, or with the rollout, with the memory
that the last one left. The rollout runs the actor's memory alone; everything else comes from replaying segments, several at a
time and all steps of them in one call of the LSTM. On whole episodes the gradient goes through the whole history. Where the
rollout cuts an episode the memory at the cut is a constant: truncated backpropagation through time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_pg.policies import kind
from sb3_pg.policies.kernels import differentiable
from sb3_pg.policies.plain import PlainKind
from sb3_pg.policies.sampling import is_plain_lstm, is_plain_mlp, numpy_features, numpy_lstm, numpy_outputs
from sb3_pg.policies.steps import Rows, Steps, map_obs, take_obs

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import RolloutBuffer

    from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

# Hidden and cell state of an LSTM, (n_layers, n, n_units) each
Memory = tuple[th.Tensor, ...]

# What ``Steps.context["segment"]`` says of a step: that it goes on with the segment, that it begins one without memory, or
# else, a number from 0 on, that it begins one with the memory of that number: those the environments had at the start of the
# rollout, followed by those they had wherever the policy was changed within it
_GOES_ON, _BEGINS = -2, -1
# Times the size of an ordinary chunk that one may have here
_MOST_CHUNKS = 8
# Multiplications in a step of the LSTM up to which NumPy is faster than torch
_MOST_IN_NUMPY = 2**23
# Segments are replayed together, and padded, if the shorter has at least this share of the longer's steps
_LIKE_LENGTH = 0.5


class RecurrentKind(PlainKind):
    """A policy whose steps are scored in segments, from the memory that each segment began with."""

    base = RecurrentActorCriticPolicy
    has_context = True
    #: Whether the critic's memory is that after the last step that was played
    _is_carried = False

    @classmethod
    def make_policy(cls, policy_class: Any, *args: Any, **policy_kwargs: Any) -> Any:
        """With an LSTM that sb3-contrib's policies can step."""
        refused = {"bidirectional", "batch_first", "proj_size"} & (policy_kwargs.get("lstm_kwargs") or {}).keys()
        if refused:
            raise ValueError(f"lstm_kwargs: sb3-contrib's policies cannot step an LSTM with {', '.join(sorted(refused))}.")
        try:
            return super().make_policy(policy_class, *args, **policy_kwargs)
        except TypeError as error:
            if "input_size" not in str(error):
                raise
            raise ValueError(
                f"{policy_class.__name__} does not take MultiDiscrete observations (a fault of sb3-contrib's): flatten them "
                "with gymnasium.wrappers.FlattenObservation."
            ) from error

    def __init__(self, policy: RecurrentActorCriticPolicy):
        super().__init__(policy)
        #: The memory after the last step that was played: the actor's, NumPy's, and the critic's
        self._actor_memory: tuple[np.ndarray, np.ndarray] = (np.zeros((0, 0, 0)), np.zeros((0, 0, 0)))
        self._critic_memory: Memory = (th.zeros(0), th.zeros(0))
        #: The memories that the segments in progress began with: at the start of the rollout, and wherever a part of it began
        self._initial = RNNStates((th.zeros(0), th.zeros(0)), (th.zeros(0), th.zeros(0)))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """On one thread: on the CPU an LSTM's threads meet at every step, and wait for each other on a busy machine."""
        n_threads = th.get_num_threads()
        th.set_num_threads(1)
        try:
            yield
        finally:
            th.set_num_threads(n_threads)

    # Acting

    def _begin(self, env: VecEnv) -> None:
        super()._begin(env)
        n_layers, _, n_units = self.policy.lstm_hidden_state_shape
        shape, device = (n_layers, env.num_envs, n_units), self.policy.device
        if self._actor_memory[0].shape != shape:
            self._actor_memory = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        if not self._is_carried or self._critic_memory[0].shape != shape or self._critic_memory[0].device != device:
            # Also after a rollout that a callback has stopped: better none than that of another episode
            self._critic_memory = th.zeros(shape, device=device), th.zeros(shape, device=device)
        self._is_carried = False
        self._initial = RNNStates(self._to_torch(copy=True), self._critic_memory)
        self._goes_on = np.arange(env.num_envs)

    def begin_part(self) -> None:
        """Go on with the memory that the policy has before the change."""
        now = RNNStates(self._to_torch(copy=True), self._critic_memory)
        self._goes_on = np.arange(len(self._goes_on)) + self._initial.pi[0].shape[1]
        self._initial = RNNStates(*(
            tuple(th.cat(states, dim=1) for states in zip(old, new, strict=True))
            for old, new in zip(self._initial, now, strict=True)
        ))  # fmt: skip

    def _to_torch(self, copy: bool = False) -> Memory:
        """The actor's memory as tensors; without a copy views of it, on the CPU."""
        h, c = (th.from_numpy(x.copy() if copy else x).to(self.policy.device) for x in self._actor_memory)
        return h, c

    def _remember(self, memory: Memory) -> None:
        for array, state in zip(self._actor_memory, memory, strict=True):
            array[...] = state.cpu().numpy()

    def _observe(self, episode_starts: np.ndarray) -> Mapping[str, np.ndarray]:
        episode_starts = np.asarray(episode_starts, dtype=bool)
        segment = np.where(episode_starts, _BEGINS, self._goes_on)
        self._goes_on = np.full_like(segment, _GOES_ON)
        if episode_starts.any():
            for array in self._actor_memory:
                array[:, episode_starts] = 0.0
        return {**super()._observe(episode_starts), "segment": segment}

    def _no_starts(self, n: int) -> th.Tensor:
        """contrib's mark of the first steps of episodes, for steps whose memory is right already."""
        return th.zeros(n, device=self.policy.device)

    def _forward(self, obs: Any, context: Mapping[str, Any]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        begins = th.as_tensor(context["segment"] == _BEGINS, device=self.policy.device)
        of_critic = tuple(x.masked_fill(begins[:, None], 0.0) for x in self._critic_memory)
        states, no_starts = RNNStates(self._to_torch(), of_critic), self._no_starts(len(begins))
        with self.computing():
            actions, values, log_probs, states = self.policy(obs, states, no_starts, **self._arguments(context))
        self._remember(states.pi)
        self._critic_memory, self._is_carried = states.vf, True
        return actions, values, log_probs

    def _act(self, obs: Any, context: Mapping[str, Any]) -> Any:
        no_starts = self._no_starts(len(context["segment"]))
        with self.computing():
            distribution, memory = self.policy.get_distribution(obs, self._to_torch(), no_starts, **self._arguments(context))
        self._remember(memory)
        return distribution

    def _make_outputs(self, n_envs: int) -> Callable[[Any, Mapping[str, np.ndarray]], np.ndarray]:
        if not (is_plain_mlp(self.policy) and is_plain_lstm(self.policy.lstm_actor)) or self.overrides("_process_sequence"):
            return self._torch_outputs
        if n_envs * self.policy.lstm_actor.weight_hh_l0.numel() > _MOST_IN_NUMPY:
            return self._torch_outputs
        features, networks = numpy_features(self.policy), numpy_outputs(self.policy, n_envs)
        advance = numpy_lstm(self.policy.lstm_actor, self._actor_memory)
        return lambda obs, context: networks(advance(features(obs)))

    # Scoring

    def log_prob_and_entropy(self, steps: Steps) -> tuple[th.Tensor, th.Tensor]:
        """Of a replay of the segments that these steps are."""
        log_prob, entropy = self._replay(self._score, steps, self._initial.pi)
        return log_prob, entropy

    def values(self, steps: Steps) -> th.Tensor:
        """Of a replay through the critic's memory, the actor's, or none, as the policy has it."""
        return self._values(steps, self._initial.pi if self.policy.shared_lstm else self._initial.vf)

    def _values(self, steps: Steps, initial: Memory) -> th.Tensor:
        own = self._evaluates_values()

        def evaluate(part: Steps, *memory: Any) -> tuple[th.Tensor]:
            if own:
                return (self._evaluate_actions(part.observations, part.actions, *memory)[0].flatten(),)
            return (self.policy.predict_values(part.observations, *memory).flatten(),)

        for module in self.policy.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # padding would move its statistics, and a lone step has none: see show
        with differentiable(self.policy):
            (values,) = self._replay(evaluate, steps, initial)
        return values

    def kl_divergence(self, steps: Steps) -> th.Tensor:
        """Of a replay of the segments that these steps are."""
        (divergence,) = self._replay(
            lambda part, *memory: (self._divergence_from_itself(part, *memory),), steps, self._initial.pi
        )
        return divergence

    def _evaluate_actions(self, obs: Any, actions: th.Tensor, *memory: Any, **arguments: Any) -> Any:
        states, no_starts = memory
        return self.policy.evaluate_actions(obs, actions, RNNStates(states, states), no_starts, **arguments)

    def _distribution(self, obs: Any, *memory: Any, **arguments: Any) -> Any:
        distribution, _ = self.policy.get_distribution(obs, *memory, **arguments)
        return distribution

    def _replay(self, function: Callable[..., tuple[th.Tensor, ...]], steps: Steps, initial: Memory) -> tuple[th.Tensor, ...]:
        """``function`` of the steps, segments of like length at a time.

        :param function: of padded steps, one segment after the other, ``(n_segments · length, …)``, the memory that these
            segments began with, and contrib's episode starts; returns tensors ``(n_segments · length,)``
        :param steps: whole segments
        :param initial: the memory at the start of the rollout, by environment
        :return: as ``function``, for the steps alone, ``(n,)`` each
        """
        segment = steps.context["segment"].cpu().numpy()
        parts, rows = [], []
        for index, is_step in _pad(segment):
            marks, index, is_step = segment[index[:, 0]], index.ravel(), is_step.ravel()
            states = self._take_memory(initial, marks)
            parts.append([x[is_step] for x in function(steps[index], states, self._no_starts(len(index)))])
            rows.append(index[is_step])
        order = np.argsort(np.concatenate(rows))
        return tuple(th.cat(x)[order] for x in zip(*parts, strict=True))

    def _take_memory(self, initial: Memory, segment: np.ndarray) -> Memory:
        """The memory that segments begin with, given the marks of their first steps."""
        n_layers, _, n_units = self.policy.lstm_hidden_state_shape
        h, c = (th.zeros((n_layers, len(segment), n_units), device=self.policy.device) for _ in range(2))
        carried = np.flatnonzero(segment >= 0)
        if len(carried):
            h[:, carried], c[:, carried] = (x[:, segment[carried]] for x in initial)
        return h, c

    def _features(self, obs: Any, extractor: Any) -> th.Tensor:
        features: th.Tensor = BasePolicy.extract_features(self.policy, obs, extractor)
        return features

    def show(self, steps: Steps) -> None:
        """To the features extractors alone, without padding."""
        for extractor in {self.policy.pi_features_extractor, self.policy.vf_features_extractor}:
            self._features(steps.observations, extractor)

    def fill_values(self, buffer: "EpisodeRolloutBuffer", rows: slice, goes_on: bool) -> None:
        """Also the memory of a critic that has its own, where the episodes in progress go on."""
        super().fill_values(buffer, rows, goes_on)
        if goes_on and self.policy.lstm_critic is not None:
            steps = self._take_steps(buffer, self._by_env(buffer, rows).ravel())
            with th.no_grad():
                self._critic_memory, self._is_carried = self._final_critic_memory(steps), True

    def _take_chunks(self, buffer: "EpisodeRolloutBuffer", rows: np.ndarray) -> Iterable[tuple[np.ndarray, Steps]]:
        """Of whole segments, which are found among all steps."""
        steps = self._take_steps(buffer, rows)
        return ((rows[chunk], steps[chunk]) for chunk in self.chunks(steps))

    def _final_critic_memory(self, steps: Steps) -> Memory:
        """The critic's memory after the last step of each environment, of a rollout that is cut."""
        segment = steps.context["segment"].cpu().numpy()
        n_envs = len(self._goes_on)
        ends = np.arange(1, n_envs + 1) * (len(segment) // n_envs)
        begins = _starts(segment)[np.searchsorted(_starts(segment), ends, side="left") - 1]
        order = np.argsort(begins - ends, kind="stable")  # the longest first
        begins, lengths = begins[order], (ends - begins)[order]
        h, c = self._take_memory(self._initial.vf, segment[begins])
        # Together for as long as the shortest goes on: no padding, which would change the memory
        done = 0
        for n_open in range(n_envs, 0, -1):
            length = lengths[n_open - 1]
            if length > done:
                rows = (begins[:n_open, None] + np.arange(done, length)).ravel()  # one segment after the other
                features = self._features(steps[rows].observations, self.policy.vf_features_extractor)
                states = h[:, :n_open].contiguous(), c[:, :n_open].contiguous()
                _, (new_h, new_c) = self.policy._process_sequence(
                    features, states, self._no_starts(len(rows)), self.policy.lstm_critic
                )
                h, c = th.cat([new_h, h[:, n_open:]], dim=1), th.cat([new_c, c[:, n_open:]], dim=1)
                done = length
        back = np.argsort(order)
        return h[:, back], c[:, back]

    def bootstrap_values(self, buffer: "RolloutBuffer", steps: np.ndarray, envs: np.ndarray, observations: Any) -> th.Tensor:
        """V with the memory of the segment that led there."""
        values = th.zeros(len(steps))
        # At hand behind the last step of a rollout
        at_hand = (steps == len(buffer.rewards) - 1) & (self.policy.lstm_critic is None or self._is_carried)
        for rows, evaluate in ((at_hand, self._values_at_end), (~at_hand, self._values_after_replay)):
            if rows.any():
                values[rows] = evaluate(buffer, steps[rows], envs[rows], take_obs(observations, rows))
        return values

    def _values_at_end(self, buffer: "RolloutBuffer", steps: np.ndarray, envs: np.ndarray, observations: Any) -> th.Tensor:
        memory = self._to_torch() if self.policy.shared_lstm else self._critic_memory
        following = self.to_steps(observations, np.zeros((len(envs), buffer.action_dim), np.float32), {"segment": envs})
        with th.no_grad():
            return self._values(following, memory).cpu()

    def _values_after_replay(self, buffer: "RolloutBuffer", steps: np.ndarray, envs: np.ndarray, last_obs: Any) -> th.Tensor:
        of_buffer = buffer.context["segment"]  # type: ignore[attr-defined]
        rows, segment = [], []
        for step, env in zip(steps, envs, strict=True):
            start = np.flatnonzero(of_buffer[: step + 1, env] != _GOES_ON)[-1]
            rows.append(np.arange(start, step + 1))
            segment.append(np.append(of_buffer[start : step + 1, env], _GOES_ON))
        lengths = np.array([len(part) + 1 for part in rows])
        lasts = np.cumsum(lengths) - 1
        is_played = np.ones(lengths.sum(), dtype=bool)
        is_played[lasts] = False
        played_steps, played_envs = np.concatenate(rows), np.repeat(envs, lengths - 1)

        def insert(played: np.ndarray, following: np.ndarray) -> np.ndarray:
            out = np.empty((len(is_played), *played.shape[2:]), np.result_type(played, following))
            out[is_played], out[lasts] = played[played_steps, played_envs], np.reshape(following, (-1, *played.shape[2:]))
            return out

        obs = map_obs(insert, buffer.observations, last_obs)
        extended = self.to_steps(obs, np.zeros((len(is_played), buffer.action_dim)), {"segment": np.concatenate(segment)})
        values = np.empty(len(extended), np.float32)
        with th.no_grad():
            for chunk in self.chunks(extended):
                values[chunk] = self.values(extended[chunk]).cpu().numpy()
        return th.as_tensor(values[lasts])

    # Dividing

    def chunks(self, steps: Steps) -> Iterable[Rows]:
        """Segments of like length, as many as make a chunk; one at least.

        A chunk takes as long as its longest segment, so it is large where observations are small.
        """
        starts, lengths = _segments(steps)
        order = np.argsort(-lengths, kind="stable")
        is_dict = isinstance(steps.observations, dict)
        n_numbers = sum(x[0].numel() for x in (steps.observations.values() if is_dict else [steps.observations]))
        return _parts(starts[order], lengths[order], kind.CHUNK_SIZE * max(1, min(_MOST_CHUNKS, 4096 // n_numbers)))

    def batch_size(self, n_steps: int) -> int:
        """A quarter of the rollout, but from 512 to 2,048: a minibatch takes as long as its longest segment."""
        return min(max(n_steps // 4, 512), 2048)

    def minibatches(self, steps: Steps, size: int, shuffled: bool = True) -> Iterable[Rows]:
        """Whole segments, in parts that differ in size by a segment."""
        starts, lengths = _segments(steps)
        n_parts = -(-len(steps) // size)
        if n_parts == 1:
            return [slice(None)]
        order = th.randperm(len(starts)).numpy() if shuffled else np.arange(len(starts))
        return _parts(starts[order], lengths[order], -(-len(steps) // n_parts))

    def excerpt(self, steps: Steps, size: int, shuffled: bool = False) -> Rows:
        """Whole segments."""
        starts, lengths = _segments(steps)
        n = min(-(-size * len(starts) // len(steps)), len(starts))
        order = th.randperm(len(starts))[:n].numpy() if shuffled else np.arange(n) * len(starts) // n
        return _rows(starts[order], lengths[order])

    def _evaluate(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        n_layers, _, n_units = self.policy.lstm_hidden_state_shape
        shape = n_layers, len(actions), n_units
        memory = th.linspace(-0.5, 0.5, int(np.prod(shape)), device=self.policy.device).reshape(shape)
        values, log_prob, _ = self._evaluate_actions(obs, actions, (memory, memory), self._no_starts(len(actions)))
        return values, log_prob


def _starts(segment: np.ndarray) -> np.ndarray:
    return np.flatnonzero(segment != _GOES_ON)


def _segments(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """First rows and lengths of the segments."""
    starts = _starts(steps.context["segment"].cpu().numpy())
    return starts, np.diff(starts, append=len(steps))


def _rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rows of segments, one segment after the other."""
    ends = np.cumsum(lengths)
    rows: np.ndarray = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    return rows


def _parts(starts: np.ndarray, lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The rows of as many segments as have ``size`` steps together, or of one that has more."""
    first, n = 0, 0
    for i, length in enumerate(lengths):
        if n and n + length > size:
            yield _rows(starts[first:i], lengths[first:i])
            first, n = i, 0
        n += int(length)
    yield _rows(starts[first:], lengths[first:])


def _pad(segment: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of segments of like length: their rows, the last repeated, and which are steps, ``(n_segments, length)`` each."""
    starts = _starts(segment)
    lengths = np.diff(starts, append=len(segment))
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    first = 0
    while first < len(starts):
        longest = lengths[first]
        last = first + int(np.count_nonzero(lengths[first:] >= _LIKE_LENGTH * longest))
        t, of_group = np.arange(longest), lengths[first:last, None]
        yield starts[first:last, None] + np.minimum(t, of_group - 1), t < of_group
        first = last
