"""Data parallel training over single-threaded processes (gloo); one process where WORLD_SIZE is unset."""
import os

import torch
import torch.distributed

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if WORLD > 1:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")


def average(parameters):
    """Replace every gradient by its mean over the processes."""
    if WORLD == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= WORLD
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients)])


def same(value):
    """Process 0's number, everywhere: clocks differ, decisions must not."""
    if WORLD == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64)
    torch.distributed.broadcast(number, 0)
    return number.item()


def share(owned):
    """Process r sends the parameters of `owned[r]`, which it alone has updated, to all others."""
    if WORLD == 1:
        return
    for rank, parameters in enumerate(owned):
        flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        torch.distributed.broadcast(flat, rank)
        if rank != RANK:
            parts = flat.split([p.numel() for p in parameters])
            torch._foreach_copy_([p.detach() for p in parameters], [a.view_as(p) for a, p in zip(parts, parameters)])
