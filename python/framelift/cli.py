"""The command `framelift`: bench, explain, ops."""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
import time

import framelift


class _WrongUse(Exception):
    """Options that do not go together, or not with this machine."""


def main(argv=None):
    """Runs the command and returns its exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("framelift: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _WrongUse as error:
        print(f"framelift: error: {error}", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        print(f"framelift: error: {error}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="framelift", description="Makes an unmodified PyTorch model answer faster.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"framelift {framelift.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_bench(commands)
    _add_explain(commands)
    ops = commands.add_parser("ops", help="list the PyTorch operators that engines can compute")
    ops.add_argument("--json", action="store_true", help="one JSON object per line")
    ops.set_defaults(run=_ops)
    return parser


def _add_bench(commands):
    bench = commands.add_parser(
        "bench",
        help="measure models against eager PyTorch, torch.compile, OpenVINO and ONNX Runtime",
        description="Measures each model in a process of its own. Contenders take turns and keep their fastest call.",
    )
    bench.add_argument(
        "--only", action="append", metavar="NAME", help="this model (may be given again); or module:function"
    )
    bench.add_argument("--list", action="store_true", help="print the names of the models and stop")
    bench.add_argument("--batch", type=_positive, metavar="N", help="batch size (default: the model's own)")
    bench.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: other models, in the sizes that suit it (cpu)"
    )
    bench.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="of model and inputs (fp32)")
    bench.add_argument(
        "--against",
        type=_peer_names,
        metavar="PEERS",
        help="compile,openvino,onnxruntime, all or none; eager always takes part and may be named "
        "(default: those installed; on cuda, and in 16 bits, there is compile)",
    )
    bench.add_argument("--rounds", type=_positive, default=10, metavar="N", help="turns of each contender (10)")
    bench.add_argument("--threads", type=_positive, metavar="N", help="threads of each contender (torch's default)")
    bench.add_argument("--timeout", type=_positive, default=900, metavar="S", help="seconds for one model (900)")
    bench.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="one JSON object per line: to FILE, beside the table, or without FILE to stdout, instead of it; "
        "a model that FILE has is not measured again",
    )
    bench.add_argument("--fresh", action="store_true", help="measure models again that FILE has")
    bench.add_argument(
        "--budget", type=_positive, metavar="S", help="begin no model that would not be done after S seconds in all"
    )
    bench.add_argument(
        "--compile-ahead",
        type=_positive,
        metavar="N",
        help="on cuda, let torch.compile compile the models beforehand, N at a time, and measure it from its caches",
    )
    bench.add_argument(
        "--first-calls",
        type=_positive,
        metavar="N",
        help="on cuda, the median of N processes' first calls with warm caches, and of N + 1 of eager's (1)",
    )
    bench.add_argument(
        "--suite",
        choices=["torchvision", "timm", "transformers"],
        help="capture every model of a suite at its smallest size instead, and compare answers; with --json FILE, "
        "models that FILE has are not run again",
    )
    bench.add_argument("--shard", metavar="I/N", help="of a suite, every N-th model from the I-th")
    bench.add_argument("--fullgraph-peer", action="store_true", help="of a suite, also torch.compile(fullgraph=True)")
    bench.add_argument("--in-process", action="store_true", help="measure in this process, for profilers")
    bench.set_defaults(run=_bench)


def _add_explain(commands):
    explain = commands.add_parser(
        "explain",
        help="compile a model, call it twice, and show what was captured and what runs where",
        description="NAME is a model of `framelift bench --list`, or module:function for one of your own, where "
        "function() returns (model, args) or (model, args, kwargs).",
    )
    explain.add_argument("name", metavar="NAME")
    explain.add_argument("--batch", type=_positive, metavar="N", help="batch size (default: the model's own)")
    explain.add_argument(
        "--grad-mode", choices=["inference", "no_grad"], default="inference", help="the caller's (inference)"
    )
    explain.add_argument("--graph", action="store_true", help="print the optimized graphs")
    explain.add_argument("--plan", action="store_true", help="print the steps of the engines")
    explain.add_argument("--profile", action="store_true", help="print the time of each step")
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.set_defaults(run=_explain)


def _bench(args):
    from framelift import zoo
    from framelift.bench.rows import Rows

    if args.suite:
        return _suite(args)
    default = zoo.GPU if args.device == "cuda" else zoo.names()
    if args.list:
        print("\n".join(default))
        return 0
    names = args.only or default
    unknown = [n for n in names if ":" not in n and n not in zoo.names()]
    if unknown:
        raise ValueError(f"no model is named {unknown[0]!r}; `framelift bench --list` prints the names")
    measure, against = _measurement(args)
    to_stdout = args.json == "-"
    kept = Rows(None if to_stdout else args.json)
    rows = []
    with _Progress(len(names), quiet=to_stdout) as progress, contextlib.ExitStack() as stack:
        if args.compile_ahead:
            missing = [n for n in names if args.fresh or not kept.get(n, args.device, args.dtype, args.batch)]
            progress.start(f"torch.compile on {len(missing)} models")
            measure = functools.partial(measure, compiled=_compiled_ahead(args, missing, stack))
        for name in _within_budget(args, names, against, kept):
            row = None if args.fresh else kept.get(name, args.device, args.dtype, args.batch)
            if row is None:
                progress.start(name)
                row = measure(name, progress)
                kept.add(row)
            rows.append(row)
            if to_stdout:
                print(json.dumps(row), flush=True)
    if not to_stdout:
        _print_bench(rows, against)
    for row in rows:
        for what, error in [("error", row.get("error")), *row.get("peer_errors", {}).items()]:
            if error:
                print(f"framelift: {row['model']}: {what}: {error}", file=sys.stderr)
    return 1 if any("error" in row for row in rows) else 0


def _measurement(args):
    """(measure(name, progress), peers) of a device; _WrongUse where it cannot be had here."""
    from framelift.bench import peers, run

    known = peers.CUDA_PEERS if args.device == "cuda" else peers.PEERS if args.dtype == "fp32" else peers.HALF_PEERS
    for peer in args.against or ():
        if peer not in known:
            where = "on cuda" if args.device == "cuda" else f"on the CPU in {args.dtype}"
            raise _WrongUse(f"--against {peer}: {where} the peers are eager, {', '.join(known)}")
    against = args.against
    if args.compile_ahead and args.device == "cpu":
        raise _WrongUse("--compile-ahead: is for --device cuda")
    if args.first_calls and (args.device == "cpu" or args.in_process):
        raise _WrongUse("--first-calls: is for --device cuda, and processes of their own")
    if args.device == "cpu":
        against = [p for p in run.available_peers() if p in known] if against is None else against
        options = {"batch": args.batch, "against": against, "rounds": args.rounds, "threads": args.threads}
        options["dtype"] = args.dtype

        def measure(name, progress):
            if args.in_process:
                return run.measure(name, on_stage=progress.stage, **options)
            return run.measure_apart(name, timeout=args.timeout, **options)

        return measure, against
    from framelift.bench import gpu

    reason = gpu.why_not(args.dtype)
    if reason:
        raise _WrongUse(f"--device cuda: {reason}")
    against = list(known) if against is None else against
    options = {"dtype": args.dtype, "batch": args.batch, "against": against, "rounds": args.rounds}

    if args.compile_ahead and ("compile" not in against or args.in_process):
        raise _WrongUse("--compile-ahead: needs compile among --against, and processes of their own")

    def measure_on_gpu(name, progress, compiled=None):
        if args.in_process:
            return {"model": name, "device": "cuda", "dtype": args.dtype, **gpu.measure(name, **options)}
        calls = args.first_calls or 1
        return gpu.measure_apart(name, timeout=args.timeout, compiled=compiled, first_calls=calls, **options)

    return measure_on_gpu, against


def _compiled_ahead(args, names, stack):
    """torch.compile's caches for these models, in a folder that goes with the stack."""
    from framelift.bench import gpu

    compiled = gpu.Compiled(stack.enter_context(tempfile.TemporaryDirectory(prefix="framelift-compiled-")))
    compiled.fill(names, args.compile_ahead, timeout=args.timeout, dtype=args.dtype, batch=args.batch)
    return compiled


