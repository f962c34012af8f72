"""Every test starts from a fixed seed, an empty param store and double precision.

What takes long to import is imported where tests run: the process that hands them out to workers
has no use for it, and these wait for it.
"""

import gc

import pytest


def pytest_collection(session):
    if not session.config.pluginmanager.hasplugin("dsession"):
        import hypothesis

        # The same examples at every run; a first call may take long.
        options = {"derandomize": True, "database": None, "deadline": None}
        hypothesis.settings.register_profile("full", max_examples=100, **options)
        hypothesis.settings.register_profile("quick", max_examples=33, **options)
        is_quick = session.config.option.markexpr == "not slow"
        hypothesis.settings.load_profile("quick" if is_quick else "full")


def pytest_collection_finish():
    """What was imported stays to the end: the search for garbage leaves it out, and is rare."""
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_sessionfinish():
    """One search for all that is left, in place of the five that pytest makes at the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    _put_the_longest_first(items)
    _leave_combinations_to_the_full_run(items)


def _leave_combinations_to_the_full_run(items):
    """Every value of every parameter of a test is in the quick run; all products are in the full.

    Of the products, those come first that have no value of another one.
    """
    seen, combinations = set(), [(item, _values(item)) for item in items if not _is_slow(item)]
    combinations = [(item, values) for item, values in combinations if len(values) > 1]
    for is_new in (all, any):
        rest = []
        for item, values in combinations:
            if is_new(value not in seen for value in values):
                seen |= values
            else:
                rest.append((item, values))
        combinations = rest
    for item, _ in combinations:
        item.add_marker("slow")


def _values(item):
    """The values of a test's parameters; what is parametrized at once counts as one."""
    if not hasattr(item, "callspec"):
        return set()
    params, together = dict(item.callspec.params), []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        together.append({name: params.pop(name) for name in names})
    together += [{name: value} for name, value in params.items()]
    test = item.nodeid.partition("[")[0]
    return {(test, *((name, id(value)) for name, value in values.items())) for values in together}


def _is_slow(item):
    return item.get_closest_marker("slow") is not None


def _put_the_longest_first(items):
    """Workers that share the rest then end together."""

    def place(item):
        if item.path.stem == "test_tutorials":
            return 0
        return 1 if _is_slow(item) else 2

    items.sort(key=place)


def _start():
    import pyro
    import torch

    from pyro_perm.program.seeds import fix_seed

    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    fix_seed()
    pyro.settings.set(module_local_params=False)


@pytest.fixture(autouse=True)
def _clean_state():
    import pyro

    _start()
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def fresh_start():
    """For what the tests of a file share: it is made before the state of any of them."""
    _start()


@pytest.fixture(autouse=True)
def _own_estimators(monkeypatch):
    """An estimator that a test registers competes in its own certificates only."""
    from pyro_perm.estimators import estimator

    monkeypatch.setattr(estimator, "_registered", [*estimator.registered_estimators()])
