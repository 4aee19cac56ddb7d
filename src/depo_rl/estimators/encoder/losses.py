"""The three losses of the paper's Difficulty Estimator (arXiv 2602.06375), each a function of
full-batch logits.

    loss = score_loss + w_d * distill_loss + w_r * ranking_loss

The paper discloses no weights, delta or margin; the defaults (w_d 0.5, w_r 3.0, delta 0.05, margin
0.5) are the released code's values. All three average over what they sum, so none depends on how
many prompts a batch holds.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu


def score_loss(logit_P: Tensor, pass_rate_P: Tensor) -> Tensor:
    """Binary cross-entropy of the score head against mean@G (arXiv 2602.06375, score term).

    logit_P: shape (P,), of the score head. pass_rate_P: shape (P,), n_correct / n_scored, in [0,
    1]. Returns a scalar, nats per prompt; at its smallest the entropy of the targets, not 0.
    """
    return binary_cross_entropy_with_logits(logit_P, pass_rate_P)


def distill_loss(logit_P: Tensor, confidence_P: Tensor, known_P: Tensor) -> Tensor:
    """Binary cross-entropy of the distillation head against the policy's confidence (arXiv
    2602.06375, distillation).

    logit_P: shape (P,), of the distillation head. confidence_P: shape (P,), exp(mean token
    log-probability), in (0, 1); not read where unknown. known_P: shape (P,), bool. Returns a
    scalar, nats per known prompt; 0 if none is known.
    """
    if not bool(known_P.any()):
        return logit_P.sum() * 0.0
    return binary_cross_entropy_with_logits(logit_P[known_P], confidence_P[known_P])


def ranking_loss(logit_P: Tensor, pass_rate_P: Tensor, delta: float, margin: float) -> Tensor:
    """Pairwise hinge over all ordered pairs of the batch (arXiv 2602.06375, ranking term; released
    code's values).

    For every (i, j) with pass_rate_i > pass_rate_j + delta: relu(margin - (logit_i - logit_j)),
    averaged over those pairs, those with hinge 0 included. logit_P, pass_rate_P: shape (P,). delta:
    a difference of pass rates. margin: in logits. Returns a scalar >= 0; 0 if no pair differs by
    more than delta.
    """
    active_PP = pass_rate_P[:, None] > pass_rate_P[None, :] + delta
    if not bool(active_PP.any()):
        return logit_P.sum() * 0.0
    gap_PP = logit_P[:, None] - logit_P[None, :]
    return relu(margin - gap_PP[active_PP]).mean()
