"""CPython's own tests, run plainly and under framelift's bytecode evaluator.

    python -m framelift.conformance test_grammar test_generators ...
    python -m framelift.conformance --more --json FILE

Each module runs twice, each time in a process of its own: once as it is, once with every test method called through the
evaluator. Exit status 0 when both give the same outcome for every test; the share of Python frames that the evaluator
ran itself, rather than handing them to CPython, is printed beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import unittest

MODULES = [
    "test_grammar",
    "test_generators",
    "test_genexps",
    "test_listcomps",
    "test_dictcomps",
    "test_scope",
    "test_extcall",
    "test_keywordonlyarg",
    "test_positional_only_arg",
    "test_unpack",
    "test_unpack_ex",
    "test_with",
    "test_raise",
    "test_except_star",
    "test_augassign",
    "test_class",
    "test_super",
    "test_property",
    "test_decorators",
    "test_fstring",
    "test_patma",
    "test_named_expressions",
    "test_dict",
    "test_list",
    "test_iter",
    "test_functools",
    "test_contextlib",
    "test_dataclasses",
    "test_enum",
    "test_collections",
]


# Of the standard library, beyond the language's own tests. Not among them: test_dis, which looks at instructions that
# CPython's interpreter has specialized, and test_sys_settrace, whose traced frames are CPython's own.
MORE = [
    "test___future__",
    "test_abc",
    "test_argparse",
    "test_array",
    "test_ast",
    "test_asyncgen",
    "test_baseexception",
    "test_bdb",
    "test_binop",
    "test_bisect",
    "test_bool",
    "test_builtin",
    "test_bytes",
    "test_call",
    "test_cmath",
    "test_code",
    "test_codecs",
    "test_compare",
    "test_compile",
    "test_complex",
    "test_configparser",
    "test_contains",
    "test_context",
    "test_contextlib_async",
    "test_copy",
    "test_copyreg",
    "test_coroutines",
    "test_csv",
    "test_datetime",
    "test_defaultdict",
    "test_deque",
    "test_descr",
    "test_dictviews",
    "test_difflib",
    "test_dynamicclassattribute",
    "test_enumerate",
    "test_exception_hierarchy",
    "test_exception_variations",
    "test_exceptions",
    "test_flufl",
    "test_format",
    "test_fractions",
    "test_frame",
    "test_funcattrs",
    "test_future",
    "test_gc",
    "test_generator_stop",
    "test_genericalias",
    "test_genericclass",
    "test_getattr",
    "test_global",
    "test_hash",
    "test_heapq",
    "test_index",
    "test_inspect",
    "test_int",
    "test_ipaddress",
    "test_isinstance",
    "test_itertools",
    "test_json",
    "test_keyword",
    "test_lambda",
    "test_long",
    "test_math",
    "test_memoryview",
    "test_metaclass",
    "test_module",
    "test_numeric_tower",
    "test_opcodes",
    "test_operator",
    "test_ordered_dict",
    "test_pathlib",
    "test_pdb",
    "test_peepholer",
    "test_pickle",
    "test_pow",
    "test_pprint",
    "test_queue",
    "test_random",
    "test_range",
    "test_re",
    "test_reprlib",
    "test_richcmp",
    "test_sched",
    "test_set",
    "test_setcomps",
    "test_shlex",
    "test_slice",
    "test_sort",
    "test_statistics",
    "test_string",
    "test_string_literals",
    "test_strtod",
    "test_struct",
    "test_structmembers",
    "test_subclassinit",
    "test_syntax",
    "test_textwrap",
    "test_tokenize",
    "test_traceback",
    "test_tuple",
    "test_type_aliases",
    "test_type_annotations",
    "test_type_params",
    "test_typechecks",
    "test_types",
    "test_typing",
    "test_unicode",
    "test_unicode_identifiers",
    "test_userdict",
    "test_userlist",
    "test_userstring",
    "test_uuid",
    "test_weakref",
    "test_weakset",
]


class _Outcomes(unittest.TestResult):
    """Records one word per test, and the error text of what did not pass."""

    def __init__(self):
        super().__init__()
        self.outcomes = {}
        self.texts = {}
        self._seen = {}

    def startTest(self, test):
        super().startTest(test)
        # Doctests may share a name: count them.
        n = self._seen[test.id()] = self._seen.get(test.id(), 0) + 1
        self._key = test.id() if n == 1 else f"{test.id()}#{n}"
        self.outcomes[self._key] = "pass"

    def _note(self, word, err=None):
        self.outcomes[self._key] = word
        if err:
            self.texts[self._key] = f"{err[0].__name__}: {err[1]}"

    def addError(self, test, err):
        if getattr(test, "_testMethodName", None) is None and not hasattr(self, "_key"):
            self._key = str(test)
        self._note("error", err)

    def addFailure(self, test, err):
        self._note("failure", err)

    def addSkip(self, test, reason):
        if hasattr(self, "_key"):
            self._note("skip")

    def addExpectedFailure(self, test, err):
        self._note("expected failure")

    def addUnexpectedSuccess(self, test):
        self._note("unexpected success")

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._note("failure", err)


def _evaluate_methods(suite, evaluate):
    """Makes every test method of the suite run under the evaluator."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            _evaluate_methods(test, evaluate)
            continue
        name = getattr(test, "_testMethodName", None)
        if name is None or isinstance(test, unittest.loader._FailedTest):
            continue
        # The runner calls _callTestMethod(method): the method itself stays what it is.
        if not isinstance(test, unittest.IsolatedAsyncioTestCase):
            test._callTestMethod = lambda method: _must_be_none(evaluate(method))


