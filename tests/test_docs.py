"""README and docs/: every block is run or says why not; flags, links and quoted messages exist.

The commands run in a folder with small data sets and a small trained network, in this process, with
flags that make them short. `GPUS` and `--use-pretrained` need what a test machine lacks.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

import embedding_learning
from docs import write_flags
from embedding_learning import __main__ as program
from embedding_learning.cli import plot, train_flags
from embedding_learning.experiments import process_pool
from embedding_learning.training import settings
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model
from tests.helpers.torchvision_names import names_of

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")])
# Pages whose blocks another test runs.
RUN_BY = {"extending.md": "tests/test_extending.py"}
# Flags of other programs that the pages name.
OTHERS = {"--branch", "--depth", "--no-deps", "--nodes", "--ntasks-per-node", "--gpus-per-node"}
OTHERS |= {"--overlap", "--original", "--pytorch-python", "--fix", "--rm", "--crops", "--rounds"}
# An abbreviation.
OTHERS |= {"--data"}

# Of a flag that is typed twice the last one counts.
TINY = {
    "image_size": 40,
    "crop_size": 32,
    "epochs": 1,
    "batch_num": 1,
    "batch_size": 6,
    "batch_k": 3,
    "embed_dim": 8,
    "workers": 1,
    "model": "tiny",
}
TINY_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
ADDED = {
    "train": TINY_FLAGS,
    "check": ["--batch-size=6", "--batch-k=3"],
    # One run of each table.
    "compare": ["--losses=margin", "--samplings=random", "--seeds=1"],
    "launch": ["--dry-run"],
}


class Block(NamedTuple):
    """A fenced block: its page and line, its language, its text, and the comment before it."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def is_run(self) -> bool:
        return not self.comment and self.page.name not in RUN_BY


def find_blocks(page: Path) -> list[Block]:
    """Returns the blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    return [
        Block(page, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1] or "")
        for match in found
    ]


BLOCKS = [block for page in PAGES for block in find_blocks(page)]
RUN_HERE = sorted({block.page for block in BLOCKS if block.is_run})


def find_commands(block: Block) -> list[list[str]]:
    """Returns the commands of a bash block, as lists of words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards what commands print, and lets them set up logging as they like."""
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def run_command(words: list[str]) -> None:
    """Runs a command of the program in this process; raises what it raises."""
    assert words[0] == "python3", words
    if words[1:3] == ["-m", "embedding_learning.runtime.mxnet_compat"]:
        with quiet():
            importlib.import_module(words[2]).main()
        return
    if words[1] == "train.py":
        verb, arguments = "train", words[2:]
    else:
        assert words[1:3] == ["-m", "embedding_learning"], words
        verb, arguments = words[3], words[4:]
    # Neither a GPU nor ImageNet weights are there: CPU contexts replace the GPUs.
    gpus = [word for word in arguments if word.startswith("--gpus=")]
    contexts = [f"--cpu-contexts={word.count(',') + 1}" for word in gpus if verb == "train"]
    arguments = [word for word in arguments if word not in (*gpus, "--use-pretrained")]
    # The glyph set takes half a minute to draw.
    arguments = [
        word.replace("--data-path=glyphs", "--data-path=data/CUB_200_2011") for word in arguments
    ]
    arguments = ["query.jpg" if "/glyphs-v1/" in word else word for word in arguments]
    # A file of torchvision's weights: `tiny` is no network of torchvision.
    if verb == "export" and arguments[1].endswith(".safetensors"):
        arguments[0] = "squeezenet.params"
    before, after = arguments, []
    if "--" in arguments:
        split = arguments.index("--")
        before, after = arguments[:split], ["--", *arguments[split + 1 :], *TINY_FLAGS]
    if "--list-models" not in arguments:
        before = [*before, *ADDED.get(verb, []), *contexts]
    status = 0
    with quiet():
        try:
            status = program.main([verb, *before, *after])
        except SystemExit as end:  # after --list-models
            status = end.code
    assert status == 0, words


def run_here(
    tasks: Sequence[process_pool.Task], slots: Sequence[Sequence[str]], *_: object
) -> None:
    """Replaces `process_pool.run_all`: the runs of a comparison need no processes of their own."""

    def train(flags: Sequence[str], log: Path) -> int:
        log.touch()
        return program.main(["train", *flags, *slots[0]])

    for task in tasks:
        task(train)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, write_cub: Callable[..., Path], tiny_backbones: None
) -> Path:
    """A folder with everything that the commands of the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    data = write_cub(folder / "data" / "CUB_200_2011", [4] * 8)
    shutil.copytree(data / "images", folder / "photographs")
    images = sorted(data.rglob("*.jpg"))
    for name, image in zip(("query.jpg", "a.jpg", "b.jpg"), images):
        shutil.copy(image, folder / name)
    pairs = [
        f"{a},{b},same\n{a},{c},different\n" for a, b, c in zip(images, images[1:3], images[4:])
    ]
    (folder / "pairs.csv").write_text("first,second,type\n" + "".join(pairs))
    shapes = names_of("resnet18")
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "resnet18.safetensors")
    save_model(folder / "squeezenet.params")
    (folder / "hosts.txt").write_text("127.0.0.1\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text("#!/bin/sh\n")
    (folder / "bin" / "ssh").chmod(0o755)
    shutil.copy(ROOT / "train.py", folder)
    (folder / "embedding_learning").symlink_to(ROOT / "embedding_learning")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, folder)
        run_command(["python3", "train.py", "--save-model-prefix=birds"])
    return folder


