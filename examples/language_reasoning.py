"""Steps of reasoning as chunks: a tiny language model learns a chain of sums and products modulo 7.

    python examples/language_reasoning.py

A response such as ``3+4=0;2;#2.`` is cut into steps: they are the chunks, of different lengths, padded to ``STEP``
tokens. A segmenter reads what kind of step each is, which takes the place of the robot's phases. The reward is 1 if
the last step tells the right result. Everything else is the method: groups of responses to one prompt, the divergence
of successes and failures by kind of step, a budget of steps a response, the clipped objective on what is kept.

What it shows: the method needs rows, masks, outcomes and labels, and none of them has to come from a robot. What it
does not show: a gain. The task is too small for that, and a causal language model gets all steps of a response from
one forward pass. Rows that are left out save work only where each step has a pass of its own, as here, or as in
dialogues with a new image or tool output at every turn.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from pcm_rl import KeepProbabilities, group_advantage, select_chunks
from pcm_rl.episodes import label_episodes
from pcm_rl.objective import clipped_objective

VOCABULARY = "0123456+*=;#."
MODULUS, OPERATIONS, STEP, LONGEST = 7, 3, 6, 24  # of a response: tokens of a step, of all steps
PROMPT = 2 * OPERATIONS + 2
KINDS = ("sum", "product", "result only", "answer")
PROMPTS, RESPONSES = 16, 8  # of a step of training: groups, responses to each prompt


class TinyLM(nn.Module):
    """``[B, T]`` tokens -> ``[B, T, V]`` logits of the next one."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(len(VOCABULARY), width), nn.Embedding(PROMPT + LONGEST, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        length = tokens.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        embedded = self.token(tokens) + self.place.weight[:length]
        return self.head(self.blocks(embedded, mask=causal, is_causal=True))


def encode(text: str) -> list[int]:
    return [VOCABULARY.index(character) for character in text]


def decode(tokens: Tensor) -> str:
    return "".join(VOCABULARY[number] for number in tokens.tolist())


def problem(generator: torch.Generator) -> tuple[str, list[str], list[int]]:
    """A prompt such as ``3+4*2+5=``, its steps in full, and the result after each; worked out from left to right."""
    numbers = torch.randint(MODULUS, (OPERATIONS + 1,), generator=generator).tolist()
    signs = ["+*"[i] for i in torch.randint(2, (OPERATIONS,), generator=generator).tolist()]
    value, steps, results = numbers[0], [], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        after = (value + number if sign == "+" else value * number) % MODULUS
        steps.append(f"{value}{sign}{number}={after};")
        results.append(after)
        value = after
    text = str(numbers[0]) + "".join(sign + str(number) for sign, number in zip(signs, numbers[1:], strict=True))
    return text + "=", steps, results


def demonstration(generator: torch.Generator) -> list[int]:
    """Prompt and response; each step in full or as its result only."""
    prompt, steps, results = problem(generator)
    full = torch.rand(OPERATIONS, generator=generator) < 0.7
    written = [step if whole else f"{result};" for step, result, whole in zip(steps, results, full, strict=True)]
    return encode(prompt + "".join(written) + f"#{results[-1]}.")


