"""Slurm scripts that start Ray with ``ray symmetric-run``."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.schema import anything
from rayprompt.errors import did_you_mean

SHORT = {
    "J": "job-name",
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "t": "time",
    "p": "partition",
    "A": "account",
}
SHORT |= {"o": "output", "e": "error", "G": "gpus", "C": "constraint", "q": "qos", "w": "nodelist", "x": "exclude"}
OPTIONS = set(SHORT.values()) | set(
    anything(
        "array begin chdir comment container-image cpus-per-gpu deadline dependency distribution exclusive export "
        "gpu-bind gpu-freq gpus-per-node gpus-per-task gres hint hold input licenses mail-type mail-user mem "
        "mem-per-cpu mem-per-gpu no-requeue ntasks-per-node open-mode overcommit oversubscribe prefer priority quiet "
        "requeue reservation signal spread-job switches tasks-per-node threads-per-core time-min tmp "
        "verbose wait wckey"
    )
)
FORBIDDEN = ("--head", "--port", "--node-ip-address", "--block")  # ray symmetric-run refuses them


@dataclass(frozen=True)
class Option:
    """An ``#SBATCH`` option."""

    value: str
    line: int


@dataclass(frozen=True)
class Word:
    """A word of a command, quotes removed."""

    text: str
    line: int


