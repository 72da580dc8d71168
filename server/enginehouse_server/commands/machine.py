"""The subcommand `machine`."""

import click

from enginehouse_server.engine.machine import Machine, probe_machine
from enginehouse_server.engine.runtimes import Runtime
from enginehouse_server.repository.machines import machine_to_json

from .lines import aligned

__all__ = ["machine", "machine_lines"]


@click.command(short_help="Show what this machine can run engines on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for `check --machine`.")
def machine(as_json: bool) -> None:
    """Show the processor, the GPUs and the runtimes of this machine.

    With --json it is what `enginehouse check --machine FILE` takes to judge a repository for this
    machine on another. Exit code 0.
    """
    found = probe_machine()
    click.echo(machine_to_json(found) if as_json else "\n".join(machine_lines(found)))


def machine_lines(found: Machine) -> list[str]:
    """The machine as lines of text."""
    facts = [
        ("system", f"{found.system}, {found.architecture}, Python {found.python}"),
        ("processor", found.processor),
        ("features", " ".join(found.features) or "none known"),
        ("threads", str(found.num_threads)),
        ("memory", _gib(found.memory_bytes)),
    ]
    facts += [
        (f"GPU {gpu.index}", f"{gpu.name}, {gpu.compute_capability}, {_gib(gpu.memory_bytes)}")
        for gpu in found.gpus
    ]
    if not found.gpus:
        facts.append(("GPU", f"none: {found.gpu_obstacle}"))
    if found.driver:
        facts.append(("driver", f"{found.driver}, CUDA {found.cuda or 'unknown'}"))
    facts += [(runtime.name, _runtime(runtime)) for runtime in found.runtimes]
    return aligned(facts)


def _runtime(runtime: Runtime) -> str:
    if runtime.fault:
        return f"{runtime.version or 'not installed'}, cannot be used: {runtime.fault}"
    if not runtime.version:
        return "not installed"
    providers = [name.removesuffix("ExecutionProvider") for name in runtime.providers]
    more = [f"computes on {', '.join(providers)}"] * bool(providers)
    more += ["computes in bf16 here"] * runtime.has_bf16
    return ", ".join((runtime.version, *more))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes else "unknown"
