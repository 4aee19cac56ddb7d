"""The paper's Difficulty Estimator (arXiv 2602.06375): a small text encoder that follows the
policy's pass rates.

It predicts from the prompt's text alone and learns from the finished groups, one AdamW update per
batch:

    loss = BCE(score head, pass rate) + w_d * BCE(distill head, policy confidence)
           + w_r * pairwise ranking

It tells means and knows nothing of its own uncertainty, which P(mixed) needs. Two things that are
learnt from the judged groups make up for that (ours): one strength for all predictions
(``beliefs.Strength``), and the mending of P(mixed) (``recalibration``). Neither changes a mean, and
so nothing of what the paper's window lets through.

What differs from the released code, each with a test in ``tests/test_encoder_defects.py``: targets
come from the outcome's counts; an unknown log-probability is masked and counted, never a target of
0.9999; weights and optimizer state are float32 under bfloat16 autocast; one optimizer acts on the
live parameters, before and after a resume; the losses see the whole batch at once, whatever the
micro-batch; all randomness is private; nothing here is distributed (an engine decides on its main
process and broadcasts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import expect_fields, expect_same
from ...features.backbone import backbone_identity, micro_batches, usable_device
from ...types import FloatArray, GroupOutcome, Prediction, Prompt, State
from ..beliefs import Strength, beta_with_p_mixed
from ..recalibration import Recalibration
from .expect import expect_arrays, expect_names, expect_numbers
from .frozen_vectors import FrozenVectors
from .losses import distill_loss, ranking_loss, score_loss
from .network import EncoderNetwork, build

_EDGE = 1e-4  # pass rates and confidences are kept this far from 0 and 1
_COUNTERS = ("n_updates", "updates_skipped", "distill_missing")
_READ = ("n_read", "n_truncated")
_LAST = ("loss", "loss_score", "loss_distill", "loss_ranking", "grad_norm")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_FIELDS = (
    *("type", "backbone", "pooling", "weights", "optimizer", "generator", "counters", "last"),
    *("strength", "recalibration"),
)


@dataclass(frozen=True)
class _Batch:
    """What one update learns from: token ids of P texts; targets, and which confidences are known,
    of shape (P,)."""

    ids: list[list[int]]
    pass_rate_P: Tensor
    confidence_P: Tensor
    known_P: Tensor


class EncoderEstimator:
    """Text encoder with a score head (the prediction) and a distillation head (training only).

    lookup: outcome key -> Prompt, such as ``pool.__getitem__``; its error for an unknown key is
    passed on, before anything is learnt. config: ``EncoderSettings``. seed: of initialisation and
    dropout; on a CPU the same seed and outcomes give the same bits. group_size: the G whose
    P(mixed) is calibrated. Raises ConfigError if the backbone cannot be loaded or the device is not
    there.
    """

    def __init__(
        self, lookup: Callable[[str], Prompt], config: Any, seed: int, group_size: int = 8
    ) -> None:
        self._lookup = lookup
        self._config = config
        self._group_size = group_size
        self._device = usable_device(config.device)
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        self._reader, network = build(config, seed, self._generator)
        with torch.inference_mode(False):
            self._network: EncoderNetwork = network.to(self._device)
            self._network.backbone.requires_grad_(config.backbone_lr_scale > 0.0)
            self._optimizer = _adamw(self._network, config)
        self._frozen = (
            FrozenVectors(self._network.vectors) if config.backbone_lr_scale == 0.0 else None
        )
        self._strength = Strength(config.prior_strength)
        self._recalibration = Recalibration()
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._last: dict[str, float] = {}

    # ---- prediction

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        """Pass rates by the score head, shape (P,), in [1e-4, 1 - 1e-4], and strengths that give
        the mended P(mixed).

        In evaluation mode, no gradient, no randomness. Broken weights give NaN: the curriculum,
        which knows what to do without a prediction, handles non-finite means; a made-up number here
        would hide the break.
        """
        belief = self._believe(self._read(prompts))
        if not self._config.recalibrate:
            return belief
        p_mixed_P = self._recalibration.apply(
            belief.p_mixed(self._group_size), np.zeros(len(belief))
        )
        return beta_with_p_mixed(belief.mean_P, p_mixed_P, self._group_size)

    def _believe(self, ids: list[list[int]]) -> Prediction:
        """What the network says, with the strength that fits so far; not mended."""
        with self._mode(grad=False):
            logit_P = torch.empty(len(ids), dtype=torch.float64, device="cpu")
            for rows in micro_batches(ids, self._config.micro_batch):
                score_P, _ = self._network.logits(self._vectors([ids[i] for i in rows]))
                logit_P[rows] = score_P.cpu().double()
        mean_P = np.clip(torch.sigmoid(logit_P).numpy(), _EDGE, 1.0 - _EDGE)
        return Prediction(mean_P, np.full(len(ids), self._strength.value))

    def _vectors(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(P, D) of texts, computed once if the backbone does not learn."""
        return self._network.vectors(ids) if self._frozen is None else self._frozen(ids)

    # ---- learning

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        """``updates_per_observe`` updates on the outcomes that have a scored completion; none if
        there is no such.

        What the network says of them is judged before.
        """
        scored = [outcome for outcome in outcomes if outcome.n_scored > 0]
        if not scored:
            return
        with self._mode(grad=True):
            batch = self._batch(scored)
            self._judge(
                batch.ids, np.array([(o.n_correct, o.n_scored) for o in scored], dtype=np.float64)
            )
            for _ in range(self._config.updates_per_observe):
                self._update(batch)

    def _judge(self, ids: list[list[int]], counts_P2: FloatArray) -> None:
        """Fits strength and recalibration to groups not learnt from yet; broken weights teach
        neither."""
        belief = self._believe(ids)
        self._strength.judge(belief.mean_P, counts_P2)
        # a part has another P(mixed)
        whole_P = (counts_P2[:, 1] == self._group_size) & np.isfinite(belief.mean_P)
        if self._config.recalibrate and whole_P.any():
            mixed_P = (counts_P2[:, 0] > 0) & (counts_P2[:, 0] < counts_P2[:, 1])
            p_mixed_P = belief.p_mixed(self._group_size)[whole_P]
            self._recalibration.judge(p_mixed_P, np.zeros(len(p_mixed_P)), mixed_P[whole_P])

    def _batch(self, scored: Sequence[GroupOutcome]) -> _Batch:
        ids = self._read([self._lookup(outcome.key) for outcome in scored])
        confidences = [_confidence(outcome.mean_logprob) for outcome in scored]
        self._counters["distill_missing"] += confidences.count(None)

        def column(values: Sequence[Any], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        return _Batch(
            ids,
            column([outcome.n_correct / outcome.n_scored for outcome in scored]),
            column([0.5 if confidence is None else confidence for confidence in confidences]),
            column([confidence is not None for confidence in confidences], torch.bool),
        )

    def _update(self, batch: _Batch) -> None:
        """One AdamW step, or none (counted) if the loss or the gradient is not finite."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        # an update that raised (out of memory, say) leaves gradients behind
        self._optimizer.zero_grad(set_to_none=True)
        last = self._backward(batch)
        last["grad_norm"] = float(
            torch.nn.utils.clip_grad_norm_(parameters, self._config.grad_clip)
        )
        if all(math.isfinite(value) for value in last.values()):
            self._optimizer.step()
            self._counters["n_updates"] += 1
            self._last = last
        else:
            self._counters["updates_skipped"] += 1
        self._optimizer.zero_grad(set_to_none=True)

    def _backward(self, batch: _Batch) -> dict[str, float]:
        """Leaves the whole batch's gradient in ``.grad`` and returns the losses.

        Trunk and losses see all P prompts at once, so that every pair is ranked and each mask drawn
        once. The backbone is too large for that: its vectors are computed micro-batch by
        micro-batch, the gradient with respect to them is taken once, and each micro-batch is run
        again and given its rows (gradient caching, arXiv 2101.06983).
        """
        network = self._network
        trainable = self._config.backbone_lr_scale > 0.0
        chunks = list(micro_batches(batch.ids, self._config.micro_batch))
        once = trainable and len(chunks) == 1
        with torch.set_grad_enabled(once):
            vectors = [self._vectors([batch.ids[i] for i in rows]) for rows in chunks]
        leaf_PD = torch.empty(
            len(batch.ids), vectors[0].shape[1], dtype=torch.float32, device=self._device
        )
        for rows, vectors_PD in zip(chunks, vectors, strict=True):
            leaf_PD[rows] = vectors_PD.detach()
        leaf_PD.requires_grad_(trainable)
        losses = self._losses(batch, leaf_PD)
        losses["loss"].backward()
        if trainable:
            for i, rows in enumerate(chunks):
                vectors_PD = vectors[i] if once else network.vectors([batch.ids[j] for j in rows])
                vectors_PD.backward(leaf_PD.grad[rows])
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _losses(self, batch: _Batch, vectors_PD: Tensor) -> dict[str, Tensor]:
        config = self._config
        self._network.trunk.train()
        try:
            score_P, distill_P = self._network.logits(vectors_PD)
        finally:
            self._network.trunk.eval()
        score = score_loss(score_P, batch.pass_rate_P)
        distill = distill_loss(distill_P, batch.confidence_P, batch.known_P)
        ranking = ranking_loss(
            score_P, batch.pass_rate_P, config.ranking_delta, config.ranking_margin
        )
        total = score
        # a term that is switched off must not reach the gradient, not even as 0 * inf
        for weight, term in ((config.distill_weight, distill), (config.ranking_weight, ranking)):
            total = total + weight * term if weight else total
        return {
            "loss": total,
            "loss_score": score,
            "loss_distill": distill,
            "loss_ranking": ranking,
        }

    def _read(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        nothing = [self._network.pad_id]  # some tokenizers make nothing of an empty text
        return [row or nothing for row in self._reader.read([prompt.text for prompt in prompts])]

    @contextmanager
    def _mode(self, grad: bool) -> Iterator[None]:
        """Our own gradient and precision modes, whatever the caller (a training loop under
        autocast, say) has on."""
        bfloat16 = self._config.precision == "bfloat16"
        # no cache: a cast kept from the pass without gradient must not serve the one with, cutting
        # the weights off
        autocast = torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=bfloat16, cache_enabled=False
        )
        with torch.inference_mode(False), torch.set_grad_enabled(grad), autocast:
            yield

    # ---- state

    def state_dict(self) -> State:
        """All that a resume needs, copied: JSON values and numpy arrays; weights and moments by
        parameter name."""
        moments = {}
        for name, parameter in self._trained().items():
            entry = self._optimizer.state[parameter]
            moments[name] = {
                "step": int(entry["step"]),
                **{key: _to_numpy(entry[key]) for key in _MOMENTS},
            }
        return {
            "type": type(self).__name__,
            "backbone": backbone_identity(self._config.backbone),
            "pooling": self._network.pooling,
            "weights": {
                name: _to_numpy(tensor) for name, tensor in self._network.state_dict().items()
            },
            "optimizer": moments,
            "generator": _to_numpy(self._generator.get_state()),
            "counters": {**self._counters, **{name: getattr(self._reader, name) for name in _READ}},
            "last": dict(self._last),
            "strength": self._strength.state_dict(),
            "recalibration": self._recalibration.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, bit for bit. Raises StateMismatch, and changes nothing, if it is
        not ours.

        Values are copied into the live parameters and the optimizer's live state: the optimizer
        goes on training the weights that predict.
        """
        self._check(state)
        strength = Strength(self._config.prior_strength)
        recalibration = Recalibration()
        strength.load_state_dict(state["strength"])
        recalibration.load_state_dict(state["recalibration"])
        trained = self._trained()
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in self._network.state_dict().items():
                tensor.copy_(torch.tensor(np.array(state["weights"][name])))
            for name, saved in state["optimizer"].items():
                entry = self._optimizer.state[trained[name]]
                entry["step"].fill_(float(saved["step"]))
                for key in _MOMENTS:
                    entry[key].copy_(torch.tensor(np.array(saved[key])))
        if self._frozen is not None:
            self._frozen.forget()
        self._generator.set_state(torch.tensor(np.array(state["generator"])))
        self._counters = {name: int(state["counters"][name]) for name in _COUNTERS}
        for name in _READ:
            setattr(self._reader, name, int(state["counters"][name]))
        self._last = {name: float(value) for name, value in state["last"].items()}
        self._strength = strength
        self._recalibration = recalibration

    def _check(self, state: State) -> None:
        expect_fields("estimator", state, {**dict.fromkeys(_FIELDS), "type": type(self).__name__})
        expect_same(
            "encoder", "backbone", state["backbone"], backbone_identity(self._config.backbone)
        )
        expect_same("encoder", "pooling", state["pooling"], self._network.pooling)
        expect_numbers("counters", state["counters"], (*_COUNTERS, *_READ))
        expect_numbers("last", state["last"], _LAST if state["last"] else ())
        expect_arrays("weights", state["weights"], self._network.state_dict())
        expect_arrays(
            "generator", {"state": state["generator"]}, {"state": self._generator.get_state()}
        )
        trained = self._trained()
        expect_names("optimizer", state["optimizer"], trained)
        for name, saved in state["optimizer"].items():
            expect_names(f"optimizer[{name!r}]", saved, ("step", *_MOMENTS))
            expect_numbers(f"optimizer[{name!r}]", {"step": saved["step"]}, ("step",))
            own = {key: self._optimizer.state[trained[name]][key] for key in _MOMENTS}
            expect_arrays(f"optimizer[{name!r}]", {key: saved[key] for key in _MOMENTS}, own)

    def _trained(self) -> dict[str, Any]:
        return {name: p for name, p in self._network.named_parameters() if p.requires_grad}

    def metrics(self) -> dict[str, float]:
        """Counters since the start; losses and gradient norm (before clipping) of the last update
        once there is one.

        n_updates: steps taken. updates_skipped: not taken, for a loss or gradient was not finite.
        distill_missing: scored groups without log-probabilities to distil from. loss: weighted sum
        of the three. loss_score: of the score head. loss_distill: of the distillation head.
        loss_ranking: of pairs in the wrong order. grad_norm: of all weights. truncated_share: of
        the prompts read so far, in predictions and updates, those cut at ``max_length`` tokens.
        strength: equivalent rollouts of every prediction, before P(mixed) is mended.
        recalibration_slope, recalibration_offset: of the mended logit of P(mixed).
        """
        counters = {name: float(self._counters[name]) for name in _COUNTERS}
        slope, offset, _ = self._recalibration.coefficients_3.tolist()
        counters |= {
            "strength": self._strength.value,
            "recalibration_slope": slope,
            "recalibration_offset": offset,
        }
        reader = self._reader
        truncated = {"truncated_share": reader.n_truncated / reader.n_read} if reader.n_read else {}
        return {**self._last, **counters, **truncated}


def _adamw(network: EncoderNetwork, config: Any) -> torch.optim.AdamW:
    """AdamW, the backbone at ``backbone_lr_scale`` of the learning rate (left out at 0), its state
    filled with 0.

    Filled here and not at the first step, so that state_dict has the same fields at any time.
    """
    groups: list[dict[str, Any]] = [{"params": [], "lr": config.learning_rate}]
    groups.append({"params": [], "lr": config.learning_rate * config.backbone_lr_scale})
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("backbone.")]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    for group in groups:
        for p in group["params"]:
            optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
            optimizer.state[p].update(
                {key: torch.zeros_like(p, requires_grad=False) for key in _MOMENTS}
            )
    return optimizer


def _confidence(mean_logprob: float | None) -> float | None:
    """exp(mean token log-probability), kept within (1e-4, 1 - 1e-4); None if unknown or not a
    log-probability."""
    if mean_logprob is None or not math.isfinite(mean_logprob) or mean_logprob > 0.0:
        return None
    return min(max(math.exp(mean_logprob), _EDGE), 1.0 - _EDGE)


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.array(tensor.detach().cpu().numpy())
