"""The seam between the algorithms and the policies: all that a rollout, an update or a diagnosis may ask of a policy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.policies.parameters import find_critic_parameters, guess_critic_parameters, sample
from sb3_pg.policies.privileged import build_policy
from sb3_pg.policies.steps import Rows, Steps, map_obs, n_obs, take_obs

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import RolloutBuffer

    from sb3_pg.rollouts.buffers import EpisodeRolloutBuffer

# Steps in one pass through the networks: what bounds the memory of an update, whatever the length of the rollout
CHUNK_SIZE = 1024


class Sample(NamedTuple):
    """What a policy does at one vector step.

    ``actions`` are as SB3's policies return them, ``(n_envs, *action_space.shape)``. ``values`` and ``log_probs``,
    ``(n_envs,)``, are None unless acting gave them anyway. ``context`` is what scoring the step will need beside the
    observation, ``(n_envs, …)`` each: the buffer keeps it and hands it back in :attr:`Steps.context`.
    """

    actions: np.ndarray
    values: th.Tensor | None = None
    log_probs: th.Tensor | None = None
    context: Mapping[str, np.ndarray] = MappingProxyType({})


#: From observations, ``(n_envs, …)`` or a dictionary of such, and whether they begin an episode, ``(n_envs,)``
Sampler = Callable[[Any, np.ndarray], Sample]


class PolicyKind(ABC):
    """A policy as the algorithms see it. One subclass for each kind of policy; :func:`sb3_pg.policies.make_kind` chooses.

    Acting is :meth:`make_sampler`; scoring what was done is everything that takes :class:`Steps`. A kind says which steps
    may be scored together (:meth:`chunks`, :meth:`minibatches`, :meth:`excerpt`): of a policy with memory whole segments, of
    one without any rows.

    :param policy: SB3's policy, whose parameters the kind divides into the actor's and the critic's
    """

    #: Whether scoring a step takes more than its observation: the buffer has to keep its context
    has_context = False

    def __init__(self, policy: Any):
        self.policy = policy
        self._parameters: list[th.nn.Parameter] = []
        self._critic_parameters: list[th.nn.Parameter] = []
        self._is_divided = False
        self._real_observations: Any = None
        self.divide()

    @classmethod
    def make_policy(
        cls,
        policy_class: Any,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        **kwargs: Any,
    ) -> Any:
        """A policy of this class, as SB3's algorithms build theirs.

        :param kwargs: ``use_sde`` and ``policy_kwargs``
        :raises ValueError: if the class does not fit the spaces
        """
        return build_policy(policy_class, observation_space, action_space, lr_schedule, **kwargs)

    def computing(self) -> AbstractContextManager[None]:
        """What passes through the networks are to run in."""
        return nullcontext()

    # Acting

    def check_env(self, env: VecEnv) -> None:  # noqa: B027 - most kinds act on observations alone
        """Refuse environments that lack what the policy is shown beside their observations.

        :raises ValueError: saying what is missing
        """

    def ask(self, env: VecEnv) -> dict[str, Any]:
        """What the policy's ``predict`` takes beside observations and memory, of environments as they stand."""
        return {}

    def check_masks(self, action_masks: Any) -> None:
        """Refuse masks that the policy cannot take.

        :raises TypeError: if it takes none
        :raises ValueError: if they do not fit its actions
        """
        raise TypeError(f"{type(self.policy).__name__} takes no action_masks: use a policy such as MaskableMlpPolicy.")

    @abstractmethod
    def make_sampler(self, env: VecEnv, through_forward: bool = False) -> Sampler:
        """What draws the actions of one rollout, of the policy in the mode it is to act in.

        :param env: the environments, for what the policy is shown beside their observations
        :param through_forward: take values and log-probabilities at every step, which SB3's buffers want
        :return: the sampler
        """

    def begin_part(self) -> None:  # noqa: B027 - most kinds act on observations alone
        """The policy has been changed within a rollout: the steps to come are scored apart from those before."""

    @abstractmethod
    def remake_sampler(self, env: VecEnv, through_forward: bool = False) -> Sampler:
        """As :meth:`make_sampler`, for the rest of a rollout in which something of the policy has been replaced."""

    # Scoring

    @abstractmethod
    def log_prob_and_entropy(self, steps: Steps) -> tuple[th.Tensor, th.Tensor]:
        """log π(a∣s) and the entropy, or an estimate of it where there is no closed form, with their graph, ``(n,)`` each."""

    @abstractmethod
    def values(self, steps: Steps) -> th.Tensor:
        """V, with its graph, ``(n,)``."""

    @abstractmethod
    def value_head(self) -> th.nn.Linear | None:
        """The linear layer whose output is V, all of whose parameters are the critic's to train; None if none is known."""

    @abstractmethod
    def kl_divergence(self, steps: Steps) -> th.Tensor:
        """KL(π_old ∥ π) for π_old = π held fixed, ``(n,)``: 0, with a Hessian that is the Fisher matrix of each state."""

    @abstractmethod
    def show(self, steps: Steps) -> None:
        """Pass steps, in whatever order, through what has batch statistics, in training mode."""

    def check_divergence(self) -> None:  # noqa: B027 - most kinds serve every policy
        """Refuse policies that :meth:`kl_divergence` cannot serve.

        :raises ValueError: if the policy hides the distribution that its log-probabilities come from
        """

    @abstractmethod
    def fill_log_probs(self, buffer: "EpisodeRolloutBuffer", rows: slice) -> None:
        """Write the log-probabilities of steps that have been played into their buffer.

        :param buffer: the rollout, which need not be over
        :param rows: the steps: the whole rollout, or a part that begins with it or after :meth:`begin_part`
        """

    @abstractmethod
    def fill_values(self, buffer: "EpisodeRolloutBuffer", rows: slice, goes_on: bool) -> None:
        """Write V of steps that have just been played into their buffer.

        :param buffer: the rollout, which need not be over
        :param rows: as of :meth:`fill_log_probs`
        :param goes_on: whether the next part or rollout goes on with the episodes in progress
        """

    @abstractmethod
    def bootstrap_values(self, buffer: "RolloutBuffer", steps: np.ndarray, envs: np.ndarray, observations: Any) -> th.Tensor:
        """V of the observations that followed these steps of the rollout that has just been played, on the CPU, ``(n,)``.

        :param buffer: the rollout
        :param steps: rows of the buffer, ``(n,)``
        :param envs: columns of the buffer, ``(n,)``
        :param observations: ``(n, …)`` or a dictionary of such
        """

    def sum_scores(
        self, steps: Steps, weights: np.ndarray, compress: Callable[[th.Tensor], th.Tensor] = lambda gradient: gradient
    ) -> np.ndarray:
        """Σ ∇log π(a∣s) · weight over the actor's parameters, one chunk of the steps in memory at a time.

        :param steps: of an episode
        :param weights: ``(n_sums, n)``
        :param compress: a linear function of ``(n_parameters,)``, applied to every sum
        :return: ``(n_sums, n_parameters)``, or as long as ``compress`` makes it
        """
        parameters = self.actor_parameters()
        sums: Any = 0.0
        for chunk in self.chunks(steps):
            log_prob, _ = self.log_prob_and_entropy(steps[chunk])
            rows = []
            for psi in th.as_tensor(weights[:, chunk]).to(log_prob):
                if log_prob.requires_grad:
                    parts = th.autograd.grad(log_prob, parameters, psi, retain_graph=True, materialize_grads=True)
                else:  # the user has frozen all that it depends on
                    parts = tuple(th.zeros_like(p) for p in parameters)
                rows.append(compress(th.cat([psi.new_zeros(0), *(part.flatten() for part in parts)])))
            sums = sums + th.stack(rows).cpu().numpy()
        return np.asarray(sums)

    # Dividing

    @abstractmethod
    def chunks(self, steps: Steps) -> Iterable[Rows]:
        """All rows, in parts that bound the memory of a pass."""

    def batch_size(self, n_steps: int) -> int:
        """Steps of a minibatch where the user names no number: an eighth of the rollout, but from 64 to 1,024.

        Fewer cost more time than they fit better; with more of them the steps of the optimizer are too few.

        :param n_steps: in use in the rollout
        """
        return min(max(n_steps // 8, 64), 1024)

    @abstractmethod
    def minibatches(self, steps: Steps, size: int, shuffled: bool = True) -> Iterable[Rows]:
        """All rows, in parts of about equal size and at most ``size``, in random order."""

    @abstractmethod
    def excerpt(self, steps: Steps, size: int, shuffled: bool = False) -> Rows:
        """About ``size`` rows from all over the rollout, evenly spaced or at random."""

    # Steps and parameters

    def to_steps(self, observations: Any, actions: Any, context: dict[str, Any]) -> Steps:
        """Rows of a buffer, ``(n, …)`` each, as the policy takes them.

        :param observations: arrays or tensors
        :param actions: ``(n, action_dim)``
        :param context: what :class:`Sample` gave at these steps
        """

        device = self.policy.device

        def to_tensor(x: Any) -> th.Tensor:
            return th.as_tensor(x, device=device)

        as_policy_takes = self._as_policy_actions(to_tensor(actions).float())
        return Steps(map_obs(to_tensor, observations), as_policy_takes, map_obs(to_tensor, context))

    def episode_steps(self, buffer: "EpisodeRolloutBuffer", env: int, rows: slice) -> Steps:
        """The steps of one episode of a rollout: rows of a column of its buffer."""
        observations, context = (take_obs(x, (rows, env)) for x in (buffer.observations, buffer.context))
        return self.to_steps(observations, buffer.actions[rows, env], context)

    def _as_policy_actions(self, actions: th.Tensor) -> th.Tensor:
        """Actions of a buffer, ``(n, action_dim)`` floats, as the policy's distribution takes them."""
        return actions.long().flatten() if isinstance(self.policy.action_space, spaces.Discrete) else actions

    def _zero_actions(self, n: int) -> th.Tensor:
        """Some actions, as the policy takes them, for where a policy wants any."""
        actions = th.zeros((n, *self.policy.action_space.shape), device=self.policy.device)  # type: ignore[misc]
        return self._as_policy_actions(actions.reshape(n, -1))

    def critic_parameters(self, trainable: bool = True) -> list[th.nn.Parameter]:
        """Parameters that V(s) depends on and log π(a∣s) does not: what both depend on is the actor's.

        :param trainable: without those the user has frozen
        """
        self.divide()
        return [p for p in self._critic_parameters if p.requires_grad or not trainable]

    def actor_parameters(self) -> list[th.nn.Parameter]:
        """All other parameters of the policy that may be trained."""
        self.divide()
        critic = {id(p) for p in self._critic_parameters}
        return [p for p in self.policy.parameters() if p.requires_grad and id(p) not in critic]

    def divide(self, observations: Any = None) -> bool:
        """Find out which parameters are whose, unless that is known of the parameters that the policy has now.

        :param observations: real ones, ``(n, …)`` or a dictionary of such, for policies that samples of the observation space
            do not serve; None if there are none yet
        :return: whether it is known. If not, those that have the usual names are the critic's
        """
        parameters = list(self.policy.parameters())
        is_same = len(parameters) == len(self._parameters) and all(map(is_, parameters, self._parameters))
        if is_same and (self._is_divided or observations is None):
            return self._is_divided
        self._parameters, self._is_divided = parameters, False
        self._real_observations = self._real_observations if observations is None else observations
        try:
            self._critic_parameters = self._find_critic_parameters(sample(self.policy.observation_space))
        except Exception:  # whatever the policy raises on what is no observation of the environments'
            self._critic_parameters = guess_critic_parameters(self.policy)
            if self._real_observations is None:
                return False
            self._critic_parameters = self._find_critic_parameters(self._real_observations)
        self._is_divided = True
        return True

    def _find_critic_parameters(self, observations: Any) -> list[th.nn.Parameter]:
        n, space = n_obs(observations), self.policy.action_space
        # A Gaussian has a density everywhere, and a squashed one at 0 for certain
        is_box = isinstance(space, spaces.Box)
        actions = self._zero_actions(n) if is_box else th.as_tensor(sample(space, n), device=self.policy.device)
        actions = actions if is_box else self._as_policy_actions(actions.reshape(n, -1).float())
        return find_critic_parameters(self.policy, self._evaluate, observations, actions)

    @abstractmethod
    def _evaluate(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """V and log π of steps, whatever was before them, with their graph, ``(n,)`` or ``(n, 1)``."""
