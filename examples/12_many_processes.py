"""CartPole, trained by several processes, each with environments of its own.

torchrun --nproc-per-node 2 examples/12_many_processes.py [steps]

Run without torchrun it is the same script in one process.
"""

import sys

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg import VanillaPG, distributed

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
th.set_num_threads(1)  # one a process
n_envs = 8 // distributed.size()  # eight in all, so that a rollout is as large whatever the number of processes
model = VanillaPG("MlpPolicy", make_vec_env("CartPole-v1", n_envs), n_steps=64, seed=0, device="cpu")
model.learn(steps)
if distributed.rank() == 0:
    mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=100), n_eval_episodes=20)
    print(f"return {mean:.1f} ± {std:.1f} after {model.num_timesteps:,} steps of {distributed.size()} processes")
