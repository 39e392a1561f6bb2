"""Every block of commands in README and docs runs from top to bottom, with fewer steps."""

import os
import re
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, run_process

ROOT = Path(__file__).parent.parent
#: What makes them short. Rollouts and evaluations are as in the text
SHORTER = [
    (r"-n \d{4,}", "-n 6000"),
    (r"sb3-pg train (?!--resume)(?!.* -n )", "sb3-pg train -n 6000 "),
    (r"sb3_pg train (?!--resume)(?!.* -n )", "sb3_pg train -n 6000 "),
    (r"sb3-pg enjoy", "sb3-pg enjoy -n 100"),
    (r"sb3-pg plot_train", "sb3-pg plot_train -w 20"),
    (r"-freq \d+", "-freq 2000"),
    (r"--n-trials \d+", "--n-trials 1"),
    (r"--trial-id \d+", "--trial-id 1"),
    (r"--episodes \d+", "--episodes 8"),
    (r"for seed in .*;", "for seed in 1 2;"),
    (r"speed --steps \d+", "speed --envs CartPole-v1:1 --steps 512 --repetitions 1"),
    (r"benchmark run( .*)?", "benchmark run --algos vpg --envs CartPole-v1:600 --seeds 1 --folder runs"),
    (r"benchmark throughput( .*)?", "benchmark throughput --algos vpg --envs CartPole-v1 --steps 512 --repetitions 1"),
    (r"benchmark report( .*)?", "benchmark report --folder runs --output report"),
]
#: By how they begin: they make environments, or need several machines
NOT_RUN = ("make", 'pip install ".[zoo]"', "python -m venv", "torchrun --nproc-per-node 2 train.py")
BLOCKS = {
    f"{path.stem} {i}": block
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for i, block in enumerate(re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.DOTALL))
    if not block.startswith(NOT_RUN)
}


def test_readme_and_guides_have_commands() -> None:
    assert {"README 1", "rl_zoo3 0", "rl_zoo3 1", "resuming 0", "estimators 1", "many_processes 1"} <= BLOCKS.keys()


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, tmp_path: Path) -> None:
    block = BLOCKS[name].replace("\\\n", " ")
    block = re.sub(r"^pip install.*$", "", block, flags=re.MULTILINE)
    for pattern, replacement in SHORTER:
        block = re.sub(pattern, replacement, block)
    path = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"
    result = run_process(["bash", "-euc", f"{block}\nwait"], cwd=tmp_path, env=ENVIRONMENT | {"PATH": path})
    assert result.returncode == 0, f"{block}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