def _within_budget(args, names, against, kept):
    """The names, until one is not expected to be measured before --budget seconds are over."""
    start = time.monotonic()
    for i, name in enumerate(names):
        if args.budget and (args.fresh or not kept.get(name, args.device, args.dtype, args.batch)):
            left = start + args.budget - time.monotonic()
            need = kept.expected_seconds(name, args.device, args.dtype, len(against))
            if need > left:
                print(
                    f"framelift: {name} would take {need:.0f} s of the {max(left, 0):.0f} s left of --budget; "
                    f"{len(names) - i} models are not measured",
                    file=sys.stderr,
                )
                return
        yield name


def _suite(args):
    from framelift.bench import suite
    from framelift.zoo import suites

    if args.device != "cpu":
        raise _WrongUse("--suite: suites are run on the CPU")

    names = suite.shard(suites.names(args.suite), args.shard)
    if args.only:
        unknown = [name for name in args.only if name not in names]
        if unknown:
            raise ValueError(f"{args.suite} has no model named {unknown[0]!r}; add --list for the names")
        names = args.only
    if args.list:
        print("\n".join(names))
        return 0
    to_stdout = args.json == "-"
    options = {"timeout": args.timeout, "threads": args.threads, "peer": args.fullgraph_peer}
    rows = suite.run(
        args.suite,
        names,
        path=None if to_stdout else args.json,
        on_row=lambda row: print(json.dumps(row) if to_stdout else suite.row_line(row), flush=True),
        **options,
    )
    result = suite.summary(rows)
    if not to_stdout:
        print("\n".join(suite.summary_lines(args.suite, result)))
    return 1 if result["wrong"] or result["trouble"] else 0


