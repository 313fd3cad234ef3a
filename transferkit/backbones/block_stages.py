"""Stages of a transformers model, found in the order of its modules."""

from torch import nn


def find_stages(model: nn.Module) -> dict[str, list[str]]:
    """Return the stages of a transformers model: all before its outermost list of blocks, then each block.

    Lists of the same length beside it run in step with it (PVT: patch embeddings and blocks). What follows
    the blocks (a last norm, a pooler) joins the last stage. ViT: embeddings, block 0 ... 11.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        return {"embeddings": [name for name, _ in model.named_children()]}
    path = next(iter(lists)).split(".")
    before: list[str] = []
    after: list[str] = []
    for depth, part in enumerate(path):  # down to the blocks, past what stands before and after them
        parents = path[:depth]
        children = [name for name, _ in model.get_submodule(".".join(parents)).named_children()]
        place = children.index(part)
        before += [".".join((*parents, name)) for name in children[:place]]
        after += [".".join((*parents, name)) for name in children[place + 1 :]]
    blocks = lists[".".join(path)]
    parallel = [name for name in after if name in lists and len(lists[name]) == len(blocks)]
    stages = {"embeddings": before} if before else {}
    for index in range(len(blocks)):
        stages[f"block {index}"] = [f"{name}.{index}" for name in (".".join(path), *parallel)]
    stages[list(stages)[-1]] += [name for name in after if name not in parallel]
    return stages
