"""Tiny environments whose gradients, lengths and returns are known."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv


class TabularMDP:
    """A random MDP that ends sooner or later, with episode lengths that depend on the actions.

    Under the softmax policy π(a∣s) ∝ exp(W[a, s] + b[a]) everything is known by dynamic programming in float64.
    """

    def __init__(self, seed: int, n_states: int = 3, n_actions: int = 3):
        rng = np.random.default_rng(seed)
        self.n_states, self.n_actions = n_states, n_actions
        end = np.linspace(0.8, 0.1, n_actions) * rng.uniform(0.8, 1.0, (n_states, n_actions))  # the first actions end early
        moves = rng.dirichlet(np.ones(n_states), (n_states, n_actions))
        self.transitions = moves * (1.0 - end)[..., None]  # (S, A, S), the rest of the mass ends the episode
        self.rewards = rng.normal(size=(n_states, n_actions)) + 0.5
        self.start = rng.dirichlet(np.ones(n_states))

    def objective(self, logits: th.Tensor, gamma: float) -> th.Tensor:
        """J_γ = E[Σ γᵗ rₜ] of the policy with these logits, ``(S, A)``."""
        pi = logits.softmax(dim=1)
        step = th.einsum("sa,sat->st", pi, th.as_tensor(self.transitions))
        reward = (pi * th.as_tensor(self.rewards)).sum(dim=1)
        values = th.linalg.solve(th.eye(self.n_states, dtype=th.float64) - gamma * step, reward)
        return th.as_tensor(self.start) @ values

    def gradient(self, weight: th.Tensor, bias: th.Tensor, gamma: float) -> np.ndarray:
        """∇J_γ with respect to W without its last row: the free coordinates of the score, ``((A − 1) · S,)``."""
        weight = weight.detach().double().requires_grad_()
        (grad,) = th.autograd.grad(self.objective((weight + bias.detach().double()[:, None]).T, gamma), weight)
        return grad[:-1].flatten().numpy()

    def values(self, weight: th.Tensor, bias: th.Tensor, gamma: float) -> np.ndarray:
        """V^π of every state, ``(S,)``."""
        pi = (weight.detach().double() + bias.detach().double()[:, None]).T.softmax(dim=1).numpy()
        step = np.einsum("sa,sat->st", pi, self.transitions)
        return np.linalg.solve(np.eye(self.n_states) - gamma * step, (pi * self.rewards).sum(axis=1))

    def episodes_in_window(self, weight: th.Tensor, bias: th.Tensor, n_steps: int) -> float:
        """Expected number of episodes that begin within the first ``n_steps`` steps, the first step being a start."""
        pi = (weight.detach().double() + bias.detach().double()[:, None]).T.softmax(dim=1).numpy()
        step = np.einsum("sa,sat->st", pi, self.transitions)
        state, started, total = self.start, 1.0, 0.0
        for _ in range(n_steps):
            total += started
            ended = 1.0 - (state @ step).sum()
            state, started = state @ step + ended * self.start, ended
        return total


class TabularVecEnv(VecEnv):
    """Parallel copies of a :class:`TabularMDP`, vectorised."""

    def __init__(self, mdp: TabularMDP, n_envs: int, seed: int = 0):
        super().__init__(n_envs, spaces.Discrete(mdp.n_states), spaces.Discrete(mdp.n_actions))
        self.mdp = mdp
        self.rng = np.random.default_rng(seed)
        self.states = np.zeros(n_envs, dtype=np.int64)
        # Cumulative probabilities of the next state; what is left of 1 ends the episode
        self.cumulative = mdp.transitions.cumsum(axis=2)

    def _starts(self, n: int) -> np.ndarray:
        return self.rng.choice(self.mdp.n_states, size=n, p=self.mdp.start)

    def reset(self) -> np.ndarray:
        self.states = self._starts(self.num_envs)
        return self.states.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        rewards = self.mdp.rewards[self.states, self.actions].astype(np.float32)
        draws = self.rng.random(self.num_envs)
        states = (draws[:, None] > self.cumulative[self.states, self.actions]).sum(axis=1)
        dones = states == self.mdp.n_states
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for idx in np.flatnonzero(dones):
            infos[idx] = {"terminal_observation": self.states[idx], "TimeLimit.truncated": False}
        states[dones] = self._starts(int(dones.sum()))
        self.states = states
        return states.copy(), rewards, dones, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise AttributeError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.rng = np.random.default_rng(seed)
        return [seed] * self.num_envs


class TabularVectorEnv(gym.vector.VectorEnv):
    """The same, in Gymnasium's interface, natively: one generator for all."""

    def __init__(self, mdp: TabularMDP, n_envs: int, seed: int, autoreset_mode: AutoresetMode):
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.num_envs, self.mode, self.tabular = n_envs, autoreset_mode, TabularVecEnv(mdp, n_envs, seed)
        self.single_observation_space, self.single_action_space = self.tabular.observation_space, self.tabular.action_space
        self.observation_space, self.action_space = (
            batch_space(space, n_envs) for space in (self.single_observation_space, self.single_action_space)
        )
        self.done = np.zeros(n_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        env = self.tabular
        if seed is not None:
            env.seed(seed)
        if options and "reset_mask" in options:
            mask = options["reset_mask"]
            env.states[mask] = env._starts(int(mask.sum()))
        else:
            env.reset()
            mask = np.ones(self.num_envs, dtype=bool)
        self.done = self.done & ~mask
        return env.states.copy(), {}

    def step(self, actions: np.ndarray) -> Any:
        env, was_done = self.tabular, self.done
        assert self.action_space.contains(actions)
        assert not (self.mode is AutoresetMode.DISABLED and was_done.any()), "somebody has to reset"
        stayed = env.states.copy()
        env.step_async(np.where(was_done, 0, actions))
        states, rewards, dones, _ = env.step_wait()
        if self.mode is AutoresetMode.SAME_STEP:
            infos = {"final_obs": stayed, "_final_obs": dones} if dones.any() else {}
            return states, rewards, dones, np.zeros_like(dones), infos
        # Where an episode ends its last state stays until the reset
        first = np.where(was_done, env._starts(self.num_envs), states)
        env.states = np.where(dones & ~was_done, stayed, first)
        self.done = dones & ~was_done
        return env.states.copy(), np.where(was_done, 0.0, rewards), self.done, np.zeros_like(dones), {}


class ScriptedEnv(gym.Env):
    """Episodes of given lengths, one after the other, whatever the action. The observation is (episode, t)."""

    def __init__(self, lengths: list[int], truncate: bool = False, reward: float = 1.0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.lengths, self.truncate, self.reward = lengths, truncate, reward
        self.episode, self.t = -1, 0

    def _obs(self) -> np.ndarray:
        return np.array([self.episode, self.t], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        done = self.t >= self.lengths[self.episode % len(self.lengths)]
        return self._obs(), self.reward, done and not self.truncate, done and self.truncate, {}


class TwoStepGaussianEnv(gym.Env):
    """s₀ = 1, s₁ = s₀ + a₀; r = −(a₀ − 0.5)² at first, −s₁² + a₁ in the end. J is polynomial in the policy's moments."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1e6, 1e6, (1,), np.float32)
        self.s, self.t = 1.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.s, self.t = 1.0, 0
        return np.array([self.s], dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        a = float(action[0])
        reward = -((a - 0.5) ** 2) if self.t == 0 else -(self.s**2) + a
        self.s, self.t = self.s + a, self.t + 1
        return np.array([self.s], dtype=np.float32), reward, self.t == 2, False, {}

    @staticmethod
    def gradient(weight: float, bias: float, log_std: float, gamma: float) -> np.ndarray:
        """∇J_γ with respect to (weight, bias, log_std) of a ~ N(weight · s + bias, exp(log_std)²), by quadrature."""
        theta = th.tensor([weight, bias, log_std], dtype=th.float64, requires_grad=True)
        nodes, mass = np.polynomial.hermite_e.hermegauss(8)  # exact: the integrand is of degree 2
        noise, mass = th.as_tensor(nodes), th.as_tensor(mass / mass.sum())
        a0 = theta[0] + theta[1] + theta[2].exp() * noise
        s1 = 1.0 + a0
        mean_a1 = theta[0] * s1 + theta[1]
        objective = (mass * (-((a0 - 0.5) ** 2) + gamma * (-(s1**2) + mean_a1))).sum()
        return th.autograd.grad(objective, theta)[0].numpy()


class BrokenEnv(ScriptedEnv):
    """Goes wrong at a given step of its life: a NaN in the reward or in the observation."""

    def __init__(self, what: str, at: int, lengths: list[int] | None = None):
        super().__init__(lengths or [10])
        self.what, self.at, self.steps = what, at, 0

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == self.at:
            if self.what == "reward":
                reward = float("nan")
            else:
                obs = obs * np.float32("inf")
        return obs, reward, terminated, truncated, info
