"""What holds a training to the weights it began with: values, gradients, importance."""

import copy
import json

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional

from handclip_lib.models import towers
from handclip_lib.models.adapters import adapt
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.towers import Features
from handclip_lib.schema_chain import Lwf
from handclip_lib.schema_train import Adapt
from handclip_lib.train import retain
from handclip_lib.train.retain import Retain, ewc, fisher, l2_sp, lwf, normalised, online

VIT = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
RN = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 8}
TEXT = {"width": 16, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
CONFIGS = {"retain-vit": VIT, "retain-rn": RN}
KINDS = ("lwf", "relations", "l2_sp", "ewc")


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in CONFIGS.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def encoder_of(name: str = "retain-vit") -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_encoder(name, "random")


def tower(name: str = "retain-vit") -> nn.Module:
    """In eval mode; not as it is drawn, where a ResNet's blocks begin with a factor of zero."""
    return moved(encoder_of(name).visual, 0.1)


def images_of(visual: nn.Module, count: int = 5, seed: int = 0) -> torch.Tensor:
    """Noise on a colour of each image's own."""
    rng, size = torch.Generator().manual_seed(seed), 16 if hasattr(visual, "transformer") else 32
    colours = 3 * torch.randn(count, 3, 1, 1, generator=rng)
    return colours + torch.randn(count, 3, size, size, generator=rng)


def moved(visual: nn.Module, by: float = 0.02) -> nn.Module:
    """A copy with other weights, as some steps leave it."""
    rng, other = torch.Generator().manual_seed(9), copy.deepcopy(visual)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += by * torch.randn(parameter.shape, generator=rng)
    return other


def held(kind: str, visual: nn.Module, weight: float = 2.0) -> Retain:
    if kind == "l2_sp":
        return l2_sp(visual, weight)
    if kind == "ewc":
        rng = torch.Generator().manual_seed(3)
        f = {n: torch.rand(p.shape, generator=rng) for n, p in visual.named_parameters()}
        return ewc(visual, f, weight)
    on = "relations" if kind == "relations" else "cosine"
    return lwf(visual, Lwf(weight=weight, on=on))


def value(retained: Retain, visual: nn.Module, images: torch.Tensor) -> torch.Tensor:
    (term,) = retained.terms.values()
    told = towers.features(visual, images)
    return term(visual, images, told)


def gradients(
    visual: nn.Module, images: torch.Tensor, retained: Retain | None
) -> dict[str, torch.Tensor]:
    """Of a loss on the features, with what holds them, if anything does."""
    visual.zero_grad()
    told = towers.features(visual, images)
    total = told.proj.square().mean() + told.pool.sum() / 100
    for name, term in retained.terms.items() if retained else ():
        total = total + retained.weights[name] * term(visual, images, told)
    total.backward()
    return {n: p.grad.clone() for n, p in visual.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_changes_the_gradient_of_a_step_and_at_weight_0_no_bit_of_it(kind, name):
    start = tower(name)
    now, images = moved(start), images_of(start)
    plain = gradients(now, images, None)
    changed = gradients(now, images, held(kind, start))
    off = gradients(now, images, held(kind, start, weight=0.0))
    assert plain.keys() == off.keys() and all(torch.equal(plain[n], off[n]) for n in plain)
    differ = [n for n in plain if not torch.allclose(plain[n], changed[n], rtol=1e-4, atol=1e-8)]
    assert len(differ) > len(plain) / 2


def test_each_changes_the_gradient_of_the_shipped_tower():
    encoder = load_encoder("tiny", "")
    start, size = encoder.visual, encoder.preprocess.size
    now = moved(start, 0.005)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    plain = gradients(now, images, None)
    for kind in ("lwf", "l2_sp", "ewc"):
        off = gradients(now, images, held(kind, start, 0.0))
        assert all(torch.equal(plain[n], off[n]) for n in plain)
        changed = gradients(now, images, held(kind, start))
        assert sum(not torch.equal(plain[n], changed[n]) for n in plain) > len(plain) / 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_nothing_is_lost_and_later_something(kind, name):
    start = tower(name)
    retained, images = held(kind, start), images_of(start)
    told = value(retained, start, images)
    assert told.ndim == 0 and told.dtype == torch.float32 and abs(told.item()) < 1e-6
    assert value(retained, moved(start, 0.1), images).item() > 1e-4


# --- likeness ---------------------------------------------------------------------------------


def test_cosine_is_the_mean_over_features_and_images():
    start = tower()
    now, images = moved(start), images_of(start)
    with torch.no_grad():
        new, old = towers.features(now, images), towers.features(start, images)
    far = []
    for name in ("pool", "proj"):
        for a, b in zip(getattr(new, name).double(), getattr(old, name).double(), strict=True):
            far.append(1 - a @ b / (a.norm() * b.norm()))
    assert value(held("lwf", start), now, images).item() == pytest.approx(
        float(sum(far)) / 10, abs=1e-6
    )
    only = lwf(start, Lwf(), ("penult",))
    cos = functional.cosine_similarity(new.penult, old.penult)
    assert value(only, now, images).item() == pytest.approx(float(1 - cos.mean()), abs=1e-6)


def test_relations_are_a_divergence_over_the_other_images():
    start = tower()
    now, images, t = moved(start), images_of(start), 0.3
    with torch.no_grad():
        both = [towers.features(v, images) for v in (now, start)]
    logs = []
    for told in both:
        z = torch.cat([told.pool, told.proj], dim=1).double()
        z = z / z.norm(dim=1, keepdim=True)
        rows = []
        for i in range(5):
            sims = torch.stack([z[i] @ z[j] for j in range(5) if j != i]) / t
            rows.append(sims - sims.exp().sum().log())
        logs.append(torch.stack(rows))
    wanted = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1).mean()
    retained = lwf(start, Lwf(on="relations", temperature=t))
    assert value(retained, now, images).item() == pytest.approx(float(wanted), rel=1e-4)
    assert wanted > 1e-5


def test_a_single_image_has_no_relations():
    start = tower()
    told = value(held("relations", start), moved(start), images_of(start, 1))
    assert told.item() == 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["lwf", "relations"])
