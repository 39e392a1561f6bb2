"""``torchrun … -m sb3_pg train``: one run of several processes, which share out its environments."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial, wraps
from typing import Any

from sb3_pg import distributed
from sb3_pg.replacing import replacing
from sb3_pg.zoo import ALGORITHMS


@contextmanager
def sharing() -> Iterator[None]:
    """Have the ranks of this process's training make one run of rl-zoo3: rank 0 prints, and writes its files.

    ``n_envs`` are shared out: the run is that of one process, but for its random numbers. A number that the processes do not
    divide is rounded up.
    """
    size = distributed.size()
    if size == 1:
        yield
        return
    from rl_zoo3 import exp_manager

    distributed.join()
    module: Any = exp_manager
    manager = module.ExperimentManager
    init, create_envs = manager.__init__, manager.create_envs

    @wraps(init)
    def initialise(self: Any, args: Any, algo: str, *rest: Any, **kwargs: Any) -> None:
        if algo not in ALGORITHMS:
            raise ValueError(f"{algo} trains in one process: several are for {', '.join(ALGORITHMS)}.")
        args.seed = distributed.of_first(args.seed)
        init(self, args, algo, *rest, **{**kwargs, "seed": args.seed})
        if self.optimize_hyperparameters:
            raise ValueError("A search for hyperparameters trains in one process: start several that share a --storage.")

    @wraps(create_envs)
    def create(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        if eval_env:
            return create_envs(self, n_envs, eval_env, no_log)
        own = -(-n_envs // size)
        if own * size != n_envs:
            print(f"n_envs: {own * size}, {own} in each of {size} processes, instead of {n_envs}")
        # Seeds, and names of Monitor files, count on from rank to rank
        make = partial(module.make_vec_env, start_index=distributed.rank() * own)
        with replacing((module, "make_vec_env", make)):
            return create_envs(self, own, eval_env, no_log)

    replaced = {"__init__": initialise, "create_envs": create}
    for name in ("create_log_folder", "_save_config", "save_trained_model"):
        replaced[name] = _on_rank_0(vars(manager)[name])
    with (
        replacing(*((manager, name, value) for name, value in replaced.items())),
        open(os.devnull, "w") as nowhere,
        nullcontext() if distributed.rank() == 0 else redirect_stdout(nowhere),
        distributed.parting_together(),
    ):
        yield


def _on_rank_0(method: Any) -> Any:
    """A method of rl-zoo3's manager that writes files: on rank 0, whose paths the others then have."""

    @wraps(method)
    def call(self: Any, *args: Any) -> None:
        if distributed.rank() == 0:
            method(self, *args)
        self.save_path, self.params_path = distributed.of_first((self.save_path, self.params_path))

    return call
