"""Things to move and click: the values and the still of each live figure, and a slider over any picture.

A live figure needs no kernel (`live_figures`). A slider does: what it changes is an ordinary output, which stays in the
saved notebook.
"""

import base64
import math
import statistics
from collections.abc import Callable
from typing import Any

import ipywidgets
import torch
from IPython.display import HTML, display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from peft import LoraConfig
from transformers import GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config

from .. import memory, plots, targets
from ..display import table
from ..errors import LabError
from ..memory.planner import RESERVE
from ..meta_model import build
from ..plots.figures import FROZEN, INK, PAPER, SOFT, A, B, Picture
from ..scoring import Row, Score
from ..sweep.runs import Runs
from . import live_figures
from .controls import guard, show

STOPS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 288, 320, 384, 450)  # of 576: half of them costs as much as the matrix


def slide(draw: Callable, label: str, low: int, high: int, start: int) -> None:
    """Show a slider for a whole number over the picture (or table) `draw(number)`; arrow keys move it too."""
    control = ipywidgets.IntSlider(value=start, min=low, max=high, description=label)
    show(guard([control], label))
    shown = display(draw(start), display_id=True)
    control.observe(lambda change: shown.update(draw(change["new"])), "value")


def dial(scores: dict[float, Score], perplexities: dict[float, float], asked: list[Row],
         answers: dict[float, list[str]]) -> None:
    """Show what an adapter does at each factor on its scaling that was measured: score, perplexity, and what it says.

    `answers` are the model's own to the rows `asked`, in their order. Raises LabError where a factor lacks a part.
    """
    factors = sorted(scores)
    for name, part in (("perplexities", perplexities), ("answers", answers)):
        if lacking := [factor for factor in factors if factor not in part]:
            raise LabError(f"{name} has no factor {lacking[0]:g}. Give one for each factor of `scores`.")
    points = [{"factor": factor, "exact": scores[factor].exact, "n": scores[factor].n,
               "perplexity": _finite(perplexities[factor]), "answers": answers[factor]} for factor in factors]
    rows = [{"factor": f"{factor:g}", "exactly right": f"{scores[factor].exact:.0%} of {scores[factor].n}",
             "perplexity": f"{perplexities[factor]:,.0f}", f"says to: {asked[0][0].strip()}": answers[factor][0]}
            for factor in factors]
    live_figures.display_figure("dial", {"points": points, "asked": [
        {"prompt": getattr(row, "text", row[0].strip()), "answer": row[1]} for row in asked]}, table(rows))


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def mechanism(layer: torch.nn.Module, name: str = "this layer", r: int = 8, alpha: float = 16) -> None:
    """Show the drawing of a linear layer with LoRA, with its own entries: sliders for rank and alpha change the shapes.

    `layer` is a linear layer, or PEFT's around one: then A and B have the entries of its adapter, too.
    """
    base = getattr(layer, "base_layer", layer)
    d_out, d_in = base.weight.shape
    entries = {"W": _entries(base.weight)}
    if base is not layer:
        (adapter,) = layer.active_adapters
        entries |= {"A": _entries(layer.lora_A[adapter].weight), "B": _entries(layer.lora_B[adapter].weight)}
    live_figures.display_figure("drawing", {
        "name": name, "d_in": d_in, "d_out": d_out, "r": r, "alpha": alpha, "entries": entries},
        plots.lora(d_in, d_out, r, alpha))


def _entries(weight: torch.Tensor, most: int = 64) -> dict:
    """At most `most` rows and columns of a matrix, evenly apart, as bytes (127: the largest), and its first three."""
    weight = weight.detach().float().cpu()
    rows, columns = (torch.linspace(0, size - 1, min(size, most)).round().long() for size in weight.shape)
    part = weight[rows][:, columns]
    return {"rows": len(rows), "columns": len(columns), "first": weight.flatten()[:3].tolist(),
            "bytes": _bytes(part, part.abs().max())}


