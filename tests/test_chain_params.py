"""A chain's parameters: what is wrong is said with its place, before anything is trained."""

import pytest

from handclip_lib import params
from handclip_lib.aspects import CHAIN
from handclip_lib.params import ParamError, load
from handclip_lib.schema_chain import REMEDIES

CHAINS: list[tuple[object, str]] = [
    ({"steps": ["dorsal_r"]}, r"chain\.steps: a chain has two steps or more"),
    (
        {"steps": ["dorsal_r", "dorsal_x"]},
        r"chain\.steps\.1\.aspect: unknown aspect 'dorsal_x'; did",
    ),
    ({"stps": ["dorsal_r", "dorsal_l"]}, r"'chain\.stps'; did you mean 'chain\.steps'\?"),
    ({"recipe": "stage2"}, r"chain\.steps\.0\.recipe: stage2\.variants has no ''"),
    ({"recipe": "stage9"}, r"'stage9' is none of stage1, stage2/<variant>, stage3b/<variant>"),
    ({"recipe": "stage2/ce_tripet"}, r"has no 'ce_tripet'; did you mean 'ce_triplet'\?"),
    ({"settings": {"lrate": 1}}, r"chain\.settings: unknown parameter 'stage1\.lrate'; did"),
    ({"settings": {"lr": "fast"}}, r"chain\.settings: stage1\.lr: .*\(got 'fast'\)"),
    (
        {"steps": ["dorsal_r", {"aspect": "dorsal_l", "settings": {"epochs": 0}}]},
        r"chain\.steps\.1\.settings: stage1\.epochs: .*greater than or equal to 1",
    ),
    (
        {"steps": ["dorsal_r", {"aspect": "dorsal_l", "data": {"rot": "x"}}]},
        r"chain\.steps\.1\.data: unknown parameter 'data\.rot'; did you mean 'data\.root'\?",
    ),
    ({"second": ["dorsal_r"]}, r"chain\.second: dorsal_r are not the steps dorsal_r, palmar_l"),
    ({"remedies": ["ewc", "ewc"]}, r"chain\.remedies: each is named once"),
    ({"remedies": ["rehearsal"]}, r"chain\.remedies\.0: "),
    ({"bounds": ["join"]}, r"chain\.bounds\.0: .*'single' or 'joint'"),
    ({"wise_ft": [0, 1.5]}, r"chain\.wise_ft\.1: "),
    ({"wise_ft": [0, 0.5]}, r"chain\.wise_ft: shares from 0 .* to 1 .*, both among them"),
    ({"wise_ft": [0.5, 1]}, r"chain\.wise_ft: shares from 0 .* to 1 .*, both among them"),
    ({"replay": {"share": 1}}, r"chain\.replay\.share: .*less than 1"),
    ({"replay": {"choose": "best"}}, r"chain\.replay\.choose: .*'herding' or 'random'"),
    ({"lwf": {"on": "logits"}}, r"chain\.lwf\.on: "),
    ({"l2_sp": -1}, r"chain\.l2_sp: "),
    ({"ewc": {"images": 0}}, r"chain\.ewc\.images: "),
    ({"finals": ["contrastiv"]}, r"no guided 'contrastiv'; did you mean 'contrastive'\?"),
    ({"finals": {"joint": {"text": "none"}}}, r"joint"),
    ({"finals": {"x": {"lr": "a"}}}, r"chain\.finals\.x: stage3b\.lr: "),
]


@pytest.mark.parametrize(("told", "message"), CHAINS, ids=str)
def test_a_bad_chain_is_refused_with_its_place(told: object, message: str) -> None:
    with pytest.raises(ParamError, match=message):
        load(study="smoke", overrides={"chain": told})


def test_the_chain_of_all_remedies() -> None:
    p, file = load(study="chain_remedies"), params.read_study("chain_remedies")
    assert set(p.chain.remedies) == set(REMEDIES) and len(p.chain.remedies) == 8
    assert file.seeds == (0, 1, 2) and file.notebooks == ("05_sequential_chain",)
    steps = params.chain_steps(p)
    assert tuple(step.name for step in steps) == CHAIN
    assert len({(step.settings.epochs, step.settings.batch_size) for step in steps}) == 1
    assert p.chain.mode == "person_disjoint" == load(study="11k_vitb16").chain.mode


def test_a_step_is_an_aspect_or_says_more() -> None:
    told = ["dorsal_r", {"aspect": "dorsal_l", "recipe": "stage2/ce"}]
    first, second = params.chain_steps(load(study="smoke", overrides={"chain.steps": told}))
    assert (first.kind, second.kind) == ("stage1", "stage2")
    assert second.settings.losses == params.stage2_variants(load(study="smoke"))["ce"].losses


def test_finals_may_be_shorter_than_stage_3b():
    told = {"chain.finals": ["contrastive"], "chain.final_epochs": 5, "stage3b.epochs": 9}
    assert params.chain_finals(load(study="smoke", overrides=told))["contrastive"].epochs == 5
    usual = told | {"chain.final_epochs": None}
    assert params.chain_finals(load(study="smoke", overrides=usual))["contrastive"].epochs == 9
