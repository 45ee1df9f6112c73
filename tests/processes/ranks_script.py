"""What every process of test_distributed.py does: ``ranks_script.py OUT`` writes ``OUT/RANK.json``."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import torch
import torch.distributed as dist
from tensordict import NonTensorData, NonTensorStack, TensorDict, is_non_tensor

from pcm_rl import Candidates, Rule
from pcm_rl.algos import ChunkGRPOLoss, PCMSampler
from pcm_rl.algos.update import grpo_update
from pcm_rl.config import METHODS, Config, load_config, load_run_config
from pcm_rl.envs import chunked_vector_env
from pcm_rl.episodes import EPISODE, GROUP, INSTRUCTION, LOG_PROBS, PHASE, label_episodes, pad_episodes
from pcm_rl.policies import StateFlowPolicy, StateTokenPolicy
from pcm_rl.processes.exchange import LIGHT
from pcm_rl.processes.ranks import ALONE, Ranks
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.evaluate import evaluate
from pcm_rl.training.trainer import Say, Trainer, train

torch.set_num_threads(1)
RUN = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "env.num_envs=12", "env.eval_states=5",
    "groups=5", "group_size=4", "eval_episodes=5", "eval_every=2", "save_every=2", "logger=none", "record=false",
    "demos.episodes=20", "sft.steps=500", "selection.budget=4", "selection.refresh_every=1", "policy.state.width=64",
    "steps=4", "update.micro_rows=7",
]  # fmt: skip


def make_policy() -> StateTokenPolicy:
    torch.manual_seed(0)
    return StateTokenPolicy(6, 3, 4, width=16, num_bins=5).double()


def make_flow() -> StateFlowPolicy:
    torch.manual_seed(0)
    return StateFlowPolicy(6, 3, 4, width=16).double()


def make_rows(policy: StateTokenPolicy | StateFlowPolicy, lengths: list[int], group_size: int) -> TensorDict:
    """Whole episodes of a policy, every second one a success; each group has an instruction of its own."""
    episode = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    chunk_id = torch.cat([torch.arange(length) for length in lengths])
    last = chunk_id == torch.tensor(lengths)[episode] - 1
    state = torch.randn(len(episode), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = TensorDict(
        {
            ("observation", "state"): state,
            "action_is_pad": (torch.arange(4) >= 2) & last.unsqueeze(-1),
            "success": episode % 2 == 1,
            "group_id": episode // group_size,
            EPISODE: episode,
            "chunk_id": chunk_id,
            ("next", "reward"): last.double().unsqueeze(-1),
            ("next", "done"): last.unsqueeze(-1),
            "advantage": torch.where(episode % 2 == 1, 1.0, -1.0).double(),
        },
        batch_size=[len(episode)],
    )
    with torch.no_grad():
        policy(rows)
    rows[LOG_PROBS] += 0.1 * torch.sin(torch.arange(len(episode) * 12.0, dtype=torch.float64)).view(-1, 4, 3)
    rows.set(PHASE, label_episodes(rows))
    rows.set(INSTRUCTION, NonTensorStack(*(f"task {i // group_size}" for i in episode.tolist())))
    return rows


Make = Callable[[], StateTokenPolicy | StateFlowPolicy]


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def update(
    ranks: Ranks, count: int, make: Make = make_policy, **options: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and parameters after an update on ``count`` rows; one parameter is never used, and must not decay."""
    learner = make()
    learner.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    rows = make_rows(make(), [5, 2, 7, 3], 4)[:count].exclude(INSTRUCTION)
    rows.set("weight", torch.linspace(0.5, 1.5, count).double())
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    loss = ChunkGRPOLoss(learner, entropy_coeff=1e-3 if make is make_policy else 0.0)
    return grpo_update(loss, optimizer, rows, generator=generator, ranks=ranks, **options), dict(
        learner.named_parameters()
    )


@torch.no_grad()
def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in b)


def updates(ranks: Ranks) -> list[dict]:
    """The difference between one process and several, for even and uneven shares and for a process without rows."""
    found = []
    cases: list[tuple[int, int, int | None, Make]] = [
        (12, 1, None, make_policy), (3, 1, None, make_policy), (1, 1, None, make_policy), (17, 3, 2, make_policy),
        (4, 4, None, make_policy), (17, 3, 2, make_flow),
    ]  # fmt: skip
    for count, minibatches, micro_rows, make in cases:
        options = {"minibatches": minibatches, "micro_rows": micro_rows, "epochs": 2, "make": make}
        alone, expected = update(ALONE, count, **options)
        metrics, parameters = update(ranks, count, **options)
        found.append({
            "rows": count,
            "metrics": metrics,
            "alone": alone,
            "moved": distance(parameters, dict(make().named_parameters())),
            "error": distance(parameters, expected),
            "unused": parameters["unused"].tolist(),
            "digest": digest(*parameters.values()),
        })  # fmt: skip
    return found