def _print_bench(rows, against):
    from framelift.bench.run import geomean

    done = [row for row in rows if "error" not in row]
    header = ["model", "lowered", "segments", "breaks", "engines", "cosine", "rel err", "first call", "eager"]
    header += [*against, "framelift", "speedup"]
    table = []
    for row in done:
        table.append(
            [
                row["model"],
                f"{row['lowered'] + row['dead']}/{row['operators']}",
                str(row["segments"]),
                str(row["breaks"]),
                str(row["engines"]),
                f"{row['cosine']:.7f}",
                f"{row['max_rel_err']:.1e}",
                f"{row['first_call_s']:.2f} s",
                *(_ms(row, contender) for contender in ("eager", *against, "framelift")),
                f"{row['speedup']:.2f}x",
            ]
        )
    if table:
        _print_table("", header, table)
    mean = geomean([row["speedup"] for row in done])
    if mean:
        print(f"\ngeomean over {len(done)} models: {mean:.2f}x eager", end="")
        for peer in against:
            ratio = geomean([row[f"{peer}_ms"] / row["framelift_ms"] for row in done if row.get(f"{peer}_ms")])
            if ratio:
                print(f", {ratio:.2f}x {peer}", end="")
        print()


def _ms(row, contender):
    if contender in row.get("peer_errors", {}):
        return "failed"
    milliseconds = row.get(f"{contender}_ms")
    return "" if milliseconds is None else f"{milliseconds:.2f} ms"


def _explain(args):
    import torch

    from framelift import _C, zoo

    with _Progress(1, quiet=args.json) as progress:
        progress.start(args.name)
        entry = zoo.load(args.name, args.batch)
        fast = framelift.compile(entry.model)
        with torch.inference_mode() if args.grad_mode == "inference" else torch.no_grad():
            for _ in range(2):
                fast(*entry.args, **entry.kwargs)
            profile = _C.profile(fast, entry.args, entry.kwargs) if args.profile else None
    explanation = framelift.explain(fast)
    texts = {}
    if args.graph:
        texts["graph"] = _C.graph_text(fast)
    if args.plan:
        texts["plan"] = _C.plan_text(fast)
    if args.json:
        data = explanation.to_dict() | texts
        if profile is not None:
            data["profile"] = [{"step": step, "us": us} for step, us in profile]
        print(json.dumps(data, indent=2, default=str))
        return 0
    print("\n".join(explanation.summary()))
    for title, header, rows in explanation.tables():
        _print_table(title, header, rows)
    for title, text in texts.items():
        print(f"\n{title}\n{text}")
    if profile is not None:
        total = sum(us for _, us in profile) or 1.0
        rows = [(f"{us:.1f}", f"{us / total:.1%}", step) for step, us in profile]
        _print_table(f"profile: {total:.0f} us", ("us", "share", "step"), rows)
    return 0


def _ops(args):
    from framelift import _C

    converters = _C.converters()
    if args.json:
        for aten, dtypes, limits in converters:
            print(json.dumps({"operator": aten, "dtypes": dtypes, "limits": limits}))
    else:
        _print_table(f"{len(converters)} operators", ("operator", "dtypes", "limits"), converters)
    return 0


def _print_table(title, header, rows):
    """Rich on a terminal; elsewhere plain lines that are never wrapped."""
    from framelift.report import plain_table

    if not sys.stdout.isatty():
        print(plain_table(title, header, rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


class _Progress:
    """A bar over models on stderr, when that is a terminal; nothing stays on the screen afterwards."""

    def __init__(self, total, quiet):
        self._total = total
        self._bar = None
        self._shown = not quiet and sys.stderr.isatty()

    def __enter__(self):
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=-1)
        return self

    def start(self, name):
        self._name = name
        if self._bar:
            self._bar.update(self._task, advance=1, description=name)

    def stage(self, text):
        if self._bar:
            self._bar.update(self._task, description=f"{self._name}: {text}")

    def __exit__(self, *exc):
        if self._bar:
            self._bar.stop()


def _positive(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return value


def _peer_names(text):
    known = ("compile", "openvino", "onnxruntime")
    names = [] if text == "none" else list(known) if text == "all" else text.split(",")
    for name in names:
        if name != "eager" and name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}, eager, all, none")
    return [name for name in names if name != "eager"]


if __name__ == "__main__":
    sys.exit(main())