def prepare(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets commands run in the folder, within this process."""
    patch.chdir(folder)
    patch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    # `launch` removes it for the processes that it starts; this puts it back.
    patch.setenv("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_plots")
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_the_blocks_of_the_page_run(
    page: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    shutil.copytree(trained, folder, symlinks=True)
    prepare(monkeypatch, folder)
    monkeypatch.setattr(process_pool, "run_all", run_here)
    make_config = settings.make_config

    def make_tiny_config(values: dict[str, Any], saves: bool = True) -> Any:
        return make_config({**values, **TINY}, saves)

    for block in find_blocks(page):
        if not block.is_run:
            continue
        if block.language == "bash":
            for words in find_commands(block):
                run_command(words)
            continue
        # Only Python: the flags of commands are in `TINY_FLAGS`.
        with monkeypatch.context() as patch, quiet():
            patch.setattr(settings, "make_config", make_tiny_config)
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_runs_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```\w", text, re.M)) == len(find_blocks(page))
    for block in find_blocks(page):
        assert block.language in ("bash", "python"), f"{page.name}:{block.line}"
        test = RUN_BY.get(page.name)
        if block.comment.startswith("run by "):
            test = block.comment[len("run by ") :]
        elif block.comment:
            assert re.fullmatch(r"not run: \S.*", block.comment), block.comment
        if test:
            assert page.name in (ROOT / test).read_text(encoding="utf-8"), test
    comments = re.findall(r"^<!-- (?:not run|run by).*-->\n(.*)", text, re.M)
    assert all(line.startswith("```") for line in comments), comments


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "bash" and b.page.name not in RUN_BY],
    ids=lambda block: f"{block.page.name}:{block.line}",
)
def test_the_training_commands_are_accepted(block: Block) -> None:
    """Also of blocks that are not run: their flags are read and checked."""
    text = block.text.replace("\\\n", " ")
    for command in re.findall(r"^python3 train\.py (.*)$", text, re.M):
        flags = shlex.split(command, comments=True)
        if "--list-models" not in flags and "--tensorboard" not in command:
            train_flags.parse(flags)


def sentences(page: Path) -> str:
    """Returns the text of a page without its blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_commands_in_sentences_name_exists(page: Path) -> None:
    """Their modules, verbs, targets of make and files of requirements."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"`((?:python3? -m|make|pip install) [^`]*)`", sentences(page)):
        first, *words = shlex.split(command.partition(" && ")[0])
        if first == "make":
            targets = [word for word in words if "=" not in word and word != "…"]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), command
        elif first == "pip" and "-r" in words:
            assert (ROOT / words[words.index("-r") + 1]).is_file(), command
        elif first.startswith("python"):
            module = words[1].replace(".", "/")
            places = (ROOT / f"{module}.py", ROOT / module / "__main__.py")
            assert words[1] == "pytest" or any(place.is_file() for place in places), command
            if words[1] == "embedding_learning" and words[2:]:
                assert words[2] in {*program.VERBS, "VERB", "COMMAND"}, command


def known_flags() -> set[str]:
    """Returns the flags of train.py and of all verbs."""
    parser = train_flags.build_parser()
    known = {name for action in parser._actions for name in action.option_strings}
    commands = [[verb] for verb in program.VERBS] + [["plot", name] for name in plot.PLOTS]
    for words in commands:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            program.main([*words, "--help"])
        known |= set(re.findall(r"--[a-z][\w-]*", output.getvalue()))
    return known


def test_every_flag_on_the_pages_exists() -> None:
    known = known_flags() | OTHERS
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text(encoding="utf-8")))
        assert named <= known, (page.name, named - known)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as forges make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    """Returns the targets of a page's links that are within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if not target.startswith(("http:", "https:"))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in links(page):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_index_lists_every_page() -> None:
    listed = {target.partition("#")[0] for target in links(DOCS / "index.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= listed
    assert "docs/index.md" in links(ROOT / "README.md")


def test_the_site_has_every_page() -> None:
    pages = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    expected = [page.name.lower() for page in [*PAGES, ROOT / "CHANGELOG.md"]]
    assert sorted(pages) == sorted(expected)


def test_the_pictures_are_small() -> None:
    pictures = {target for target in links(ROOT / "README.md") if target.endswith(".png")}
    assert {ROOT / picture for picture in pictures} == set(DOCS.glob("*.png"))
    assert sum((ROOT / picture).stat().st_size for picture in pictures) < 300_000


def test_the_flags_page_is_what_the_program_writes() -> None:
    page = (DOCS / "flags.md").read_text(encoding="utf-8")
    assert page == write_flags.page(), "write it again: python -m docs.write_flags docs/flags.md"


def test_the_demo_in_the_readme_is_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (flags,) = re.findall(r"^DEMO_FLAGS \?= (.*)$", makefile, re.M)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"train\.py --data-path=glyphs (.*?)\n```", readme, re.S)
    assert command.replace("\\\n", " ").split() == flags.split()


def test_the_page_on_python_names_all_public_names() -> None:
    page = (DOCS / "python-api.md").read_text(encoding="utf-8")
    table = page[page.index("## All public names") :]
    assert sorted(set(re.findall(r"`(\w+)`", table))) == embedding_learning.__all__


def quoted_messages() -> list[str]:
    """Returns the messages of this program that the troubleshooting page quotes."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    tables = page[page.index("Messages of this program:") : page.index("## Questions")]
    return [found for found in re.findall(r"^\| `([^`]+)` \|", tables, re.M)]


def source_texts() -> str:
    """Returns all texts of the program, and of the Makefile."""
    texts = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for file in sorted((ROOT / "embedding_learning").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.slow
def test_the_quoted_messages_are_those_of_the_program() -> None:
    messages, texts = quoted_messages(), source_texts()
    assert len(messages) > 40
    for message in messages:
        for part in message.split("…"):
            assert part.strip(" ();:.") in texts, message