def imitate(model: TinyLM, steps: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = [demonstration(generator) for _ in range(64)]
        batch = torch.full((64, max(map(len, rows))), -1)
        for row, tokens in zip(batch, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        logits = model(batch[:, :-1].clamp_min(0))[:, PROMPT - 1 :]
        loss = functional.cross_entropy(logits.transpose(1, 2), batch[:, PROMPT:], ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def respond(model: TinyLM, prompts: Tensor) -> Tensor:
    """``[B, PROMPT]`` -> ``[B, PROMPT + LONGEST]``; what follows the end of a response does not count."""
    tokens = prompts
    for _ in range(LONGEST):
        drawn = torch.multinomial(model(tokens)[:, -1].softmax(-1), 1)
        tokens = torch.cat([tokens, drawn], 1)
    return tokens


def steps_of(response: str) -> list[str]:
    """The steps of a response: each ends with ``;`` or ``.``, or is cut after STEP tokens; ``.`` ends the response."""
    steps, step = [], ""
    for character in response:
        step += character
        if character in ";." or len(step) == STEP:
            steps.append(step)
            step = ""
        if character == ".":
            return steps
    return [*steps, step] if step else steps


def segment(close_fraction: Tensor, valid: Tensor, episode: TensorDict) -> Tensor:
    """The segmenter: the kind of each step, ``[N]``, from what is written in it."""
    kinds = []
    for tokens, padded in zip(episode["vla_action", "tokens"], episode["action_is_pad"], strict=True):
        text = decode(tokens[~padded, 0])
        kinds.append(3 if "#" in text else 0 if "+" in text else 1 if "*" in text else 2)
    return torch.tensor(kinds)


def collect(model: TinyLM, generator: torch.Generator) -> TensorDict:
    """Rows of a batch of groups: one row is one step of one response, with all that stands before it."""
    problems = [problem(generator) for _ in range(PROMPTS)]
    prompts = torch.tensor([encode(prompt) for prompt, *_ in problems]).repeat_interleave(RESPONSES, 0)
    sequences = respond(model, prompts)
    rows = []
    for number, sequence in enumerate(sequences):
        group = number // RESPONSES
        steps, start = steps_of(decode(sequence[PROMPT:])), PROMPT
        for count, step in enumerate(steps):
            row = {"sequence": sequence, "start": start, "length": len(step), "episode_id": number, "group_id": group}
            rows.append(row | {"chunk_id": count, "success": steps[-1] == f"#{problems[group][2][-1]}."})
            start += len(step)
    batch = TensorDict({key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}, [len(rows)])
    place = batch["start"].unsqueeze(-1) + torch.arange(STEP)
    tokens = batch["sequence"].gather(1, place.clamp_max(PROMPT + LONGEST - 1))
    batch["action_is_pad"] = torch.arange(STEP) >= batch["length"].unsqueeze(-1)
    batch["vla_action", "tokens"] = tokens.unsqueeze(-1)
    batch["vla_action", "chunk"] = functional.one_hot(tokens, len(VOCABULARY)).float()  # tokens have no distance
    batch["phase"] = label_episodes(batch, segment)
    with torch.no_grad():
        batch["vla_action", "log_probs"] = log_probs(model, batch)
    return batch


def log_probs(model: TinyLM, rows: TensorDict) -> Tensor:
    """Of the tokens of each row's step, ``[M, STEP, 1]``; sequences are read up to the last step that is asked for."""
    longest = int((rows["start"] + rows["length"]).max())
    logits = model(rows["sequence"][:, : longest - 1]).log_softmax(-1)
    place = (rows["start"].unsqueeze(-1) + torch.arange(STEP) - 1).clamp_max(longest - 2)
    at = logits.gather(1, place.unsqueeze(-1).expand(-1, -1, len(VOCABULARY)))
    return at.gather(2, rows["vla_action", "tokens"])


def train(
    model: TinyLM, selection: str, iterations: int, budget: int, generator: torch.Generator
) -> tuple[int, int, list[float]]:
    """GRPO; the rows that were trained on, all rows, and the success of every step of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    keep = KeepProbabilities(len(KINDS), refresh_every=2)
    trained, collected, history = 0, 0, []
    for _ in range(iterations):
        rows = collect(model, generator)
        first = rows[rows["chunk_id"] == 0]
        rows["advantage"] = group_advantage(first["success"], first["group_id"])[rows["episode_id"]]
        collected += len(rows)
        history.append(float(first["success"].float().mean()))
        rows = rows[rows["advantage"] != 0]
        if not len(rows):
            continue
        chosen = select_chunks(rows, keep, budget=budget, selection=selection, generator=generator)
        kept = rows[chosen.index]
        gain = clipped_objective(
            log_probs(model, kept), kept["vla_action", "log_probs"], kept["advantage"], ~kept["action_is_pad"],
            chosen.weight,
        )  # fmt: skip
        optimizer.zero_grad()
        (-gain.mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trained += len(kept)
    shown = ", ".join(f"{kind} {prob:.2f}" for kind, prob in zip(KINDS, keep.probs.tolist(), strict=True))
    print(f"{selection}: keep probabilities {shown}")
    return trained, collected, history


def main(imitation: int = 300, iterations: int = 40, budget: int = 2, seed: int = 0) -> dict[str, tuple[int, int]]:
    torch.manual_seed(seed)
    start = TinyLM()
    imitate(start, imitation, torch.Generator().manual_seed(seed))
    spent = {}
    for selection in ("none", "pcm"):
        model = TinyLM()
        model.load_state_dict(start.state_dict())
        torch.manual_seed(seed)
        trained, collected, history = train(model, selection, iterations, budget, torch.Generator().manual_seed(seed))
        quarter = max(iterations // 4, 1)
        ends = [sum(part) / quarter for part in (history[:quarter], history[-quarter:])]
        print(f"{selection}: trained on {trained} of {collected} steps, success {ends[0]:.0%}, then {ends[1]:.0%}")
        spent[selection] = trained, collected
    return spent


if __name__ == "__main__":
    main()