def surprise(candidates: Candidates, budget: int, generator: torch.Generator | None) -> torch.Tensor:
    return candidates.largest(-candidates.batch[LOG_PROBS].mean((1, 2)), budget, generator)


SURPRISE = Rule(surprise, reads=(LOG_PROBS,), budget="batch")


def selections(ranks: Ranks) -> dict:
    """Rows kept by several processes that hold two uneven parts of a batch, and by one that holds all of it."""
    whole = make_rows(make_policy(), [5, 2, 7, 3, 1, 4, 6, 2, 3, 9], 2)
    first = torch.arange(5).tensor_split(ranks.size)[0]  # 3 groups and 2
    mine = whole[(whole["group_id"] <= first[-1]) == ranks.first]
    mine[EPISODE] = mine[EPISODE] - mine[EPISODE].min()  # as a collector numbers them
    found = {}
    for name, padding in (
        ("pcm", "drop"),
        ("random", "drop"),
        ("pcm", "keep"),
        ("top-advantage", "drop"),
        ("none", "drop"),
        ("__main__:SURPRISE", "drop"),
    ):
        kept = []
        for who, rows in ((ALONE, whole), (ranks, mine.clone())):
            sampler = PCMSampler(2, selection=name, padding=padding)
            light, complete = who.exchange(rows, sampler.rule.reads)
            kept.append(complete(sampler(pad_episodes(light, 10) if padding == "keep" else light)))
        found[f"{name}-{padding}"] = {"rows": [len(rows) for rows in kept], "differing": differing(*kept)}
    light, complete = ranks.exchange(mine.clone())
    only_first = light[light[EPISODE] == 0]  # the second process has nothing to bring
    found["one-sided"] = {
        "rows": [5, len(only_first)],
        "differing": differing(whole[whole[EPISODE] == 0], complete(only_first)),
    }
    found["none"] = {"rows": [0, len(complete(light[:0]))], "differing": []}
    found["light"] = sorted(map(str, set(light.keys(True, True)) - set(LIGHT)))
    return found


def differing(a: TensorDict, b: TensorDict) -> list[str]:
    """Entries in which two batches are not equal."""
    keys = set(a.keys(True, True)) | set(b.keys(True, True)) | {INSTRUCTION}
    return sorted(str(key) for key in keys if not equal(a.get(key, None), b.get(key, None)))


def equal(a, b) -> bool:
    if is_non_tensor(a) and is_non_tensor(b):
        return a.tolist() == b.tolist()
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def gathers(ranks: Ranks) -> dict:
    """Rows of unequal number, with texts that differ or not, and what is refused."""

    def rows(count: int, *texts: str) -> TensorDict:
        entries = {"x": torch.arange(count) + 10 * ranks.rank, ("a", "flag"): torch.ones(count, 2, dtype=torch.bool)}
        entries |= {("a", "half"): torch.full((count,), 0.5, dtype=torch.bfloat16)}
        out = TensorDict(entries, batch_size=[count])
        if len(texts) == 1:
            return out.set(INSTRUCTION, NonTensorData(texts[0], batch_size=[count]))
        return out.set(INSTRUCTION, NonTensorStack(*texts)) if texts else out

    uneven = ranks.gather_rows(rows(3, "pick", "plac\u00e9", "pick") if ranks.first else rows(1, "open"))
    empty = ranks.gather_rows(rows(0) if ranks.first else rows(2))
    same = ranks.gather_rows(rows(2 + ranks.rank, "pick"))
    refused = []
    for unfit in (rows(1, "pick") if ranks.first else rows(1), rows(1).set("odd", NonTensorData(1, batch_size=[1]))):
        try:
            ranks.gather_rows(unfit)
        except (ValueError, TypeError) as error:
            refused.append(str(error))
    made: list[int] = []

    def make() -> TensorDict:
        made.append(ranks.rank)
        return rows(2, "a", "b")

    from_first = ranks.rows_of_first(make)
    return {
        "uneven": [uneven["x"].tolist(), uneven.get(INSTRUCTION).tolist()],
        "dtypes": [str(uneven["a", "flag"].dtype), str(uneven["a", "half"].dtype)],
        "empty": empty["x"].tolist(),
        "same": [type(same.get(INSTRUCTION)).__name__, same.get(INSTRUCTION).tolist()],
        "refused": refused,
        "made": made,
        "from_first": [from_first["x"].tolist(), from_first.get(INSTRUCTION).tolist()],
        "json": ranks.gather_json({"nan": float("nan"), "rank": ranks.rank}),
    }


def checks(ranks: Ranks) -> dict:
    """Unequal parameters are found, and made equal."""
    torch.manual_seed(ranks.rank)
    policy = make_policy()
    ranks.check_parameters(policy)
    with torch.no_grad():
        next(policy.parameters())[0] += ranks.rank
    found = ""
    try:
        ranks.check_parameters(policy)
    except RuntimeError as error:
        found = str(error)
    ranks.equalise(policy)
    ranks.check_parameters(policy)
    torch.manual_seed(5)
    ranks.draw_apart(3, 1)
    return {"found": found, "drawn": float(torch.rand(())), "equal": digest(*policy.parameters())}