def test_the_copy_looks_back_for_good(kind, name):
    """No gradient into it, no statistics of a batch, no following of what trains."""
    start = tower(name).train()
    retained, images = held(kind, start), images_of(start)
    (term,) = retained.terms.values()
    before = copy.deepcopy(term.before.state_dict())
    assert start.training and all(p.requires_grad for p in start.parameters())
    value(retained, start, images).backward()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.zero_()
    after = term.before.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any(p.requires_grad or p.grad is not None for p in term.before.parameters())
    assert not any(part.training for part in term.before.modules())


def test_likeness_is_float32_under_autocast():
    start = tower()
    now, images = moved(start), images_of(start)
    seen = []
    retained = held("lwf", start)
    (term,) = retained.terms.values()
    term.before.ln_post.register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        told = value(retained, now, images)
    assert told.dtype == torch.float32 and seen and all(seen)
    assert told.item() == pytest.approx(value(retained, now, images).item(), rel=0.2)


def test_a_tower_that_is_told_of_its_images_is_refused():
    encoder = encoder_of()
    adapt(encoder, Adapt(prompts=2))
    with pytest.raises(ValueError, match="prompts"):
        lwf(encoder.visual, Lwf())


# --- pull -------------------------------------------------------------------------------------


def test_l2_sp_is_the_squared_distance_of_what_is_open():
    start = tower()
    now, images = moved(start), images_of(start)
    now.conv1.requires_grad_(False)
    pairs = zip(now.named_parameters(), start.parameters(), strict=True)
    wanted = sum(
        (p - q).double().square().sum().item() for (n, p), q in pairs if n != "conv1.weight"
    )
    retained = l2_sp(start, 0.5)
    assert value(retained, now, images).item() == pytest.approx(wanted, rel=1e-5)
    assert retained.weights == {"l2_sp": 0.5}
    closed = now.requires_grad_(False)
    told = value(retained, closed, images)
    assert told.item() == 0 and told.ndim == 0


