"""Several processes that train one model: how they begin alike, what each of them does, and what they merge."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import (
    CallbackList,
    ConvertCallback,
    EveryNTimesteps,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from sb3_pg import distributed
from sb3_pg.rollouts.callbacks import package_of
from sb3_pg.rollouts.monitor import part_monitors
from sb3_pg.rollouts.ranks import find_moments

if TYPE_CHECKING:
    from sb3_pg.algorithms.model import Model

# Packages whose callbacks evaluate, save, show and stop on rank 0 for all
_OF_RANK_0 = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "sb3_pg")


def meet(model: "Model") -> None:
    """Begin to train: the parameters are rank 0's, and each rank has random numbers and seeds of environments of its own.

    :raises RuntimeError: if the optimizers differ
    """
    assert model.env is not None
    distributed.copy_from_first([x for x in model.policy.state_dict().values() if not is_lazy(x)])
    distributed.require_equal(named_tensors(model))
    if distributed.rank() > 0:
        model.set_logger(Logger(None, []))
    fresh = int(np.random.SeedSequence().generate_state(1)[0])
    seed = distributed.of_first(fresh if model.seed is None else model.seed)
    if distributed.most(int(model._apart is not model.env)):
        model._apart = model.env
        sequence = np.random.SeedSequence([seed, distributed.rank(), model.num_timesteps])
        of_generators, of_envs = (int(x) % 2**30 for x in sequence.generate_state(2))
        set_random_seed(of_generators)
        model.env.seed(of_envs)
        model._last_obs = None  # the seeds count from a reset on
    part_monitors(model.env)
    model._moments = find_moments(model.env)


def named_tensors(model: "Model") -> dict[str, th.Tensor]:
    """Parameters and buffers of the policy and state of the optimizers, by name."""
    tensors = dict(model.policy.state_dict())
    names: dict[Any, str] = {p: name for name, p in model.policy.named_parameters()}
    for kind, optimizer in (("policy", model.policy.optimizer), ("critic", model.critic_optimizer)):
        for p, state in optimizer.state.items():
            tensors |= {f"{key} of {names.get(p)} in the {kind}'s optimizer": x for key, x in state.items() if th.is_tensor(x)}
    return {name: x for name, x in tensors.items() if not is_lazy(x)}


def of_this_rank(callback: Any) -> Any:
    """The callbacks that act on this rank: all on rank 0, elsewhere those that the user has written.

    :param callback: of SB3's, a function, a list of these, or None. What a callback of SB3's calls acts where that does, but
        for lists and ``EveryNTimesteps``; one says otherwise with an attribute ``acts_on_every_rank``
    """
    if isinstance(callback, list):
        return [x for x in map(of_this_rank, callback) if x is not None]
    if distributed.rank() == 0 or callback is None:
        return _ProgressBar() if type(callback) is ProgressBarCallback else callback
    if isinstance(callback, CallbackList):
        return CallbackList(of_this_rank(callback.callbacks))
    if isinstance(callback, EveryNTimesteps):
        return callback if of_this_rank(callback.callback) else None
    is_of_rank_0 = not isinstance(callback, ConvertCallback) and package_of(callback) in _OF_RANK_0
    return callback if getattr(callback, "acts_on_every_rank", not is_of_rank_0) else None


class _ProgressBar(ProgressBarCallback):
    """SB3's, with the steps of all ranks."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._first = self.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._first - self.pbar.n)
        return True


def merge_batch_statistics(policy: th.nn.Module, share: float) -> None:
    """Make the running statistics of batch norm those of all ranks' steps.

    :param policy: the policy, whose batch norm has been shown this rank's steps
    :param share: of all ranks' steps that those are
    """
    if distributed.size() == 1:
        return
    for module in policy.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            mean = distributed.total(share * module.running_mean)
            var = distributed.total(share * (module.running_var + (module.running_mean - mean).square()))
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.fill_(distributed.most(int(module.num_batches_tracked)))
