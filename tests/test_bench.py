"""The speed table: that every row compares two ways that both work (never how fast)."""

from handclip_lib.bench import bench


def test_every_row_times_both_ways():
    table = bench(repeats=1)
    assert len(table) == 3 and list(table.columns) == ["plain", "kit", "ratio"]
    assert (table > 0).all(axis=None)