def _bytes(part: torch.Tensor, largest: torch.Tensor | float) -> str:
    small = (127 * part / (float(largest) or 1)).clamp(-127, 127).round().to(torch.int8)
    return base64.b64encode(small.numpy().tobytes()).decode()


def ranks(matrices: dict[str, torch.Tensor], stops: tuple[int, ...] = STOPS, side: int = 16) -> None:
    """Show what the strongest directions keep of one or two matrices at the ranks `stops`, and what is missing."""
    least = min(min(matrix.shape) for matrix in matrices.values())
    found, side = [], min(side, least)
    rows: list[dict[str, Any]] = [{"rank": stop} for stop in stops if stop <= least]
    for name, matrix in matrices.items():
        matrix = matrix.detach().float().cpu()
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        whole, kept, missing, errors = matrix[:side, :side], [], [], []
        for row in rows:
            r = row["rank"]
            part = (U[:side, :r] * S[:r]) @ Vh[:r, :side]
            errors.append((S[r:].norm() / S.norm()).item())
            kept.append(_bytes(part, whole.abs().max()))
            missing.append(_bytes(whole - part, whole.abs().max()))
            row[f"missing of {name}"] = f"{errors[-1]:.1%}"
        found.append({"name": name, "shape": list(matrix.shape), "errors": errors, "kept": kept, "missing": missing,
                      "whole": _bytes(whole, whole.abs().max())})
    values = {"ranks": [row["rank"] for row in rows], "side": side, "matrices": found}
    live_figures.display_figure("rank", values, table(rows))


def ridge(runs: dict[str, Runs], best: dict[str, dict[float, list[float]]], laws: dict[str, dict[str, float]]) -> None:
    """Show the loss of every alpha and rate that was trained with, by optimizer, the best rates, and two laws as lines.

    `best` has for each alpha the best rate of each seed, NaN at the grid's edge; `laws` slopes by name: the first is
    drawn through the best rate of the smallest alpha, the second through that of the largest.
    """
    found, rows, seeds = {}, [], 0
    for optimizer, grid in runs.items():
        alphas, rates = grid.values("alpha"), grid.values("lr")
        losses = [[_mean(grid.where(alpha=alpha, lr=rate).figures("loss")) for rate in rates] for alpha in alphas]
        middle = [_mean([math.log(rate) for rate in best[optimizer][alpha] if math.isfinite(rate)]) for alpha in alphas]
        rates_at = [None if log is None else math.exp(log) for log in middle]
        drawn = [{"name": name, "slope": slope, "at": place} for (name, slope), place in
                 zip(laws[optimizer].items(), (0, len(alphas) - 1))]
        found[optimizer] = {"alphas": alphas, "rates": rates, "losses": losses, "best": rates_at, "laws": drawn}
        rows += [{"optimizer": optimizer, "alpha": f"{alpha:g}", "best rate": "edge" if at is None else f"{at:.2g}"}
                 for alpha, at in zip(alphas, rates_at)]
        seeds = max(seeds, len(grid.values("seed")))
    live_figures.display_figure("ridge", {"found": found, "seeds": seeds}, table(rows))


def _mean(values: list[float]) -> float | None:
    """The mean, or None where there is none, or a value that is none."""
    return sum(values) / len(values) if values and all(map(math.isfinite, values)) else None


def merges(judged: dict[tuple[str, str], tuple[list[float], int]], reached: dict[str, dict[str, float]]) -> None:
    """Show what merging lost: of each (precision, way) the distance of every answer and how many are kept.

    `reached` has, by precision, the parts of an update that arrive, and of the weights that move, when merged in place.
    """
    rows: list[dict[str, Any]] = [{"base": base, "way": way, "kl": kl, "kept": kept}
                                  for (base, way), (kl, kept) in judged.items()]
    shares = {base: {"arrives": found["update that arrives"], "moves": found["weights that move"]}
              for base, found in reached.items()}
    live_figures.display_figure("merge", {"rows": rows, "reached": shares}, table([
        {"weights": row["base"], "way": row["way"], "answers kept": f"{row['kept']} of {len(row['kl'])}",
         "KL, median": f"{statistics.median(row['kl']):.2g}"} for row in rows]))


