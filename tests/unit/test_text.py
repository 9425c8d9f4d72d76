"""Lists of names in messages are short."""

from __future__ import annotations

from nnunetv2_federated.federation.text import both_ends, few, some_cases


def test_long_lists_name_three_and_count_the_others() -> None:
    assert few(["b", "a"]) == "b, a"
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(iter("abcde")) == "a, b, c and 2 more"


def test_cases_are_counted_and_named_in_order() -> None:
    assert some_cases(["c1"]) == "1 case (c1)"
    assert some_cases({"c4", "c2", "c3", "c1"}) == "4 cases (c1, c2, c3 and 1 more)"


def test_of_a_long_text_both_ends_are_kept_so_that_a_traceback_says_why() -> None:
    assert both_ends("Traceback:\n" + "  File x\n" * 99 + "OSError: full", 30) == (
        "Traceback: … e x OSError: full"
    )
    assert both_ends("no disk\n") == "no disk"
