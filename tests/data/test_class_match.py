"""Classes of a data set are matched with those of a model by name, or by number where there are no names."""

import pytest

from reeltag.core.errors import UsageError
from reeltag.data.class_match import match_classes


def test_classes_are_matched_by_name_in_any_order_and_unicode_form():
    match = match_classes(["café", "dog", "zither"], 3, ["Dog", "dog", "cafe\u0301", "cat"], 4)
    assert match.sources == (2, 1, None)
    assert (match.kept, match.by, match.new, match.dropped) == (2, "name", ("zither",), ("Dog", "cat"))
    assert str(match) == "2 of 3 classes kept by name, 1 new (zither), 2 dropped (Dog · cat)"


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_without_names_on_one_side_they_are_matched_by_number(names):
    match = match_classes(names, 3, None, 3)
    assert (match.sources, match.by, str(match)) == ((0, 1, 2), "number", "3 of 3 classes kept by number")


@pytest.mark.parametrize(("classes", "sources"), [(3, (0, 1, None)), (1, (0,))])
def test_without_any_names_further_classes_are_new_and_missing_ones_dropped(classes, sources):
    match = match_classes(None, classes, None, 2)
    assert match.sources == sources
    assert (match.new, match.dropped) == ((("2",), ()) if classes == 3 else ((), ("1",)))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"), [(["a", "b"], None, "does not name"), (None, ["a"], "label_names")]
)
def test_other_numbers_of_classes_with_names_on_one_side_only_are_refused(ours, theirs, said):
    with pytest.raises(UsageError, match=said):
        match_classes(ours, 2, theirs, 1)


def test_names_that_occur_twice_are_refused_unless_both_lists_are_equal():
    assert match_classes(["a", "a"], 2, ["a", "a"], 2).sources == (0, 1)
    with pytest.raises(UsageError, match="the recipe's classes 0 and 2 are both called 'a'"):
        match_classes(["a", "b", "a"], 3, ["a", "b"], 2)
    with pytest.raises(UsageError, match="its classes 0 and 1 are both called 'a'"):
        match_classes(["a"], 1, ["a", "a"], 2)


def test_long_lists_of_names_are_cut():
    match = match_classes([f"new {n}" for n in range(9)], 9, ["old"], 1)
    assert "0 of 9 classes kept by name, 9 new (new 0 · " in str(match)
    assert "and 4 more" in str(match)