FAMILIES = {  # as their makers published them; where there is nothing else, the sizes are transformers' defaults
    "Llama-3.1-8B": LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                                num_key_value_heads=8, vocab_size=128256),
    "Qwen2.5-7B": Qwen2Config(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                              num_key_value_heads=4, vocab_size=152064),
    "Mistral-7B": MistralConfig(), "Gemma-7B": GemmaConfig(), "Phi-3-mini": Phi3Config(), "GPT-2": GPT2Config()}


def explore(model: torch.nn.Module, name: str = "this model", ticked: tuple[str, ...] = ("q_proj", "v_proj"),
            r: int = 8) -> None:
    """Show the target explorer: tick layers of `model`, or of six others, and see what a LoraConfig with them trains.

    `ticked` are the names ticked at first, where the model has them.
    """
    models = {name: _layers(model)} | {family: _layers(build(config)) for family, config in FAMILIES.items()}
    names = {group["name"] for group in models[name]["groups"]}
    report = targets.inspect(model, LoraConfig(r=r, target_modules=[layer for layer in ticked if layer in names]))
    live_figures.display_figure("targets", {"models": models, "ticked": ticked, "r": r},
                                block(targets.groups(model), report.per_path, r))


def _layers(model: torch.nn.Module) -> dict:
    """What the explorer shows of a model; experts held as one parameter are no layers to name."""
    groups = [{"name": group.name, "where": group.where, "layers": len(group.paths), "in": group.shape[1],
               "out": group.shape[0]} for group in targets.groups(model) if group.kind != "Parameter"]
    return {"parameters": sum(p.numel() for p in model.parameters()), "groups": groups}


def llama(d: int, g: int, p: int, m: int, V: int, layers: int, tied: bool = False, positions: int = 1 << 20,
          **_) -> LlamaConfig:
    """Return the config of a Llama: `g` key and value heads of `d` numbers, `p` query heads for each, an MLP of `m`."""
    return LlamaConfig(hidden_size=d * g * p, num_attention_heads=g * p, num_key_value_heads=g, intermediate_size=m,
                       vocab_size=V, num_hidden_layers=layers, tie_word_embeddings=tied, dtype="bfloat16",
                       max_position_embeddings=positions)


def plan_memory(gpu_gb: float = 16, **start: Any) -> None:
    """Show the memory planner of the ladder's models: `memory.plan`'s numbers, by part, against a GPU of `gpu_gb` GB.

    `start` are what its controls show at first: model, rank, targets, precision, batch_size, seq_len, checkpointing.
    Marks are peaks in the tables of `benchmarks`. Raises LabError for a model that it does not have.
    """
    known = live_figures.read_json("models")["models"]
    start = {"model": "Llama-2-7B", "rank": 8, "targets": "q_proj v_proj", "precision": "bfloat16", "batch_size": 1,
             "seq_len": 512, "checkpointing": "off", **start}
    if start["model"] not in known:
        raise LabError(f"The planner has no {start['model']!r}. Use one of: {', '.join(known)}; or `memory.plan`.")
    names = start["targets"] if start["targets"] == "all-linear" else start["targets"].split()
    lora = LoraConfig(r=start["rank"], target_modules=names, task_type="CAUSAL_LM")
    checkpointing = {"off": False, "on": True}.get(start["checkpointing"], start["checkpointing"])
    planned = memory.plan(llama(**known[start["model"]]), lora, start["precision"], start["batch_size"],
                          start["seq_len"], checkpointing=checkpointing)
    shown = {"model": "model", "rank": "r", "batch_size": "B", "seq_len": "S"}
    live_figures.display_figure("planner", live_figures.read_json("planner") | {
        "models": known, "reserve": RESERVE,
        "start": {shown.get(name, name): value for name, value in start.items()} | {"gpu": gpu_gb}},
        plots.memory({start["model"]: planned.parts()}, gpu_gb))


