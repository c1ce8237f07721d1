"""The mutations that prove the tests can be made: `python -m tests.mutations` makes them."""

import ast
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tests.mutations import MUTATIONS, REPOSITORY, SYNCS, Mutation, Trials


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_mutation_has_its_place_and_is_python(mutation):
    source = (REPOSITORY / mutation.file).read_text()
    assert ast.dump(ast.parse(mutation.apply(source))) != ast.dump(ast.parse(source))
    assert mutation.tests
    for test in mutation.tests:
        file, _, names = test.partition("::")
        name = names.rpartition("::")[2]
        assert f"def {name.partition('[')[0]}" in (REPOSITORY / file).read_text()


def test_every_test_that_is_named_is_there():
    tests = {test for mutation in MUTATIONS for test in mutation.tests}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *sorted(tests)]
    collected = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr


def functions(source):
    """Each function of a module, as a tree."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)}


def syncs(function):
    """Whether a function has anything brought to stable storage."""
    names = ("fsync", "sync", "sync_directory", "sync_directories")
    return any(isinstance(n, ast.Attribute) and n.attr in names for n in ast.walk(function))


def test_every_function_that_syncs_is_mutated():
    """Whoever adds an fsync says which test needs it."""
    missing = []
    for file in REPOSITORY.glob("stor/**/*.py"):
        source, path = file.read_text(), file.relative_to(REPOSITORY).as_posix()
        mutants = [functions(m.apply(source)) for m in SYNCS if m.file == path]
        for name, function in functions(source).items():
            changed = any(ast.dump(m[name]) != ast.dump(function) for m in mutants)
            if syncs(function) and not changed:
                missing.append(f"{path}: {name}")
    assert not missing


@pytest.mark.parametrize("old", ["no such line", "Mirror"])
def test_a_mutation_without_its_one_place_is_refused(old):
    mutation = attrs.evolve(MUTATIONS[0], file="stor/mirror/mirror.py", old=old)
    with pytest.raises(ValueError, match="times in stor/mirror/mirror"):
        mutation.apply((REPOSITORY / mutation.file).read_text())


def test_a_mutation_that_nobody_notices_survives(tmp_path):
    test = "tests/test_digest.py::test_a_digest_is_shown_by_its_digits"
    trials = Trials(tmp_path)
    harmless = Mutation("nothing", "stor/digest.py", "frozen", "frozen", (test,))
    assert trials.run(harmless.tests, harmless) is None
    source = Path(REPOSITORY / "stor/digest.py").read_text()
    broken = attrs.evolve(harmless, old=source, new="raise SystemExit")
    with pytest.raises(RuntimeError, match="the tests did not run"):
        trials.run(broken.tests, broken)
