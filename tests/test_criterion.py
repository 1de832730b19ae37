"""A list of losses as one module: names, weights, features, gradients, state, collapses."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from handclip_lib.losses import Collapse, Criterion, build_loss
from handclip_lib.models.towers import Features
from handclip_lib.params import ParamError
from handclip_lib.schema_train import LossSpec

DIMS = {"penult": 6, "pool": 8, "proj": 5}
NUM_IDS = 6
EVERY: list[dict[str, Any]] = [
    {"type": "cross_entropy"},
    {"type": "triplet"},
    {"type": "center"},
    {"type": "arcface"},
    {"type": "supcon"},
    {"type": "contrastive", "on": ["head"]},
    {"type": "pml", "name": "ProxyAnchorLoss"},
    {"type": "CircleLoss", "on": ["penult"]},
]
each = pytest.mark.parametrize("i", range(len(EVERY)), ids=lambda i: EVERY[i]["type"])


def features(rows: int = 12, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(rows, w, generator=rng) for n, w in DIMS.items()}
    return {name: z.requires_grad_() for name, z in made.items()}


def labels(rows: int = 12, each: int = 3) -> Tensor:
    return torch.arange(rows) // each


def build(*specs: Mapping[str, Any], seed: int = 0, **more: Any) -> Criterion:
    torch.manual_seed(seed)
    return build_loss(list(specs), NUM_IDS, DIMS, **{"projection": 4, **more})


def total(criterion: Criterion, terms: Mapping[str, Tensor]) -> Tensor:
    weights = criterion.weights
    assert set(weights) == set(terms)
    return torch.stack([weights[k] * term for k, term in terms.items()]).sum()


def grads(criterion: Criterion, specs: Sequence[str] = ()) -> dict[str, Tensor]:
    z = features()
    total(criterion, criterion(z, labels())).backward()
    return {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in z.items()}


class TestFace:
    @pytest.mark.parametrize("dims", [7, {"penult": 7, "pool": 7, "proj": 7}])
    @pytest.mark.parametrize("kind", ["bundle", "dict", "specs"])
    def test_one_unweighted_scalar_a_loss(self, dims: Any, kind: str) -> None:
        told: Any = [{"type": "cross_entropy"}, {"type": "triplet"}, {"type": "center"}]
        if kind == "specs":
            told = [LossSpec.model_validate(one) for one in told]
        criterion, y = build_loss(told, 4, dims), torch.arange(4).repeat(2)
        z = torch.randn(3, 8, 7)
        given: Any = dict(zip(DIMS, z, strict=True))
        if kind == "bundle":
            given = Features(*z, tokens=torch.zeros(8, 1, 7), grid=(1, 1))
        terms = criterion(given, y)
        assert list(terms) == ["cross_entropy", "triplet", "center"]
        assert all(t.shape == () and t.dtype == torch.float32 for t in terms.values())
        assert criterion.weights == {"cross_entropy": 1.0, "triplet": 1.0, "center": 0.1}
        assert float(terms["cross_entropy"].detach()) == pytest.approx(2 * math.log(4), abs=0.02)

    def test_usual_features_and_those_that_are_told(self) -> None:
        told = build(*EVERY, {"type": "triplet", "on": ["pool_bn"], "weight": 3})
        assert told.needs == {
            "cross_entropy": ("pool_bn", "proj_bn"),
            "triplet": ("penult", "pool", "proj"),
            "center": ("proj",),
            "arcface": ("proj_bn",),
            "supcon": ("proj",),
            "contrastive": ("head",),
            "pml": ("proj",),
            "CircleLoss": ("penult",),
            "triplet_2": ("pool_bn",),
        }
        assert told.weights["triplet_2"] == 3 and told.weights["triplet"] == 1

    def test_three_of_a_type_are_told_apart(self) -> None:
        assert list(build(*[{"type": "supcon"}] * 3).weights) == ["supcon", "supcon_2", "supcon_3"]

    @each
    def test_a_term_is_the_sum_over_its_features(self, i: int) -> None:
        wide = {"penult": 5, "pool": 5, "proj": 5}
        z = {n: torch.randn(12, 5) for n in wide}
        both = build_loss([EVERY[i] | {"on": ["pool", "proj"]}], NUM_IDS, wide)
        alone = [build_loss([EVERY[i] | {"on": [n]}], NUM_IDS, wide) for n in ("pool", "proj")]
        for one in alone:  # the weights of its own feature
            mine = both.state_dict()
            one.load_state_dict({k: mine[k] for k in one.state_dict()})
        (got,) = both(z, labels()).values()
        wanted = [next(iter(one(z, labels()).values())) for one in alone]
        torch.testing.assert_close(got, wanted[0] + wanted[1])

    def test_total_is_the_sum_of_weight_times_term(self) -> None:
        told = build(*[one | {"weight": 0.5 + i} for i, one in enumerate(EVERY)])
        terms, weights = told(features(), labels()), told.weights
        assert [float(w) for w in weights.values()] == [0.5 + i for i in range(len(EVERY))]
        assert list(weights) == list(terms)

    def test_rows_and_labels_must_agree(self) -> None:
        with pytest.raises(ValueError, match="12 rows for 9 labels"):
            build({"type": "triplet"})(features(), labels(9))
        with pytest.raises(ValueError, match=r"expected \(B,\)"):
            build({"type": "triplet"})(features(), labels()[:, None])


class TestErrors:
    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ({"type": "tripplet"}, r"losses\.0\.type: no loss 'tripplet'; did you mean 'triplet'"),
            ({"type": "CircelLoss"}, "did you mean 'CircleLoss'"),
            ({"type": "pml", "name": "CircelLoss"}, "did you mean 'CircleLoss'"),
            ({"type": "pml"}, r"losses\.0\.name: Field required"),
            ({"type": "triplet", "marign": 1}, r"'losses\.0\.marign'; did you mean 'margin'"),
            ({"type": "supcon", "memroy": 9}, "did you mean 'memory'"),
            ({"type": "center", "wieght": 9}, "did you mean 'weight'"),
            ({"type": "CircleLoss", "gama": 9}, "did you mean 'gamma'"),
            ({"type": "pml", "name": "CircleLoss", "args": {"gama": 9}}, "did you mean 'gamma'"),
            ({"type": "triplet", "mining": "batchhard"}, "did you mean 'batch_hard'"),
            ({"type": "center", "update": "emma"}, "did you mean 'ema'"),
            ({"type": "triplet", "on": ["prj"]}, "no feature 'prj'; did you mean 'proj'"),
            ({"type": "triplet", "on": []}, "names no feature"),
            ({"type": "triplet", "on": ["head"]}, "'head' needs `projection`"),
            ({"type": "triplet", "margin": "wide"}, r"losses\.0\.margin: .*valid number"),
            ({"type": "triplet", "margin": -1}, "greater than 0"),
            ({"type": "triplet", "margin": True}, "got true/false"),
            ({"type": "arcface", "margin": 17.2}, r"losses\.0\.margin: .*in radians"),
            ({"type": "ArcFaceLoss", "margin": 0.3}, "degrees.*17.2"),
            ({"type": "HistogramLoss"}, "equal features"),
            ({"type": "RankedListLoss"}, "needs margin, Tn"),
            ({"type": "ProxyAnchorLoss", "memory": 8}, r"losses\.0\.memory"),
            ({"type": "center", "memory": 8}, "unknown parameter"),
            ({"type": "triplet", "weight": -1}, r"losses\.0\.weight"),
            ({"typ": "triplet"}, r"losses\.0\.type"),
            ("triplet", r"losses\.0"),
        ],
        ids=str,
    )
    def test_an_entry_that_is_wrong(self, spec: Any, says: str) -> None:
        with pytest.raises(ParamError, match=says):
            build_loss([spec], NUM_IDS, DIMS)

    def test_a_list_that_is_wrong(self) -> None:
        with pytest.raises(ParamError, match="empty"):
            build()
        with pytest.raises(ParamError, match="did you mean 'uncertainty'"):
            build({"type": "triplet"}, balance="uncertainy")
        with pytest.raises(ValueError, match="num_ids"):
            build_loss([{"type": "triplet"}], 0, DIMS)

    def test_numbers_that_yaml_reads_as_text(self) -> None:
        one, two = build({"type": "triplet", "margin": "5e-1"}), build({"type": "triplet"})
        z = features()
        assert one(z, labels())["triplet"] > two(z, labels())["triplet"]


class TestModules:
    def test_one_neck_a_feature_shared_by_all_and_only_where_it_is_read(self) -> None:
        told = build(*EVERY, {"type": "triplet", "on": ["pool_bn"]})
        necks = [m for m in told.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert sorted(m.num_features for m in necks) == [5, 5, 8], "pool_bn, proj_bn and the head"
        assert not list(build({"type": "triplet"}).parameters())

    def test_necks_see_a_batch_once(self) -> None:
        told = build({"type": "cross_entropy"}, {"type": "arcface"}, {"type": "supcon"})
        told(features(), labels())
        assert [int(n.num_batches_tracked) for n in told.necks.values()] == [1, 1]

    def test_classifiers_read_the_neck_and_metric_losses_what_is_before_it(self) -> None:
        told = build({"type": "cross_entropy", "on": ["pool_bn"]}, {"type": "triplet"})
        z = features()
        moved = {name: (4 * t + 7) for name, t in z.items()}
        one, two = told(z, labels()), told(moved, labels())
        torch.testing.assert_close(one["cross_entropy"], two["cross_entropy"], rtol=0, atol=1e-5)
        assert abs(one["triplet"] - two["triplet"]) > 1

    def test_the_projection_head_is_there_when_a_loss_reads_it(self) -> None:
        assert build({"type": "supcon"}).head is None
        told = build({"type": "supcon", "on": ["head"]}, projection=3)
        assert told.head is not None and told.head[-1].out_features == 3

    def test_every_parameter_learns(self) -> None:
        told = build(*EVERY, {"type": "center", "update": "sgd"}, balance="uncertainty")
        total(told, told(features(), labels())).backward()
        idle = [n for n, p in told.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle and len(list(told.parameters())) > 10
        frozen = [n for n, p in told.named_parameters() if not p.requires_grad]
        assert frozen == ["necks.pool.bias", "necks.proj.bias"]

    @each
    def test_a_loss_pulls_at_its_features_and_at_no_other(self, i: int) -> None:
        told = build(EVERY[i])
        (reads,) = told.needs.values()
        bases = {"proj" if n == "head" else n.removesuffix("_bn") for n in reads}
        assert {n for n, g in grads(told).items() if g.abs().sum() > 0} == bases

    @each
    def test_without_a_loss_the_gradient_is_another(self, i: int) -> None:
        whole, less = build(*EVERY), build(*EVERY[:i], *EVERY[i + 1 :])
        mine, rename = whole.state_dict(), [*build(*EVERY).terms]
        rename.pop(i)
        less.load_state_dict({k: mine[k] for k in less.state_dict()})
        assert list(less.terms) == rename
        one, two = grads(whole), grads(less)
        assert any((one[n] - two[n]).abs().max() > 1e-6 for n in DIMS)


class TestPrecision:
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
    def test_autocast_changes_nothing(self, given: torch.dtype) -> None:
        told = build(*EVERY)
        z = {n: t.detach().to(given) for n, t in features().items()}
        plain = copy.deepcopy(told)(z, labels())
        with torch.autocast("cpu", torch.bfloat16):
            terms = told(z, labels())
            logits = told.eval().logits(z)
        assert logits is not None and logits.dtype == torch.float32
        for name, term in terms.items():
            assert term.dtype == torch.float32
            torch.testing.assert_close(term, plain[name], rtol=0, atol=0)
        assert {p.dtype for p in told.parameters()} == {torch.float32}, "a head was cast"


class TestMixed:
    def test_only_cross_entropy_sees_mixed_images(self) -> None:
        told, y = build(*EVERY), labels()
        z, soft = features(), torch.full((12, NUM_IDS), 1 / NUM_IDS)
        # The first six of two identities are clean. What the others are called means nothing.
        one = copy.deepcopy(told)(z, y, soft, clean=6)
        other = torch.cat((y[:6], torch.full((6,), 5)))
        two = copy.deepcopy(told)(z, other, soft, clean=6)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
        value = torch.stack([one[n] for n in one if n != "cross_entropy"]).sum()
        pulled = torch.autograd.grad(value, [z["penult"], z["pool"]])
        assert all(g[:6].abs().sum() > 0 and g[6:].abs().sum() == 0 for g in pulled)

    def test_soft_targets_are_smoothed_as_labels_are(self) -> None:
        z, soft = features(), torch.nn.functional.one_hot(labels(), NUM_IDS).float()
        smooth = build({"type": "cross_entropy", "label_smoothing": 0.3})
        hard = build({"type": "cross_entropy", "label_smoothing": 0})
        for part in ("pool_bn", "proj_bn"):
            for told in (smooth, hard):
                torch.manual_seed(1)
                torch.nn.init.normal_(told.terms["cross_entropy"].parts[part].classifier.weight)
        for told in (smooth, hard):
            wanted = told(z, labels())["cross_entropy"]
            torch.testing.assert_close(told(z, labels(), soft)["cross_entropy"], wanted)
        assert abs(smooth(z, labels())["cross_entropy"] - wanted) > 0.01

    def test_a_batch_without_a_clean_row(self) -> None:
        told, z = build(*EVERY), features()
        terms = told(z, labels(), torch.full((12, NUM_IDS), 1 / NUM_IDS), clean=0)
        total(told, terms).backward()
        assert [n for n, t in terms.items() if t != 0] == ["cross_entropy"]
        assert all(t.isfinite() for t in terms.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in told.parameters())


class TestBalance:
    def test_fixed_is_what_was_asked_for(self) -> None:
        assert build({"type": "supcon", "weight": 0}).weights == {"supcon": 0}

    def test_uncertainty_learns_its_weights(self) -> None:
        specs = ({"type": "triplet", "weight": 2.0}, {"type": "supcon"})
        told = build(*specs, balance="uncertainty")
        terms = told(features(), labels())
        assert list(terms) == ["triplet", "supcon", "uncertainty"]
        assert [float(torch.as_tensor(w).detach()) for w in told.weights.values()] == [
            2.0,
            0.5,
            1.0,
        ]
        total(told, terms).backward()
        wanted = torch.tensor([1 - 2 * terms["triplet"].item(), 1 - 0.5 * terms["supcon"].item()])
        torch.testing.assert_close(told.balance.s.grad, wanted)  # d/ds of w·exp(-s)·L + s
        with torch.no_grad():
            told.balance.s.copy_(torch.tensor([0.7, -0.2]))
        terms = told(features(), labels())
        assert terms["uncertainty"].item() == pytest.approx(0.5)
        assert told.weights["triplet"].item() == pytest.approx(2 * math.exp(-0.7))

    def test_uncertainty_is_bounded_and_comes_back_from_the_bound(self) -> None:
        told = build({"type": "triplet"}, balance="uncertainty")
        assert told.balance.s.ndim == 1, "so that no weight decay falls on it"
        for bound in (9.0, -9.0):
            torch.nn.init.constant_(told.balance.s, bound)
            terms = told(features(), labels())
            assert told.weights["triplet"].item() == pytest.approx(
                math.exp(-math.copysign(3, bound))
            )
            told.zero_grad()
            total(told, terms).backward()
            assert abs(float(told.balance.s.grad)) > 0.1

    def test_ema_divides_by_the_running_mean(self) -> None:
        told = build({"type": "triplet", "weight": 2.0}, {"type": "supcon"}, balance="ema")
        assert told.weights == {"triplet": 2.0, "supcon": 0.5}, "nothing was seen"
        first = told(features(), labels())
        assert told.weights["triplet"].item() == pytest.approx(2 / first["triplet"].item())
        assert total(told, first).item() == pytest.approx(2.5)
        second = told(features(seed=1), labels())
        mean = 0.99 * first["supcon"].item() + 0.01 * second["supcon"].item()
        assert float(told.weights["supcon"]) == pytest.approx(0.5 / mean)
        assert not any(w.requires_grad for w in told.weights.values())  # type: ignore[union-attr]

    def test_ema_of_batches_without_pairs_gives_no_unbounded_weight(self) -> None:
        told = build({"type": "triplet"}, balance="ema")
        alone = torch.zeros(12, dtype=torch.long)
        told(features(), alone)
        assert float(told.weights["triplet"]) == 1
        value = told(features(), labels())["triplet"].item()
        for _ in range(20):
            told(features(), alone)
        assert told.weights["triplet"].item() == pytest.approx(1 / value)


class TestCentres:
    @pytest.mark.parametrize("balance", ["fixed", "uncertainty", "ema"])
    def test_steps_of_learnt_centres_do_not_depend_on_the_weight(self, balance: str) -> None:
        moves = []
        for weight in (0.01, 0.1, 10.0):
            told = build(
                {"type": "center", "update": "sgd", "weight": weight},
                {"type": "triplet"},
                balance=balance,
            )
            if balance == "uncertainty":
                torch.nn.init.constant_(told.balance.s, 1.5)
            told.start_centers({"proj": torch.randn(NUM_IDS, 5, generator=torch.manual_seed(3))})
            center = told.terms["center"].parts["proj"]
            before = center.centers.detach().clone()
            step = torch.optim.AdamW(told.parameters(), lr=1e-3)
            total(told, told(features(), labels())).backward()
            step.step()
            moves.append(center.centers.detach() - before)
        assert moves[0][:4].abs().sum(dim=1).min() > 1e-3, "the centres of the batch do not move"
        torch.testing.assert_close(moves[1], moves[0], rtol=1e-2, atol=1e-5)
        torch.testing.assert_close(moves[1], moves[2], rtol=1e-2, atol=1e-5)

    def test_the_features_feel_the_weight_all_the_same(self) -> None:
        small, large = (
            grads(build({"type": "center", "update": "sgd", "weight": w}))["proj"] for w in (1, 4)
        )
        torch.testing.assert_close(4 * small, large)

    def test_a_weight_of_zero_moves_nothing(self) -> None:
        told = build({"type": "center", "update": "sgd", "weight": 0})
        total(told, told(features(), labels())).backward()
        assert told.terms["center"].parts["proj"].centers.grad.abs().sum() == 0

    def test_they_start_from_the_means_of_the_feature_they_are_on(self) -> None:
        told = build({"type": "center", "on": ["pool", "proj_bn"]})
        told.start_centers({n: torch.ones(NUM_IDS, w) for n, w in DIMS.items()})
        parts = told.terms["center"].parts
        assert parts["pool"].known.all() and not parts["proj_bn"].known.any()


class TestArcFace:
    def test_the_margin_grows(self) -> None:
        told = build({"type": "arcface", "margin": 0.4, "margin_warmup_epochs": 4})
        seen = []
        for epoch in (None, 1, 2, 3, 5, 6):
            if epoch is not None:
                told.set_epoch(epoch)
            told(features(), labels())
            seen.append(float(told.diagnostics["margin"]))
        assert seen == pytest.approx([0.4, 0, 0.1, 0.2, 0.4, 0.4])

    def test_without_warmup_it_is_whole_at_once(self) -> None:
        told = build({"type": "arcface", "margin_warmup_epochs": 0})
        told.set_epoch(1)
        told(features(), labels())
        assert float(told.diagnostics["margin"]) == pytest.approx(0.3)

    def test_a_head_that_guesses_gets_a_smaller_margin_and_a_warning(self) -> None:
        told = build({"type": "arcface", "margin_warmup_epochs": 2})
        told.set_epoch(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for i in range(60):  # in the warm-up nothing is judged
                told(features(seed=i), labels())
        told.set_epoch(3)
        with pytest.warns(UserWarning, match=r"guesses.*below 0\.3333.*lowered to 0\.5"):
            for i in range(50):
                told(features(seed=i), labels())
        told(features(), labels())
        assert float(told.diagnostics["margin"]) == pytest.approx(0.15)
        other = build({"type": "arcface", "margin_warmup_epochs": 2}, seed=9)
        other.load_state_dict(told.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that was said before
            other(features(), labels())
        assert float(other.diagnostics["margin"]) == pytest.approx(0.15), "forgotten by a kill"

    def test_a_head_that_learns_keeps_its_margin(self) -> None:
        told = build({"type": "arcface", "on": ["proj"]})
        part = told.terms["arcface"].parts["proj"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for i in range(60):
                z = features(seed=i)
                z["proj"] = part.weight[labels()].detach() * 9 + 0.01 * z["proj"]
                told(z, labels())
        assert float(told.diagnostics["margin"]) == pytest.approx(0.3)
        assert float(told.diagnostics["confidence"]) > 0.5


class TestCollapse:
    @pytest.mark.parametrize("margin", [0.3, None])
    @pytest.mark.parametrize("normalize", [False, True])
    def test_features_drawn_to_a_point(self, margin: float | None, normalize: bool) -> None:
        told = build(
            {"type": "triplet", "margin": margin, "normalize": normalize, "on": ["pool"]},
            {"type": "cross_entropy"},
        )
        z = {n: 1 + 1e-5 * t for n, t in features().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(100):
                told(z, labels())
        resting = "0.693" if margin is None else "0.300"
        with pytest.warns(UserWarning, match=f"triplet.*pool has collapsed.*101.*{resting}"):
            told(z, labels())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once; cross_entropy may part them yet
            told(z, labels())
        assert float(told.diagnostics["spread"]) < 1e-4

    def test_alone_it_ends_the_training(self) -> None:
        told = build({"type": "triplet", "on": ["pool"]})
        z = {n: torch.ones_like(t) for n, t in features().items()}
        told.terms["triplet"].guards["pool"].steps.fill_(1000)
        with pytest.raises(Collapse, match="1001 steps"):
            told(z, labels())

    def test_a_loss_near_its_margin_with_features_apart_is_none(self) -> None:
        told = build({"type": "triplet", "on": ["pool"]})
        corners = torch.eye(8)[:8]  # all equally far from each other
        z = {"penult": corners, "pool": corners * 3, "proj": corners}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(150):
                term = told(z, torch.arange(8) // 2)["triplet"]
        assert float(term) == pytest.approx(0.3, abs=1e-3)

    def test_recovered_in_between_it_counts_anew_and_the_state_keeps_the_count(self) -> None:
        told = build({"type": "triplet", "on": ["pool"]}, {"type": "supcon"})
        flat = {n: torch.ones_like(t) for n, t in features().items()}
        for _ in range(60):
            told(flat, labels())
        assert int(told.state_dict()["terms.triplet.guards.pool.steps"]) == 60
        told(features(), labels())
        assert int(told.terms["triplet"].guards["pool"].steps) == 0

    def test_batches_without_pairs_are_told_of_once(self) -> None:
        told = build({"type": "triplet"})
        lonely = torch.zeros(12, dtype=torch.long)
        with pytest.warns(UserWarning, match="only 0% of the anchors.*sampler") as caught:
            for _ in range(120):
                told(features(), lonely)
        assert len(caught) == 1


class TestDiagnostics:
    def test_those_that_apply(self) -> None:
        told = build({"type": "cross_entropy"})
        told(features(), labels())
        assert told.diagnostics == {}
        told = build({"type": "supcon"})
        z = features()
        told(z, torch.tensor([0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 4, 5]))
        unit = z["proj"].detach() / z["proj"].detach().norm(dim=1, keepdim=True)
        assert set(told.diagnostics) == {"valid_triplets", "spread"}
        assert float(told.diagnostics["valid_triplets"]) == pytest.approx(9 / 12)
        torch.testing.assert_close(told.diagnostics["spread"], unit.std(0, correction=0).mean())
        told = build({"type": "arcface", "on": ["proj"]})
        told(z, labels())
        weight = told.terms["arcface"].parts["proj"].weight.detach()
        cosine = unit @ (weight / weight.norm(dim=1, keepdim=True)).T
        rows = torch.arange(12)
        assert set(told.diagnostics) == {"target_cosine", "confidence", "margin"}
        wanted = {
            "target_cosine": cosine[rows, labels()].mean(),
            "confidence": (20 * cosine).softmax(1)[rows, labels()].mean(),
        }
        for key, value in wanted.items():
            torch.testing.assert_close(told.diagnostics[key], value)
            assert not told.diagnostics[key].requires_grad

    def test_logits_of_classifiers_else_of_a_margin_head(self) -> None:
        z = features()
        told = build({"type": "arcface"}, {"type": "cross_entropy"}).eval()
        heads = told.terms["cross_entropy"].parts
        wanted = [heads[f"{n}_bn"].classifier(told.necks[n](z[n])) for n in ("pool", "proj")]
        torch.testing.assert_close(told.logits(z), wanted[0] + wanted[1])
        told = build({"type": "arcface", "on": ["penult"]}, {"type": "triplet"}).eval()
        wanted = told.terms["arcface"].parts["penult"].cosines(z["penult"])
        torch.testing.assert_close(told.logits(z), 20 * wanted)
        assert build({"type": "CosFaceLoss"}).eval().logits(z).shape == (12, NUM_IDS)
        assert build({"type": "triplet"}, {"type": "center"}).logits(z) is None


class TestState:
    MEMORIES = (
        {"type": "triplet", "memory": 16},
        {"type": "supcon", "memory": 20, "memory_start": 0},
        {"type": "CircleLoss", "memory": 7},
        {"type": "arcface"},
        {"type": "center", "update": "sgd"},
        {"type": "center"},
        {"type": "cross_entropy"},
    )

    @pytest.mark.parametrize("balance", ["fixed", "uncertainty", "ema"])
    def test_all_of_it_survives_a_kill(self, balance: str) -> None:
        told, other = (build(*self.MEMORIES, balance=balance, seed=s) for s in (0, 1))
        told.set_epoch(4)
        for i in range(3):
            total(told, told(features(seed=i), labels())).backward()
        state = copy.deepcopy(told.state_dict())
        assert all(isinstance(value, Tensor) for value in state.values())
        other.load_state_dict(state)
        for i in range(3, 6):
            one, two = (c(features(seed=i), labels()) for c in (told, other))
            for name in one:
                torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
            both = zip(told.weights.values(), other.weights.values(), strict=True)
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in both)
        for name, value in told.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name

    def test_a_memory_changes_the_loss_once_it_is_open(self) -> None:
        plain, told = build({"type": "supcon"}), build({"type": "supcon", "memory": 50})
        for epoch, alike in ((1, True), (1, True), (2, True), (2, False)):
            told.set_epoch(epoch)
            one, two = (c(features(seed=epoch), labels())["supcon"] for c in (plain, told))
            assert torch.equal(one, two) is alike, epoch
        bank = told.terms["supcon"].memories["proj"]
        assert len(bank()[1]) == 24 and not bank.features.requires_grad

    def test_nothing_moves_in_eval_mode(self) -> None:
        told = build(*self.MEMORIES, balance="ema").eval()
        before = copy.deepcopy(told.state_dict())
        told(features(), labels())
        assert all(torch.equal(v, before[k]) for k, v in told.state_dict().items())

    @pytest.mark.parametrize("balance", ["fixed", "uncertainty", "ema"])
    def test_it_can_be_copied_in_the_midst_of_training(self, balance: str) -> None:
        told = build(*EVERY, *self.MEMORIES, balance=balance)
        total(told, told(features(), labels())).backward()
        twin = copy.deepcopy(told)
        one, two = told(features(seed=1), labels()), twin(features(seed=1), labels())
        assert all(torch.equal(one[name], two[name]) for name in one)
