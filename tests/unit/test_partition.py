from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nnunetv2_federated.federation.case_table import read_case_table, table_column
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import (
    METHODS,
    PartitionSettings,
    check_sites,
    partition_cases,
)
from nnunetv2_federated.report.partition import partition_table, plot_partition

DRAWN = ("iid", "stratified", "dirichlet", "hybrid")

CASES = [f"case_{i:03d}" for i in range(100)]
CLASSES = {case: "abc"[min(i // 40, 2)] for i, case in enumerate(CASES)}  # 40 a, 40 b, 20 c
PATIENTS = {case: f"patient_{i % 37:02d}" for i, case in enumerate(CASES)}
CENTRES = {case: ("lyon", "bern", "oslo")[i % 37 % 3] for i, case in enumerate(CASES)}

EIGHT = [f"c{i}" for i in range(8)]
EIGHT_CLASSES = dict(zip(EIGHT, "aaaaabbb", strict=True))


def per_class(sites, classes):
    return {site: Counter(classes[case] for case in cases) for site, cases in sites.items()}


@pytest.mark.parametrize("patients", [None, PATIENTS])
@pytest.mark.parametrize("method", METHODS)
def test_disjoint_complete_and_independent_of_order(method, patients):
    settings = PartitionSettings(sites=4, method=method, alpha=0.3)
    sites = partition_cases(CASES, settings, CLASSES, patients, CENTRES)
    assert sorted(case for cases in sites.values() for case in cases) == CASES
    assert all(cases == sorted(cases) and cases for cases in sites.values())

    def reverse(mapping):
        return mapping and dict(sorted(mapping.items(), reverse=True))

    again = partition_cases(
        CASES[::-1], settings, reverse(CLASSES), reverse(patients), reverse(CENTRES)
    )
    assert again == sites
    assert list(again) == list(sites)


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("iid", ["c0", "c1", "c4", "c7"]),
        ("stratified", ["c0", "c1", "c4", "c5"]),
        ("dirichlet", ["c4", "c5", "c6", "c7"]),
        ("hybrid", ["c0", "c2", "c4", "c6", "c7"]),
    ],
)
def test_a_seed_keeps_its_meaning(method, first):
    # Written down once: if this fails, saved partitions can no longer be reproduced.
    settings = PartitionSettings(sites=2, method=method, seed=12345)
    rest = [case for case in EIGHT if case not in first]
    assert partition_cases(EIGHT, settings, EIGHT_CLASSES) == {"site_01": first, "site_02": rest}


@pytest.mark.parametrize("method", DRAWN)
def test_another_seed_gives_another_partition(method):
    one, two = (
        partition_cases(CASES, PartitionSettings(method=method, seed=seed), CLASSES)
        for seed in (1, 2)
    )
    assert one != two


def test_site_names_are_padded_so_that_they_sort():
    names = list(partition_cases(CASES, PartitionSettings(sites=100, method="iid")))
    assert names[0] == "site_001"
    assert names[-1] == "site_100"
    assert names == sorted(names)


def test_iid_sites_have_equal_sizes():
    sites = partition_cases(CASES[:11], PartitionSettings(sites=3, method="iid"))
    assert [len(cases) for cases in sites.values()] == [4, 4, 3]


def test_iid_is_balanced_by_cases_not_by_patients():
    # One patient with 6 of 12 cases: dealt out patient by patient, its site would get 8 or 9.
    patients = {f"c{i:02d}": "big" if i < 6 else f"p{i}" for i in range(12)}
    for seed in range(5):
        settings = PartitionSettings(sites=2, method="iid", seed=seed)
        sites = partition_cases(list(patients), settings, patients=patients)
        assert [len(cases) for cases in sites.values()] == [6, 6]


def test_stratified_counts_by_hand():
    # 7 a: 3, 2, 2. 5 b: sites 2 and 3 are behind and take the two extra ones: 1, 2, 2.
    classes = dict(zip([f"c{i:02d}" for i in range(12)], "a" * 7 + "b" * 5, strict=True))
    sites = partition_cases(list(classes), PartitionSettings(method="stratified"), classes)
    assert per_class(sites, classes) == {
        "site_01": {"a": 3, "b": 1},
        "site_02": {"a": 2, "b": 2},
        "site_03": {"a": 2, "b": 2},
    }


@pytest.mark.parametrize("fraction", [0, 0.3])
def test_hybrid_leaves_no_class_missing_anywhere(fraction):
    for seed in range(20):
        settings = PartitionSettings(
            sites=5, alpha=0.1, stratified_fraction=fraction, min_cases=3, seed=seed
        )
        counts = per_class(partition_cases(CASES, settings, CLASSES), CLASSES)
        # 0.3 of 40, 40 and 20 groups is 12, 12 and 6: at least 2, 2 and 1 at each of 5 sites.
        least = {"a": 2, "b": 2, "c": 1} if fraction else {"a": 1, "b": 1, "c": 1}
        assert all(own[name] >= n for own in counts.values() for name, n in least.items())


def test_hybrid_holds_for_patients_of_several_cases():
    classes = {case: "ab"[int(PATIENTS[case][-2:]) % 2] for case in CASES}
    for seed in range(20):
        settings = PartitionSettings(sites=5, alpha=0.1, seed=seed)
        counts = per_class(partition_cases(CASES, settings, classes, PATIENTS), classes)
        assert all(own[name] for own in counts.values() for name in "ab")


def test_hybrid_with_the_whole_share_is_stratified():
    whole = PartitionSettings(sites=3, stratified_fraction=1)
    counts = per_class(partition_cases(CASES, whole, CLASSES), CLASSES)
    assert sorted(own["a"] for own in counts.values()) == [13, 13, 14]
    assert sorted(own["c"] for own in counts.values()) == [6, 7, 7]


def test_alpha_governs_the_skew():
    def spread(alpha):
        settings = PartitionSettings(sites=4, method="dirichlet", alpha=alpha)
        counts = per_class(partition_cases(CASES, settings, CLASSES), CLASSES)
        return max(own["a"] for own in counts.values())

    assert spread(1e6) == 10  # 40 cases of class a at 4 sites
    assert spread(0.1) >= 20


@pytest.mark.parametrize("method", DRAWN)
def test_patients_never_straddle(method):
    for seed in range(10):
        settings = PartitionSettings(sites=4, method=method, alpha=0.2, seed=seed)
        sites = partition_cases(CASES, settings, CLASSES, PATIENTS)
        seen = [{PATIENTS[case] for case in cases} for cases in sites.values()]
        assert sum(map(len, seen)) == len(set(PATIENTS.values()))


def test_a_patient_counts_for_its_most_frequent_class():
    # p and q are b (2 of 3; a tie goes to the first of the alphabet), r and s are c.
    classes = dict(zip(EIGHT, "cbbbccdc", strict=True))
    patients = dict(zip(EIGHT, "pppqqrrs", strict=True))
    for seed in range(5):
        settings = PartitionSettings(sites=2, method="stratified", seed=seed)
        sites = partition_cases(EIGHT, settings, classes, patients)
        together = [{patients[case] for case in cases} for cases in sites.values()]
        assert all(len(own & {"p", "q"}) == 1 for own in together)


def test_column_names_the_sites():
    column = dict(zip(EIGHT, ["oslo", "bern"] * 4, strict=True))
    settings = PartitionSettings(method="column")
    assert partition_cases(EIGHT, settings, column=column) == {
        "bern": ["c1", "c3", "c5", "c7"],
        "oslo": ["c0", "c2", "c4", "c6"],
    }


def test_min_cases_is_reached_by_drawing_again():
    first = PartitionSettings(sites=4, method="dirichlet", alpha=0.3, seed=3)
    smallest = min(map(len, partition_cases(CASES, first, CLASSES).values()))
    wanted = smallest + 3
    again = PartitionSettings(sites=4, method="dirichlet", alpha=0.3, seed=3, min_cases=wanted)
    assert min(map(len, partition_cases(CASES, again, CLASSES).values())) >= wanted


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"sites": 0}, "--sites 0: must be a whole number of at least 1"),
        ({"sites": 2.0}, r"--sites 2\.0: must be"),
        ({"sites": True}, "--sites True: must be"),
        (
            {"method": "random"},
            "--partition random: must be one of iid, stratified, dirichlet",
        ),
        ({"alpha": 0}, "--alpha 0: must be a finite number of at least 0.001, for instance 0.5"),
        ({"alpha": float("nan")}, "--alpha nan: must be"),
        ({"alpha": float("inf")}, "--alpha inf: must be"),
        ({"alpha": "0.5"}, "--alpha 0.5: must be"),
        ({"stratified_fraction": 1.5}, r"--stratified-fraction 1\.5: must be 0 to 1"),
        ({"min_cases": 0}, "--min-cases 0: must be"),
        ({"seed": -1}, "--seed -1: must be"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(SettingsError, match=message):
        PartitionSettings(**bad)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"sites": 9}, {}, "9 sites with at least 1 cases each do not fit 8 cases; lower --sites"),
        ({"min_cases": 3}, {}, "3 sites with at least 3 cases each do not fit 8 cases"),
        (
            {"sites": 3},
            {"patients": dict(zip(EIGHT, "ppppqqqq", strict=True))},
            "3 sites do not fit 2 patients.*set --sites to 2 or less",
        ),
        (
            {"sites": 4, "method": "dirichlet", "alpha": 0.01, "min_cases": 2},
            {},
            "100 draws of the dirichlet .* wanted are 2; .* raise --alpha above 0.01",
        ),
        ({}, {"classes": None}, "8 cases have no class: 'c0', 'c1', 'c2' and 5 more; .*--by"),
        ({}, {"classes": {**EIGHT_CLASSES, "c3": " "}}, "1 cases have no class: 'c3'"),
        ({}, {"patients": {"c1": "p"}}, "7 cases have no patient: 'c0', 'c2', 'c3' and 4 more"),
        ({"method": "column"}, {}, "8 cases have no site: .*--case-table and --by"),
        (
            {"method": "column"},
            {"column": dict.fromkeys(EIGHT, "a/b")},
            "site name 'a/b' cannot be a folder name",
        ),
        (
            {"method": "column", "min_cases": 4},
            {"column": EIGHT_CLASSES},
            "sites with fewer than 4 cases: 'b'; lower --min-cases",
        ),
        (
            {"method": "column"},
            {"column": EIGHT_CLASSES, "patients": dict(zip(EIGHT, "ppppqqqq", strict=True))},
            r"patient 'q' has cases at several sites \('a', 'b'\)",
        ),
    ],
)
def test_bad_partitions(settings, given, message):
    given = {"classes": EIGHT_CLASSES, **given}
    with pytest.raises(SettingsError, match=message) as caught:
        partition_cases(EIGHT, PartitionSettings(**settings), **given)
    assert "\n" not in str(caught.value)