def _must_be_none(value):
    del value


def run_module(name, evaluated, ignore=()):
    """In this process. Returns outcomes, error texts and the evaluator's counts."""
    from test import support

    support.use_resources = ()
    # Native counting must not depend on torch: only the extension is needed.
    sys.setswitchinterval(0.005)
    if evaluated:
        from framelift import _C
    module = __import__(f"test.{name}", fromlist=["*"])
    loader = unittest.TestLoader()
    suite = loader.loadTestsFromModule(module)
    if evaluated:
        _C._eval_counts(True)
        _evaluate_methods(suite, _C._evaluate)
    result = _Outcomes()
    suite.run(result)
    counts = _C._eval_counts() if evaluated else (0, 0)
    return {"outcomes": result.outcomes, "texts": result.texts, "counts": counts}


def _in_process(name, evaluated, timeout):
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "out.json")
        command = [sys.executable, "-m", "framelift.conformance", "--child", out, "--mode",
                   "evaluated" if evaluated else "plain", name]  # fmt: skip
        path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        env = dict(os.environ, PYTHONHASHSEED="0")
        env["PYTHONPATH"] = os.pathsep.join(p for p in (path, env.get("PYTHONPATH")) if p)
        try:
            run = subprocess.run(command, cwd=scratch, env=env, timeout=timeout, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return {"outcomes": {}, "texts": {}, "counts": (0, 0), "died": f"no end after {timeout} s"}
        if not os.path.exists(out):
            tail = (run.stderr.strip().splitlines() or ["?"])[-1]
            return {"outcomes": {}, "texts": {}, "counts": (0, 0), "died": f"exit {run.returncode}: {tail}"}
        with open(out) as f:
            return json.load(f)


def compare(plain, evaluated):
    """The tests whose outcomes differ: [(id, plain, evaluated, error text)]."""
    ids = sorted(set(plain["outcomes"]) | set(evaluated["outcomes"]))
    return [
        (i, plain["outcomes"].get(i, "missing"), evaluated["outcomes"].get(i, "missing"), evaluated["texts"].get(i, ""))
        for i in ids
        if plain["outcomes"].get(i) != evaluated["outcomes"].get(i)
    ]


def _passed(run):
    return sum(word in ("pass", "skip", "expected failure") for word in run["outcomes"].values())


def _found(modules):
    """Those that this version of CPython has."""
    import importlib.util

    return [name for name in modules if importlib.util.find_spec(f"test.{name}")]


def _write(path, version, row):
    """Puts this version's results into a JSON file beside those of others."""
    data = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
    data[version] = row
    with open(path, "w", encoding="utf-8") as f:
        json.dump(dict(sorted(data.items())), f, indent=1)
        f.write("\n")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m framelift.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="test modules of CPython (default: a list of language tests)")
    parser.add_argument("--more", action="store_true", help="also many modules of the standard library's tests")
    parser.add_argument("--json", metavar="FILE", help="put the results into this file, beside other versions'")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per module and run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        found = run_module(options.modules[0], options.mode == "evaluated")
        with open(options.child, "w") as f:
            json.dump(found, f)
        return 0
    differing, differences = 0, []
    modules = options.modules or MODULES + (_found(MORE) if options.more else [])
    total = [0, 0, 0, 0]
    print(f"{'module':28}{'plain':>14}{'evaluated':>14}{'frames ours':>14}")
    for name in modules:
        plain = _in_process(name, False, options.timeout)
        ours = _in_process(name, True, options.timeout)
        done, given = ours["counts"]
        share = f"{100 * done / (done + given):.1f} %" if done + given else "-"
        cells = [f"{_passed(r)}/{len(r['outcomes'])}" for r in (plain, ours)]
        print(f"{name:28}{cells[0]:>14}{cells[1]:>14}{share:>14}", flush=True)
        for run in (plain, ours):
            if "died" in run:
                differing += 1
                differences.append(f"{name}: died: {run['died']}")
                print(f"    died: {run['died']}")
        for test, a, b, text in compare(plain, ours) if "died" not in ours else ():
            differing += 1
            differences.append(f"{test}: plain {a}, evaluated {b}")
            print(f"    {test}: plain {a}, evaluated {b}: {text.splitlines()[0] if text else ''}")
        total = [t + n for t, n in zip(total, (_passed(plain), _passed(ours), done, given), strict=True)]
    share = 100 * total[2] / max(1, total[2] + total[3])
    if options.json:
        row = {"modules": len(modules), "plain": total[0], "evaluated": total[1], "differing": differences}
        version = ".".join(str(n) for n in sys.version_info[:3])
        _write(options.json, version, {**row, "frames_evaluated": round(share / 100, 5)})
    print(f"plain {total[0]}, evaluated {total[1]}, differing {differing}; {share:.2f} % of frames evaluated")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