def group_table(model: torch.nn.Module, report: targets.Report | None = None) -> HTML:
    """Show the linear layers of `model` by name; with a report, how many get an adapter and what trains there."""
    rows = []
    for group in targets.groups(model):
        row = {"name": group.name, "where": group.where, "layers": len(group.paths), "type": group.kind,
               "out × in": " × ".join(map(str, group.shape))}
        if report is not None:
            adapted = [path for path in group.paths if path in report.modules + report.parameters]
            row |= {"adapted": len(adapted), "trainable": f"{sum(report.per_path.get(p, 0) for p in adapted):,}"}
        rows.append(row)
    return table(rows)


def block(groups: list[targets.Group], per_path: dict[str, int], r: int) -> Picture:
    """Draw the linear layers of one transformer block to scale, with A and B, and their count in that one block, beside
    those that are adapted.
    """
    inside = [group for group in groups if "*" in group.where]
    rows: dict[str, list[targets.Group]] = {}
    for group in inside:
        rows.setdefault(group.where.rpartition(".")[0].rpartition("*.")[2], []).append(group)
    scale = 1.1 / max(max(group.shape[-2:]) for group in inside)
    heights = [1.1 + scale * max(group.shape[-2] for group in members) for members in rows.values()]
    figure = Figure(figsize=(7, sum(heights) + 0.4), dpi=110, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 7), ylim=(-sum(heights), 0.4))
    axes.set_axis_off()
    for x, text, colour in ((0.05, "One block, layers to scale: grey is frozen,", INK), (3.52, "A trains,", A),
                            (4.4, "B trains", B)):
        axes.text(x, 0.3, text, color=colour, fontsize=10.5, weight="bold", va="top")
    parts, top = [], 0.0
    for (parent, members), height in zip(rows.items(), heights):
        axes.text(0.05, top - 0.05, parent or "block", color=SOFT, fontsize=9, weight="bold", va="top")
        for place, group in enumerate(members):
            count = _in_one_block(group, per_path)
            parts.append(f"{group.name} {f'adapted, {count:,} parameters' if count else 'frozen'}")
            _draw_layer(axes, 0.3 + place * 6.6 / max(4, len(members)), top - 0.85, group, count, r, scale)
        top -= height
    return Picture(figure, f"One block's linear layers to scale, rank {r}: {', '.join(parts)}.")


def _in_one_block(group: targets.Group, per_path: dict[str, int]) -> int:
    """Count what trains in the block that has most of it: `layers_to_transform` may leave blocks out."""
    counts: dict[str, int] = {}
    for path in group.paths:
        number = next(part for part in path.split(".") if part.isdigit())
        counts[number] = counts.get(number, 0) + per_path.get(path, 0)
    return max(counts.values())


def _draw_layer(axes, x: float, top: float, group: targets.Group, trainable: int, r: int, scale: float) -> None:
    height, width = (side * scale for side in group.shape[-2:])
    thin = max(r * scale, 0.02)  # a rank of 1 must still be visible
    axes.add_patch(Rectangle((x, top - height), width, height, color=FROZEN, alpha=0.45, linewidth=0))
    many = f" ×{group.shape[0]}" if len(group.shape) == 3 else ""  # experts
    label = f"{group.name}\n{group.shape[-1]} → {group.shape[-2]}{many}"
    if trainable:
        axes.add_patch(Rectangle((x, top - height - 0.04 - thin), width, thin, color=A, linewidth=0))  # A
        axes.add_patch(Rectangle((x - 0.04 - thin, top - height), thin, height, color=B, linewidth=0))  # B
        label += f"\ntrains {trainable:,}"
    axes.text(x, top + 0.06, label, color=INK if trainable else SOFT, fontsize=9, va="bottom", linespacing=1.1)
