"""VanillaPG: the policy gradient without a baseline, or with GAE."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pg.algorithms.policy_gradient import PolicyGradient


class VanillaPG(PolicyGradient):
    r"""Vanilla policy gradient: REINFORCE and, with a critic, actor-critic.

    One step a rollout along ĝ = 1/C Σ ∇log π(a∣s) · Ψ. The weight Ψ is chosen by ``weights``:

    - ``"return"``: the discounted return of the whole episode, R(τ) (Williams 1992);
    - ``"reward_to_go"``: the discounted return from the step on, Gₜ (Sutton et al. 2000);
    - ``"gae"``: generalised advantage estimation (Schulman et al. 2016). ``gae_lambda=0`` is the one-step actor-critic,
      ``gae_lambda=1`` is Gₜ − V(sₜ).

    The first two play whole episodes and have no critic: ``gae_lambda``, ``batch_size``, ``critic_learning_rate`` and
    ``n_critic_updates`` are then inactive. C is the number of environments times ``n_steps`` or ``n_episodes``, fixed before
    the rollout.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: Learning rate of the policy, a number or a function of the progress remaining (from 1 to 0)
    :param n_steps: Steps an environment plays per update. With ``weights="gae"`` the rollout is cut there and bootstrapped;
        otherwise every episode that begins within these steps is played to its end and used
    :param n_episodes: Whole episodes an environment plays per update, with any weights; overrides ``n_steps``
    :param batch_size: Minibatch of the critic, in samples of all processes; None for an eighth of the rollout, but from 64 to
        1,024 a process (with memory a quarter, from 512 to 2,048). The policy takes one step on the whole rollout
    :param gamma: Discount factor γ in [0, 1]
    :param weights: ``"return"``, ``"reward_to_go"`` or ``"gae"``
    :param gae_lambda: λ of GAE in [0, 1]
    :param discounted_state_distribution: Multiply the weight of step t of an episode by γᵗ, which makes ĝ the gradient of
        the discounted return for γ < 1. Usually off: it all but ignores late steps. Refused with ``weights="return"``,
        which needs no factor
    :param normalize_advantage: Standardise the weights of a rollout (before γᵗ). Slightly biased, and robust to the scale
        of rewards. Where a rollout is a single episode, ``"return"`` weights are all the same and are scaled to ±1
    :param ent_coef: Coefficient of the entropy bonus, a number or a schedule
    :param max_grad_norm: Largest norm of a gradient, the policy's and the critic's each; None for no clipping
    :param critic_learning_rate: Learning rate of the critic, a number or a schedule; None for ``learning_rate``
    :param n_critic_updates: Passes of the critic over a rollout
    :param use_sde: Use generalised state-dependent exploration (gSDE). Its noise is shared between steps, so the estimate is
        exact only with ``sde_sample_freq=1``
    :param sde_sample_freq: Sample a new noise matrix every n steps under gSDE; -1: once a rollout
    :param rollout_buffer_class: Rollout buffer class; None for the one that fits. SB3's own serves cut rollouts only
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Episodes over which the logged return, length and success rate are averaged
    :param tensorboard_log: Folder of TensorBoard logs (None: no logging)
    :param policy_kwargs: Additional arguments to be passed to the policy on creation
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: Seed of the pseudo-random generators
    :param device: Device on which the networks run ("auto": GPU if possible)
    :param normalize_targets: Fit the critic in units of a running scale of its targets, so that one learning rate serves
        rewards of any scale. V itself is in units of reward, always, and the scale follows a rollout after its V was used
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range or does not go with another
    :raises TypeError: if an argument is of the wrong type
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1.5e-3,
        n_steps: int = 256,
        n_episodes: int | None = None,
        batch_size: int | None = None,
        gamma: float = 0.99,
        weights: str = "gae",
        gae_lambda: float = 0.97,
        discounted_state_distribution: bool = False,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        max_grad_norm: float | None = 0.5,
        critic_learning_rate: float | Schedule | None = None,
        n_critic_updates: int = 1,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        normalize_targets: bool = True,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy, env, learning_rate=learning_rate, n_steps=n_steps, n_episodes=n_episodes, batch_size=batch_size,
            gamma=gamma, weights=weights, gae_lambda=gae_lambda,
            discounted_state_distribution=discounted_state_distribution, normalize_advantage=normalize_advantage,
            ent_coef=ent_coef, max_grad_norm=max_grad_norm, critic_learning_rate=critic_learning_rate,
            n_critic_updates=n_critic_updates,
            use_sde=use_sde, sde_sample_freq=sde_sample_freq, rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs, stats_window_size=stats_window_size, tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs, verbose=verbose, seed=seed, device=device,
            normalize_targets=normalize_targets, _init_setup_model=_init_setup_model,
        )  # fmt: skip