def test_l2_sp_holds_lora_where_it_began():
    encoder = encoder_of()
    adapt(encoder, Adapt(lora=2))
    start = encoder.visual
    retained, images = l2_sp(start, 1.0), images_of(start)
    named = dict(start.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(name.endswith(".b"))
    assert value(retained, start, images).item() == 0
    some = next(p for n, p in named.items() if n.endswith(".b"))
    with torch.no_grad():
        some += 2
    told = value(retained, start, images)
    told.backward()
    assert told.item() == 4 * some.numel() and torch.equal(some.grad, torch.full_like(some, 4))


def test_ewc_is_half_the_importance_of_each_square():
    start = tower()
    now, images = moved(start), images_of(start)
    f = {n: torch.full_like(p, 3.0) for n, p in start.named_parameters()}
    f["proj"] = torch.zeros_like(f["proj"])
    pairs = zip(now.named_parameters(), start.parameters(), strict=True)
    wanted = sum(1.5 * (p - q).square().sum().item() for (n, p), q in pairs if n != "proj")
    assert value(ewc(start, f, 1.0), now, images).item() == pytest.approx(wanted, rel=1e-4)
    del f["proj"]
    with pytest.raises(ValueError, match="proj"):
        ewc(start, f, 1.0)


@pytest.mark.parametrize("kind", ["ewc", "l2_sp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_huge_weight_keeps_the_weights(kind, optimizer):
    start = tower()
    images = images_of(start)

    def far(weight: float) -> float:
        now, retained = copy.deepcopy(start), held(kind, start, weight)
        if kind == "ewc":
            f = {n: torch.ones_like(p) for n, p in start.named_parameters()}
            retained = ewc(start, f, weight)
        if optimizer == "sgd":  # at the rate at which the pull alone is stable
            step: torch.optim.Optimizer = torch.optim.SGD(now.parameters(), 0.1 / max(weight, 1))
        else:
            step = torch.optim.Adam(now.parameters(), 1e-3)
        rounds = 12
        for k in range(rounds):
            for group in step.param_groups:
                if optimizer == "adam":
                    group["lr"] = 1e-3 * (1 - k / rounds)
            gradients(now, images, retained)
            step.step()
        both = zip(now.parameters(), start.parameters(), strict=True)
        return float(torch.stack([(p - q).norm() for p, q in both]).norm())

    free, tied = far(0.0), far(1e6)
    assert tied < free * (1e-3 if optimizer == "sgd" else 0.1) and free > 1e-2


# --- importance -------------------------------------------------------------------------------


def loss_of(told: Features, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(told.proj[:, :16] * 3 + told.pool[:, :16], labels)


@pytest.mark.parametrize("name", [*CONFIGS, "tiny", "tiny_rn"])
def test_importance_is_the_mean_of_squared_gradients_image_by_image(name):
    encoder = load_encoder(name, "") if name.startswith("tiny") else encoder_of(name)
    visual = encoder.visual if name.startswith("tiny") else tower(name)
    size = encoder.preprocess.size
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 3])
    wanted = {n: torch.zeros_like(p) for n, p in visual.named_parameters()}
    for k in range(3):
        visual.zero_grad()
        told = towers.features(visual, images[k : k + 1])
        loss_of(told, labels[k : k + 1]).backward()
        for n, p in visual.named_parameters():
            wanted[n] += (0 if p.grad is None else p.grad**2) / 3
    visual.zero_grad()
    visual.train()

    found = fisher(visual, loss_of, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    assert found.keys() == wanted.keys()
    for n in wanted:
        torch.testing.assert_close(found[n], wanted[n], rtol=1e-3, atol=1e-9)
    assert sum(bool(f.any()) for f in found.values()) > len(found) * 0.8


@pytest.mark.parametrize("name", CONFIGS)
def test_measuring_importance_leaves_nothing_behind(name):
    visual = tower(name).train()
    images, labels = images_of(visual), torch.arange(5)
    first = next(visual.parameters()).requires_grad_(False)
    last = [*visual.parameters()][-1]
    last.grad = torch.ones_like(last)
    visual.eval().conv1.train()
    before, modes = copy.deepcopy(visual.state_dict()), [m.training for m in visual.modules()]
    with torch.no_grad():
        found = fisher(visual, loss_of, [(images, labels)])
    assert not first.requires_grad and all(p.requires_grad for p in [*visual.parameters()][1:])
    assert [m.training for m in visual.modules()] == modes
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for p in [*visual.parameters()][:-1])
    after = visual.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert all(not f.requires_grad for f in found.values())
    assert any(f.any() for f in found.values())
    assert found.keys() == dict(visual.named_parameters()).keys()
    with pytest.raises(KeyError):
        fisher(visual, lambda told, y: {}["no loss"], [(images, labels)])
    assert not first.requires_grad and [m.training for m in visual.modules()] == modes


def test_importance_needs_images():
    with pytest.raises(ValueError, match="no images"):
        fisher(tower(), loss_of, [])


def test_normalised_importance_has_mean_one_over_all_parameters():
    told = normalised({"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[0.0], [0.0], [4.0]])})
    assert told["a"].tolist() == [1.0, 2.0] and told["b"].flatten().tolist() == [0, 0, 2]
    for bad in (0.0, float("nan")):
        with pytest.raises(ValueError, match="importance"):
            normalised({"a": torch.full((2,), bad)})


def test_older_importance_fades():
    old, new = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([10.0, 0.0])}
    assert online(old, new, 0.5)["a"].tolist() == [10.5, 1.0]
    assert online(None, new, 0.5)["a"].tolist() == [10.0, 0.0]
    with pytest.raises(ValueError, match="b"):
        online({"b": torch.zeros(2)}, new, 0.5)


# --- a plain value ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_no_part_of_the_module_that_has_it(kind):
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = tower()
            self.retain = held(kind, self.visual)

    owner = Owner()
    names = {name.removeprefix("visual.") for name in owner.state_dict()}
    assert names == {*owner.visual.state_dict()}
    assert copy.deepcopy(owner).retain is owner.retain
    here = owner.retain.to(torch.device("cpu"))
    images = images_of(owner.visual)
    now = moved(owner.visual)
    assert value(here, now, images).item() == value(owner.retain, now, images).item() > 0
    there = owner.retain.to(torch.device("meta"))
    (term,) = there.terms.values()
    held_there = (
        term.before.parameters()
        if isinstance(term, retain.Likeness)
        else [*term.anchor.values(), *(term.factor or {}).values()]
    )
    assert all(tensor.is_meta for tensor in held_there)
