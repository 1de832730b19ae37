"""The doctor names what is missing with the command that mends it, and fails for little."""

from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from packaging.requirements import Requirement

from handclip_lib import doctor
from handclip_lib.doctor import ABSENT, BROKEN, GOOD, Finding


def test_report_names_every_part_and_returns_by_what_is_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = doctor.main()
    told = capsys.readouterr().out
    for word in ("Python", "torchvision", "processor", "GPU", "memory", "cache", "11k Hands"):
        assert word in told
    assert "kernel" in told and "Chromium" in told and "ViT-B-16-quickgelu" in told
    assert code == (1 if f"  {BROKEN} " in told else 0)
    assert ("Ready" in told) == (code == 0)


def test_names_and_facts_are_aligned() -> None:
    found = {
        "Data": [Finding(GOOD, "long name", "here"), Finding(ABSENT, "x", "no", "make x")],
        "More": [Finding(BROKEN, "y", "gone")],
    }
    assert doctor.render(found).splitlines() == [
        "Data",
        "  ✓ long name  here",
        "  – x          no",
        "               → make x",
        "",
        "More",
        "  ✗ y          gone",
    ]


@pytest.mark.parametrize(
    ("wanted", "tested", "mark"),
    [
        ("pytest>=1", {}, GOOD),
        ("pytest>=1", {"pytest": "0.1"}, ABSENT),
        ("pytest<1", {}, BROKEN),
        ("no-such-package-at-all", {}, BROKEN),
    ],
)
def test_a_package_against_its_range_and_pin(
    wanted: str, tested: dict[str, str], mark: str
) -> None:
    finding = doctor.package(Requirement(wanted), tested)
    assert finding.mark == mark
    assert bool(finding.mend) == (mark != GOOD)


def test_pins_are_read_without_comments(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("A_b==1.0\n# x==2\nc==3 # why\n")
    assert doctor.pins(tmp_path / "c.txt") == {"a-b": "1.0", "c": "3"}
    assert doctor.pins(tmp_path / "none.txt") == {}


def test_a_cache_that_cannot_be_made_is_broken_and_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path / "file" / "cache"))
    cache, reports = doctor.folders()
    assert cache.mark == BROKEN and "HANDCLIP_CACHE" in cache.mend
    assert reports.mark == GOOD


def test_a_foreign_kernel_is_only_said_since_runs_bring_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python3").mkdir()
    spec = '{"argv": ["/elsewhere/python"], "display_name": "x"}'
    (tmp_path / "python3" / "kernel.json").write_text(spec)
    found = KernelSpecManager(kernel_dirs=[str(tmp_path)], ensure_native_kernel=False)
    monkeypatch.setattr(doctor, "KernelSpecManager", lambda: found)
    kernel = doctor.notebooks()[0]
    assert kernel.mark == ABSENT and "ipykernel install" in kernel.mend
    assert "/elsewhere/python" in kernel.fact


def test_missing_tiny_weights_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.weights, "_TINY_ROOT", tmp_path)
    tiny, tiny_rn, *openai = doctor.towers()
    assert tiny.mark == tiny_rn.mark == BROKEN and tiny.mend == "make tiny"
    assert all(f.mark != BROKEN for f in openai)


def test_openai_weights_are_found_in_the_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "RN50-quickgelu.openai.pt").touch()
    found = {f.name: f for f in doctor.towers()}["RN50-quickgelu (openai)"]
    assert found.mark == GOOD and found.fact.endswith("RN50-quickgelu.openai.pt")


def test_data_sets_are_read_or_the_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.params, "ROOT", tmp_path)
    (tmp_path / "data" / "HD").mkdir(parents=True)
    eleven, hd, drawn = doctor.data_sets()
    assert [f.mark for f in (eleven, hd, drawn)] == [ABSENT] * 3
    assert "11khands" in eleven.mend and drawn.mend == "handclip demo-data"
    assert "Original Images" in hd.fact


def test_the_real_metadata_is_recognised(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.params, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "11k").symlink_to(test_data / "11k_sample")
    eleven = doctor.data_sets()[0]
    assert eleven.mark == GOOD and "sample" in eleven.fact
