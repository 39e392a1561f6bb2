"""rl-zoo3's train.py with our algorithms: python 05_train_with_rl_zoo3.py --algo vpg --env CartPole-v1 (needs sb3-pg[zoo])."""

from rl_zoo3.train import train

import sb3_pg.zoo

if __name__ == "__main__":
    sb3_pg.zoo.register()
    train()
