"""Trainings of several processes, to be measured: each is asked for some steps and answers when they are done."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch as th
from stable_baselines3.common.env_util import make_vec_env

#: Classes that are measured
CLASSES = ("VanillaPG", "NaturalPG")


def make_ranks(env_id: str, n_envs: int, most: int, seed: int) -> dict[str, Callable[[int], int]]:
    """Trainings by 1, 2, 4, … processes, all on one thread a process.

    :param env_id: registered environment
    :param n_envs: environments of each process
    :param most: processes of the last
    :param seed: seed of models and environments
    :return: by name, what runs at least so many steps a process and returns how many all of them have run
    """
    sizes = [2**i for i in range(most.bit_length())]
    return {
        f"{name}, {size} process{'es' if size > 1 else ''}": _start(name, env_id, n_envs, size, seed)
        for name in CLASSES
        for size in sizes
    }


def find_port() -> int:
    """A port at which the processes of a training can meet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def become(rank: int, size: int, port: int) -> None:
    """Tell this process what torchrun would tell it.

    :param rank: its number
    :param size: how many processes there are
    :param port: of this machine, where they meet
    """
    place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, MASTER_ADDR="localhost", MASTER_PORT=port)
    os.environ.update({key: str(value) for key, value in place.items()})


def _start(name: str, env_id: str, n_envs: int, size: int, seed: int) -> Callable[[int], int]:
    port = find_port()
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(size):
        pipe, of_worker = context.Pipe()
        # They end when the other end of their pipe is closed
        context.Process(target=_work, args=(of_worker, name, env_id, n_envs, rank, size, port, seed), daemon=True).start()
        of_worker.close()
        pipes.append(pipe)

    def run(steps: int) -> int:
        for pipe in pipes:
            pipe.send(steps * size)
        steps_run: list[Any] = [pipe.recv() for pipe in pipes]
        for answer in steps_run:
            if isinstance(answer, Exception):
                raise answer
        return int(steps_run[0])

    return run


def _work(pipe: Connection, name: str, env_id: str, n_envs: int, rank: int, size: int, port: int, seed: int) -> None:
    import sb3_pg

    th.set_num_threads(1)
    if size > 1:
        become(rank, size, port)
    cls: Any = getattr(sb3_pg, name)
    model = None
    with suppress(EOFError):
        while True:
            steps = pipe.recv()
            try:
                model = model or cls("MlpPolicy", make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu")
                pipe.send(model.learn(steps).num_timesteps)
            except Exception as error:
                pipe.send(error)
