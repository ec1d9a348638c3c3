"""What the programs can be told: the configuration's keys, read from their one table, and each program's own."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Key:
    name: str
    parts: frozenset
    secret: bool

    @property
    def variable(self):
        return "TESSERA_" + self.name.replace(".", "_").upper()

    @property
    def flag(self):
        return "--" + re.sub("[_.]", "-", self.name)


@cache
def keys():
    """Every key, by name."""
    table = (ROOT / "crates/service/src/config/keys.rs").read_text().split("pub const KEYS", 1)[1]
    entry = re.compile(r'(Key \{\s*secret: true,\s*\.\.)?\bkey\(\s*"([a-z_.]+)",\s*([A-Z| ]+),')
    found = [Key(name, frozenset(parts.split(" | ")), bool(secret)) for secret, name, parts in entry.findall(table)]
    assert len(found) == len(re.findall(r"\bkey\(", table.split("];", 1)[0])), "keys.rs is written in a way that is not understood"
    return {key.name: key for key in found}


def is_known_variable(name):
    """Whether a process reads the variable: ours, or one of the standard ones that its libraries read."""
    ours = {key.variable for key in keys().values()}
    return name in ours or re.fullmatch(r"(OTEL|AWS)_[A-Z0-9_]+", name) is not None


def wrong_arguments(command):
    """What a command line says that its program does not understand."""
    mains = {"tessera-coordinator": "coordinator/src/main.rs", "tessera-worker": "worker/src/main.rs"}
    program, *arguments = command
    if program not in mains:
        return [program]
    parts = re.search(r"const PARTS: u8 = ([^;]+);", (ROOT / mains[program]).read_text())[1]
    parts = set(parts.replace("keys::", "").split(" | "))
    flags = {key.flag for key in keys().values() if key.parts & parts}
    return [argument for argument in arguments if argument.partition("=")[0] not in flags or "=" not in argument]