def not_finite(ranks: Ranks) -> str:
    """The message of every process where a row of only one of them has a NaN."""
    policy = make_policy()
    rows = make_rows(policy, [5, 2, 7, 3], 4).exclude(INSTRUCTION)
    rows[LOG_PROBS][6, 0, 0] = torch.nan
    learner = copy.deepcopy(policy)
    try:
        grpo_update(ChunkGRPOLoss(learner), torch.optim.SGD(learner.parameters(), lr=0.5), rows, ranks=ranks)
    except FloatingPointError as error:
        return str(error)
    return ""


class FailsOnTheSecond(gym.Wrapper):
    def step(self, action):
        if dist.get_rank():
            raise ValueError("the physics broke")
        return super().step(action)


def dropped(ranks: Ranks) -> dict:
    """The simulators of the second process never work: its groups are left out, and the first one's go on."""
    warnings.simplefilter("ignore")
    env = chunked_vector_env(
        lambda: FailsOnTheSecond(gym.make("pcm_rl/Reach-v0", horizon=16)), 2, chunk_length=8, workers=False
    )
    policy = StateTokenPolicy(26, width=16)
    evaluation = evaluate(env, policy, torch.arange(4), 4, seed=0, ranks=ranks)
    share = ranks.share(torch.arange(4))
    rows = collect_episodes(env, policy, share, share // 2, may_be_empty=True)
    own = len(rows)
    light, complete = ranks.exchange(rows)
    return {
        "evaluated": [evaluation.init_state.tolist(), evaluation.dropped],
        "own": own,
        "rows": light[GROUP].tolist(),
        "completed": list(complete(light[:3])["observation", "state"].shape),
    }


def silent(line: str) -> None:
    """Say nothing."""


def with_credit(trainer: Trainer) -> str:
    """Of the policy and of all that its critic keeps."""
    return digest(*trainer.grpo.credit.module.state_dict().values(), *trainer.policy.parameters())


def cut_and_resumed(whole: Config, name: str, say: Say, ranks: Ranks) -> tuple[Trainer, Trainer, list[dict]]:
    """A run that was cut after its third step; what was resumed from the second; its steps."""
    cut = replace(whole, name=name)
    trainer = Trainer(cut, say, ranks)
    trainer.start()
    steps = []
    for _ in range(3):
        metrics = trainer.train_step()
        trainer.complete(metrics)
        steps.append({key: value for key, value in metrics.items() if not key.endswith("_s")})
        if trainer.step == 2:
            trainer.evaluate()
            trainer.save()
    trainer.env.close()
    ranks.gather_json(None)
    torch.manual_seed(999)
    return trainer, train(load_run_config(cut.folder), resume=True, say=silent), steps


def runs(ranks: Ranks, folder: Path) -> dict:
    """A whole run, and the same one cut after its third step and resumed from the checkpoint of the second."""
    whole = load_config(None, [*RUN, f"run_dir={folder}", "name=whole"])
    lines: list[str] = []
    straight = train(whole, say=lines.append)
    trainer, resumed, steps = cut_and_resumed(whole, "cut", lines.append, ranks)
    start = [f"policy.init={whole.folder / 'checkpoint' / 'policy.safetensors'}", f"run_dir={folder}", "name=critic"]
    credit = [*METHODS["top-critic"].overrides(), "advantage.features=policy", "advantage.steps=20", "eval_every=0"]
    credit += ["steps=3", "rollouts.cut=0.4", "rollouts.cut_after=1", "rollouts.cut_exempt=0.3"]
    with_critic = load_config(None, [*RUN, *start, *credit])
    credited = train(with_critic, say=silent)
    _, critic_resumed, _ = cut_and_resumed(with_critic, "critic-cut", silent, ranks)
    return {
        "whole": digest(*straight.policy.parameters()),
        "critic": with_credit(credited),
        "critic resumed": with_credit(critic_resumed),
        "cuts": credited.cuts.state_dict(),
        "cuts resumed": critic_resumed.cuts.state_dict(),
        "resumed": digest(*resumed.policy.parameters()),
        "steps": steps,
        "lines": lines,
        "episodes": resumed.evaluate().success.episodes,
        "drawn": digest(trainer.collect()["vla_action", "tokens"]),
        "keep": resumed.grpo.sampler.keep.probs.tolist(),
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    here = Ranks(dist.get_rank(), dist.get_world_size())
    out = Path(sys.argv[1])
    result = {
        "updates": updates(here),
        "selections": selections(here),
        "gathers": gathers(here),
        "checks": checks(here),
        "not_finite": not_finite(here),
        "dropped": dropped(here),
        "runs": runs(here, out),
        "share": here.share(torch.arange(3)).tolist(),
        "local": os.environ["LOCAL_RANK"],
    }
    (out / f"{here.rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
