"""Problems for policies with memory and masks whose exact gradients are known, and vector environments that play them."""

from typing import Any

import numpy as np
import torch as th
from envs import TabularMDP, TabularVecEnv
from gymnasium import spaces
from torch import nn

LSTM = nn.LSTM  # as it was imported, whatever a test makes of it


class Pomdp:
    """A random problem with hidden states: the history says more than the observation. Episodes have up to three steps."""

    HORIZON = 3

    def __init__(self, seed: int, n_states: int = 3, n_obs: int = 2, n_actions: int = 2):
        rng = np.random.default_rng(seed)
        self.n_states, self.n_obs, self.n_actions = n_states, n_obs, n_actions
        self.start = rng.dirichlet(np.ones(n_states))
        survives = np.linspace(0.9, 0.4, n_actions)  # the last actions end early
        self.transitions = rng.dirichlet(np.full(n_states, 0.3), (n_states, n_actions)) * survives[None, :, None]
        self.emissions = rng.dirichlet(np.full(n_obs, 0.5), n_states)
        self.rewards = 2.0 * rng.normal(size=(n_states, n_actions)) + 0.5
        #: Which actions are legal after an observation, ``(n_obs, n_actions)``
        self.legal = np.ones((n_obs, n_actions), dtype=bool)

    def objective(self, policy: Any, gamma: float) -> th.Tensor:
        """J_γ with its graph: the sum over all sequences of observations and actions, through the policy's LSTM in float64.

        :param policy: a recurrent policy in float64, with no layers behind the LSTM
        """
        n_steps, eye = self.HORIZON, th.eye(self.n_obs, dtype=th.float64)
        total: Any = 0.0
        sequences = np.stack(np.meshgrid(*[np.arange(self.n_obs)] * n_steps, indexing="ij"), axis=-1).reshape(-1, n_steps)
        out, _ = LSTM.forward(policy.lstm_actor, eye[th.as_tensor(sequences.T)])  # (n_steps, n_sequences, n_units)
        logits = policy.action_net(out).masked_fill(~th.as_tensor(self.legal[sequences.T]), -th.inf)
        log_pi = logits.log_softmax(dim=-1)
        for i, observations in enumerate(sequences):
            for actions in np.stack(np.meshgrid(*[np.arange(self.n_actions)] * n_steps, indexing="ij"), axis=-1).reshape(
                -1, n_steps
            ):
                if not self.legal[observations, actions].all():
                    continue
                state, log_prob = self.start, th.zeros((), dtype=th.float64)
                for t, (o, a) in enumerate(zip(observations, actions, strict=True)):
                    state = state * self.emissions[:, o]  # probability of the state and of all that was observed so far
                    log_prob = log_prob + log_pi[t, i, a]
                    # Each beginning of a sequence occurs once for every way in which it goes on
                    n_ways = self.n_obs ** (n_steps - 1 - t) * self.legal[observations[t + 1 :]].sum(axis=1).prod()
                    weight = 1.0 / n_ways if n_ways else 0.0
                    total = total + weight * gamma**t * float(state @ self.rewards[:, a]) * log_prob.exp()
                    state = state @ self.transitions[:, a]
        return total


class PomdpVecEnv(TabularVecEnv):
    """Parallel copies of a :class:`Pomdp`; the observation is emitted by the hidden state."""

    def __init__(self, pomdp: Pomdp, n_envs: int, seed: int = 0):
        super().__init__(pomdp, n_envs, seed)  # type: ignore[arg-type]
        self.observation_space = spaces.Discrete(pomdp.n_obs)
        self.t = np.zeros(n_envs, dtype=int)

    def _emit(self) -> np.ndarray:
        draws = self.rng.random(self.num_envs)
        self.observed = (draws[:, None] > self.mdp.emissions[self.states].cumsum(axis=1)[:, :-1]).sum(axis=1)
        return self.observed.copy()

    def reset(self) -> np.ndarray:
        super().reset()
        self.t[:] = 0
        return self._emit()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        _, rewards, dones, infos = super().step_wait()
        self.t += 1
        late = (self.t >= self.mdp.HORIZON) & ~dones
        self.states[late] = self._starts(int(late.sum()))
        dones = dones | late
        self.t[dones] = 0
        return self._emit(), rewards, dones, infos

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        assert method_name == "action_masks"
        return list(self.mdp.legal[self.observed])

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "action_masks":
            return [self.env_method] * self.num_envs
        return super().get_attr(attr_name, indices)


class MaskedMDP(TabularMDP):
    """A :class:`TabularMDP` in which each state forbids another action."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.legal = ~np.eye(self.n_states, self.n_actions, dtype=bool)

    def objective(self, logits: th.Tensor, gamma: float) -> th.Tensor:
        """Of the policy over the legal actions with these logits."""
        return super().objective(logits.masked_fill(~th.as_tensor(self.legal), -th.inf), gamma)


class MaskedVecEnv(TabularVecEnv):
    """Says which actions are legal in its states, and refuses the others."""

    mdp: MaskedMDP

    def step_async(self, actions: np.ndarray) -> None:
        assert self.mdp.legal[self.states, actions].all()
        super().step_async(actions)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        assert method_name == "action_masks"
        return list(self.mdp.legal[self.states])

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "action_masks":
            return [self.env_method] * self.num_envs
        return super().get_attr(attr_name, indices)