def check_slurm(text: str, findings: Findings, ray: str) -> None:
    """Bash's own check, then what Slurm and Ray would do. (Which Ray the nodes have, a script does not say.)"""
    _check_bash(text, findings)
    options = _options(text, findings)
    _check_options(options, findings)
    commands = list(_commands(text))
    runs = [words for words in commands if _at(words, "symmetric-run") is not None]
    if len(runs) != 1:
        line = runs[1][0].line if runs else len(text.splitlines())
        findings.add(line, "symmetric-run", f"{len(runs)} commands 'ray symmetric-run': must be one, started by srun")
        return
    variables = dict(re.findall(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=[\"']?([^\s\"'#;(]*)", text, re.MULTILINE))
    _check_run(runs[0], options, variables, findings)
    if "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" not in variables and _nodes(options) != "1":
        findings.add(
            runs[0][0].line,
            "wait",
            "export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 is missing: Ray gives up after 30 s, and nodes may "
            "need longer",
        )


def _check_bash(text: str, findings: Findings) -> None:
    bash = shutil.which("bash")
    if bash is None:  # not on every laptop; the other rules hold without it
        return
    done = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
    found = re.search(r"line (\d+): (.*)", done.stderr)
    if done.returncode:
        findings.add(int(found[1]) if found else 1, "bash", f"bash: {found[2] if found else done.stderr}")


def _options(text: str, findings: Findings) -> dict[str, Option]:
    """The ``#SBATCH`` options that Slurm reads: those before the first command."""
    options: dict[str, Option] = {}
    begun = False
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("#SBATCH"):
            begun = begun or not (line.startswith("#") or not line.strip())
            continue
        if begun:
            findings.add(number, "sbatch", "#SBATCH behind the first command: Slurm does not read it; move it up")
            continue
        for word in re.findall(r"(?<=\s)(--[\w-]+(?:[= ][^\s#-]\S*)?|-\w\s*[^\s#-]\S*)", line):
            name, value = _split(word)
            if name not in OPTIONS:
                findings.add(number, "sbatch", f"--{name}: Slurm has no such option{did_you_mean(name, OPTIONS)}")
            options[name] = Option(value, number)
    return options


def _split(word: str) -> tuple[str, str]:
    if word.startswith("--"):
        name, _, value = word[2:].replace(" ", "=", 1).partition("=")
        return name, value
    return SHORT.get(word[1], word[1]), word[2:].strip()


def _nodes(options: dict[str, Option]) -> str:
    return options["nodes"].value if "nodes" in options else "1"


def _check_options(options: dict[str, Option], findings: Findings) -> None:
    last = max((option.line for option in options.values()), default=1)
    tasks = options.get("tasks-per-node") or options.get("ntasks-per-node")
    if tasks is None or tasks.value != "1":
        given = f"is {tasks.value}" if tasks else "is missing"
        findings.add(
            tasks.line if tasks else last,
            "tasks",
            f"--tasks-per-node {given}: must be 1, as Ray starts once on each node",
        )
    if "exclusive" not in options:
        findings.add(last, "exclusive", "--exclusive is missing: two Rays on one node take each other's ports")
    if "time" not in options:
        findings.add(last, "time", "--time is missing: a search that hangs would hold the nodes; as in --time=12:00:00")
    if not (_nodes(options).isascii() and _nodes(options).isdigit()):
        findings.add(
            options["nodes"].line, "nodes", f"--nodes={_nodes(options)}: must be a number, as Ray waits for it"
        )
    for name in ("gpus-per-task", "gpus"):
        if name in options:
            findings.add(
                options[name].line, "gpus", f"--{name}: must be --gpus-per-node, as many as Ray is told a node has"
            )


def _commands(text: str) -> list[list[Word]]:
    """The commands of a script: words with their lines, continued lines joined; here-documents are not looked at."""
    commands: list[list[Word]] = [[]]
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#"):
            continue
        more = line.rstrip().endswith("\\")
        for word in re.findall(r"\"[^\"]*\"|'[^']*'|[^\s\"']+(?:\"[^\"]*\")?|\S", line.rstrip().removesuffix("\\")):
            if word.startswith("#"):
                break
            commands[-1].append(Word(word.replace('"', "").replace("'", ""), number))
        if not more and commands[-1]:
            commands.append([])
    return [command for command in commands if command]


def _at(words: list[Word], text: str) -> int | None:
    return next((i for i, word in enumerate(words) if word.text == text), None)


def _value(words: list[Word], option: str) -> Word | None:
    """What an option is given, as ``--option value`` or ``--option=value``."""
    for i, word in enumerate(words):
        if word.text == option and i + 1 < len(words):
            return Word(words[i + 1].text, word.line)
        if word.text.startswith(option + "="):
            return Word(word.text.partition("=")[2], word.line)
    return None


def _resolved(value: str, variables: dict[str, str]) -> str:
    found = re.fullmatch(r"\$\{?(\w+)\}?", value)
    return variables.get(found[1], value) if found else value


def _check_run(words: list[Word], options: dict[str, Option], variables: dict[str, str], findings: Findings) -> None:
    start = _at(words, "symmetric-run") or 0
    line, end = words[start].line, _at(words, "--")
    before, after = words[:start], words[start + 1 : end]
    if end is None or end + 1 == len(words):
        findings.add(
            line, "symmetric-run", "ray symmetric-run must have '--' and behind it the command for the first node"
        )
        after = words[start + 1 :]
    if not any(word.text == "srun" for word in before):
        findings.add(line, "symmetric-run", "ray symmetric-run must be started by srun, once on every node")
    elif _value(before, "--cpus-per-task") is None and "SRUN_CPUS_PER_TASK" not in variables:
        findings.add(
            words[0].line,
            "srun-cpus",
            'srun must have --cpus-per-task="$SLURM_CPUS_PER_TASK": it does not take it from #SBATCH, and Ray '
            "would have one "
            "core",
        )
    for word in after:
        if word.text.partition("=")[0] in FORBIDDEN:
            findings.add(word.line, "symmetric-run", f"{word.text}: ray symmetric-run refuses it; leave it out")
    if _value(after, "--address") is None:
        findings.add(line, "symmetric-run", "--address is missing: must be the first node's, with a port: HOST:6379")
    nodes, wanted = _value(after, "--min-nodes"), _nodes(options)
    same = (wanted, "$SLURM_JOB_NUM_NODES", "$SLURM_NNODES")
    if wanted != "1" and (nodes is None or _resolved(nodes.text, variables) not in same):
        given = f"is {nodes.text}" if nodes else "is missing"
        findings.add(
            nodes.line if nodes else line,
            "nodes",
            f"--min-nodes {given}, but the job has {wanted} nodes: must be $SLURM_JOB_NUM_NODES",
        )
    _check_gpus(after, line, options, variables, findings)
    cpus, of_task = _value(after, "--num-cpus"), options.get("cpus-per-task")
    right = (of_task.value if of_task else "", "$SLURM_CPUS_PER_TASK", "$SLURM_CPUS_ON_NODE")
    if cpus is None or _resolved(cpus.text, variables) not in right:
        given = f"is {cpus.text}" if cpus else "is missing: Ray counts all cores of the node"
        wanted = of_task.value if of_task else "--cpus-per-task, which is missing"
        findings.add(
            cpus.line if cpus else line, "cpus", f"--num-cpus {given}; must be $SLURM_CPUS_PER_TASK ({wanted})"
        )


def _check_gpus(
    after: list[Word], line: int, options: dict[str, Option], variables: dict[str, str], findings: Findings
) -> None:
    passed = _value(after, "--num-gpus")
    requested = options.get("gpus-per-node")
    if requested is None and "gres" in options and options["gres"].value.startswith("gpu"):
        requested = options["gres"]
    count = re.split("[:=]", requested.value)[-1] if requested else "0"  # a kind may stand before it: a100:4
    given = _resolved(passed.text, variables) if passed else "none"
    if given not in (count, "$SLURM_GPUS_ON_NODE") and not (passed is None and count == "0"):
        findings.add(
            passed.line if passed else line,
            "gpus",
            f"--num-gpus {given}, but #SBATCH asks for {count} GPUs a node: must be the same",
        )
