"""The mistakes of `mutations.py`, which only a person runs, are of the code as it is."""

from tests.mutations import MUTATIONS, ROOT


def test_every_mistake_is_of_a_line_that_is_there_and_of_tests_that_are():
    for mutation in MUTATIONS:
        assert (ROOT / mutation.file).read_text().count(mutation.right) == 1, mutation
        assert mutation.wrong != mutation.right
        for test in mutation.tests.split():
            assert (ROOT / "tests" / f"test_{test}.py").is_file(), mutation