def test_cases_listed_twice():
    with pytest.raises(SettingsError, match="cases are listed twice: 'c0'"):
        partition_cases([*EIGHT, "c0"], PartitionSettings(method="iid"))


def test_check_sites_accepts_sites_that_leave_cases_out():
    check_sites({"bern": ["c0"], "oslo": ["c2", "c1"]}, EIGHT)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({}, "there are no sites"),
        ({"bern": ["c0"], "oslo": []}, "site 'oslo' has no cases"),
        ({"bern": ["c0", "x", "y"]}, "'bern' has cases .* not have: 'x', 'y'; .* 8 cases"),
        (
            {"bern": ["c0"], "oslo": ["c0"]},
            "case 'c0' of site 'oslo' is there also at site 'bern'",
        ),
        ({"bern": ["c0", "c0"]}, "case 'c0' of site 'bern' is there twice"),
        ({"../bern": ["c0"]}, "cannot be a folder name"),
    ],
)
def test_check_sites_refuses(sites, message):
    with pytest.raises(SettingsError, match=message):
        check_sites(sites, iter(EIGHT))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_read_case_table(tmp_path):
    # With the byte order mark, blanks and blank line a spreadsheet program leaves behind.
    text = 'case, label,centre\nc0,tumour,"Bern, CH"\n\nc1 ,none,Zürich\n'
    table = read_case_table(write(tmp_path / "cases.csv", text, "utf-8-sig"))
    assert table == {
        "c0": {"label": "tumour", "centre": "Bern, CH"},
        "c1": {"label": "none", "centre": "Zürich"},
    }
    assert table_column(table, "label") == {"c0": "tumour", "c1": "none"}
    with pytest.raises(SettingsError, match="no column 'age'; it has 'centre', 'label'"):
        table_column(table, "age")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'case', only none"),
        ("id;label\nc0;a\n", "has no column 'case', only 'id;label'; .* commas"),
        ("case,a,a\nc0,1,2\n", "two columns of one name"),
        ("case,label\nc0,a\nc0,b\n", "line 3: case 'c0' is there twice"),
        ("case,label\nc0\n", "line 2: 1 values for 2 columns"),
        ("case,label\n,b\n", "line 2: no 'case'"),
    ],
)
def test_read_case_table_refuses(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        read_case_table(write(tmp_path / "cases.csv", text))


def test_read_case_table_that_is_no_text_file(tmp_path):
    with pytest.raises(SettingsError, match=r"absent.csv cannot be read .*--case-table"):
        read_case_table(tmp_path / "absent.csv")
    (tmp_path / "cases.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(SettingsError, match=r"cases.xlsx cannot be read .*UTF-8"):
        read_case_table(tmp_path / "cases.xlsx")


COUNTS = {"bern": {"none": 2, "tumour": 11}, "oslo": {"tumour": 3}}


def test_partition_table():
    assert partition_table(COUNTS).splitlines() == [
        "site   none  tumour  total",
        "-----  ----  ------  -----",
        "bern      2      11     13",
        "oslo      0       3      3",
        "-----  ----  ------  -----",
        "total     2      14     16",
    ]


def test_plot_partition_writes_a_png(tmp_path):
    plot_partition(COUNTS, tmp_path / "few.png", "few")
    many = {f"site_{i:02d}": {f"class_{j}": i + j for j in range(12)} for i in range(20)}
    plot_partition(many, tmp_path / "many.png", "many")
    sizes = []
    for name in ("few.png", "many.png"):
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(data[20:24], "big"))  # height, in pixels
    assert sizes[1] > 2 * sizes[0]  # the chart grows with the sites instead of squeezing them
