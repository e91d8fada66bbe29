"""One path from the base to the target: deterministic flows and stochastic moves in turn, with its weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.flows import Flow
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.annealed_bridge import Bridge, joined
from sciflow.posterior.samplers.annealed_schedule import Schedule
from sciflow.posterior.samplers.annealed_transition import Transition
from sciflow.training.progress import ProgressBar

__all__ = ["follow"]


@torch.no_grad()
def follow(
    bridge: Bridge, schedule: Schedule, transition: Transition, u: Tensor, randomness: Randomness, *,
    flows: Sequence[Flow] = (), progress: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    r"""u_K (B, *event), log-weights (B,) of the paths, and traces, from u_0 drawn from the base.

    Before the moves at b_k, flow k (if there is one) maps u -> T_k(u). With u_k^- before and u_k after the moves,

        log w = -log q(u_0) + sum_k [log |det T_k| + log p_{b_k}(u_k^-) - log p_{b_k}(u_k)] + log p~(u_K),

    whose exponential has expectation Z over paths, for any flows, since moves are reversible at b_k. Without flows it is
    annealed importance sampling.
    """
    log_q, ratio = bridge.value(u)
    log_w = -log_q.double()
    acceptances, sizes = [], []
    with ProgressBar(len(schedule.betas), visible=progress) as bar:
        for k, (beta, tuned) in enumerate(zip(schedule.betas, schedule.tuned, strict=True)):
            if k < len(flows):
                flat, ladj = flows[k].to_data(u.to(flows[k].reference().dtype), None, None)
                u, log_w = flat.to(u.dtype), log_w + ladj.double()
                log_q, ratio = bridge.value(u)
            before = joined(log_q, ratio, beta).double()
            log_w = torch.where(before > -torch.inf, log_w + before, -torch.inf)
            # rows of weight 0 stay so, wherever they go
            u, acceptance, _ = transition(bridge, beta, u, tuned, randomness)
            log_q, ratio = bridge.value(u)
            after = joined(log_q, ratio, beta).double()
            log_w = torch.where(after > -torch.inf, log_w - after, -torch.inf)
            acceptances.append(acceptance)
            now = log_w + joined(log_q, ratio, 1.0).double()
            sizes.append((2 * now.logsumexp(0) - (2 * now).logsumexp(0)).exp().nan_to_num(0.0))
            bar.update(k + 1, f"inverse temperature {beta:.3g}")
    log_w = log_w + joined(log_q, ratio, 1.0).double()
    traces = {"inverse_temperature": torch.tensor(schedule.betas), "effective_size": torch.stack(sizes),
              "acceptance": torch.stack(acceptances)}  # fmt: skip
    return u, log_w, traces
