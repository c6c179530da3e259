"""`python -m embedding_learning search`: the nearest images as text, JSON and a figure."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import embedding_learning
from embedding_learning import plots
from embedding_learning.__main__ import main as program
from embedding_learning.cli.exit_codes import run_command
from embedding_learning.data.datasets import ImageSet, cub200
from embedding_learning.errors import UsageError
from embedding_learning.inference import embedding_file
from embedding_learning.inference.embedding_model import EmbeddingModel, load_model
from embedding_learning.inference.search import describe_result, draw_result
from tests.helpers.saved_models import DIMENSION, save_model

pytestmark = pytest.mark.usefixtures("tiny_backbones")

CLOSE = 1e-5


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Path:
    path = tmp_path_factory.mktemp("model") / "birds.params"
    save_model(path, "--model=tiny")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> EmbeddingModel:
    return load_model(file)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_cub: Path, model: EmbeddingModel) -> Path:
    """A folder with the birds in data, all of them embedded in birds.npy in their boxes."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(tiny_cub, folder / "data")
    before = os.getcwd()
    os.chdir(folder)
    try:
        embedding_learning.embed(model, cub200.read(Path("data")), "birds.npy")
    finally:
        os.chdir(before)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def birds(here: Path) -> ImageSet:
    return cub200.read(Path("data"))


def by_hand(
    queries: np.ndarray, gallery: np.ndarray, k: int, own: dict[int, set[int]]
) -> list[list[int]]:
    """The nearest rows of each query, one distance at a time."""
    found = []
    for query, vector in enumerate(queries.astype(np.float64)):
        distances = np.sqrt(((gallery.astype(np.float64) - vector) ** 2).sum(axis=1))
        order = [
            row for row in np.argsort(distances, kind="stable") if row not in own.get(query, ())
        ]
        found.append(order[:k])
    return found


def class_of(birds: ImageSet, row: int) -> str:
    return birds.class_names[birds.labels[row]]


@pytest.mark.parametrize("k", [1, 4, 31, 100])
def test_images_of_the_gallery_find_all_others(
    here: Path, model: EmbeddingModel, birds: ImageSet, k: int
) -> None:
    queries = [3, 30, 3, 0]
    found = embedding_learning.search(model, "birds.npy", [birds.paths[row] for row in queries], k)
    vectors = np.load("birds.npy")
    own = {number: {row} for number, row in enumerate(queries)}
    # As they are in the gallery, in their boxes.
    np.testing.assert_array_equal(found.queries.vectors, vectors[queries])
    assert found.rows.tolist() == by_hand(vectors[queries], vectors, k, own)
    assert found.rows.shape == (4, min(k, 31))
    exact = np.linalg.norm(vectors[found.rows] - vectors[queries][:, None], axis=2)
    np.testing.assert_allclose(found.distances, exact, atol=CLOSE)
    for number, query in enumerate(queries):
        for place, row in enumerate(found.rows[number]):
            assert found.is_right(number, place) == (birds.labels[row] == birds.labels[query])


def test_new_images_find_any(here: Path, model: EmbeddingModel, birds: ImageSet) -> None:
    (here / "new").mkdir(exist_ok=True)
    for row in (7, 20):
        shutil.copy(birds.paths[row], f"new/{row}.jpg")
    found = embedding_learning.search(model, "birds.npy", ["new"], 5)
    assert found.queries.paths == ["new/20.jpg", "new/7.jpg"]
    expected = model.embed(found.queries.paths)
    np.testing.assert_array_equal(found.queries.vectors, expected)
    assert found.rows.tolist() == by_hand(expected, np.load("birds.npy"), 5, {})
    assert [found.is_right(0, place) for place in range(5)] == [None] * 5


def test_paths_are_as_good_as_texts(here: Path, model: EmbeddingModel, birds: ImageSet) -> None:
    queries = birds.paths[:2]
    found = embedding_learning.search(model, Path("birds.npy"), map(Path, queries), 3)
    expected = embedding_learning.search(model, "birds.npy", queries, 3)
    assert found.queries.paths == queries
    np.testing.assert_array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("gallery", ["data/images", "./data/images/", "list.txt"])
def test_a_folder_or_list_is_embedded_for_the_search(
    here: Path, model: EmbeddingModel, birds: ImageSet, gallery: str
) -> None:
    Path("list.txt").write_text("\n".join(sorted(birds.paths)))
    paths = sorted(birds.paths)
    found = embedding_learning.search(model, gallery, [paths[9], os.path.abspath(paths[2])], 3)
    vectors = model.embed(paths)
    assert found.rows.tolist() == by_hand(vectors[[9, 2]], vectors, 3, {0: {9}, 1: {2}})
    assert [found.gallery.path(row) for row in found.rows[0]] == [paths[r] for r in found.rows[0]]


def test_vectors_find_others_but_not_their_own_image(
    here: Path, model: EmbeddingModel, birds: ImageSet
) -> None:
    some = birds.take(np.array([5, 17, 29]))
    embedding_learning.embed(model, some, "some.npy")
    found = embedding_learning.search(model, "birds.npy", ["some.npy"], 40)
    vectors = np.load("birds.npy")
    own = {0: {5}, 1: {17}, 2: {29}}
    assert found.rows.tolist() == by_hand(np.load("some.npy"), vectors, 31, own)
    assert [found.queries.label(q) for q in range(3)] == [class_of(birds, r) for r in (5, 17, 29)]


def test_queries_of_several_kinds_keep_their_order(
    here: Path, model: EmbeddingModel, birds: ImageSet, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    strange = rng.normal(size=(2, DIMENSION)).astype(np.float32)
    np.save(tmp_path / "strange.npy", strange)
    shutil.copy(birds.paths[8], tmp_path / "new.jpg")
    queries = [birds.paths[1], f"{tmp_path}/strange.npy", "birds.npy", f"{tmp_path}/new.jpg"]
    found = embedding_learning.search(model, "birds.npy", queries, 6)
    vectors = np.load("birds.npy")
    new = model.embed([tmp_path / "new.jpg"])
    asked = np.concatenate([vectors[[1]], strange, vectors, new])
    own = {0: {1}, **{3 + row: {row} for row in range(32)}}
    np.testing.assert_allclose(found.queries.vectors, asked, atol=CLOSE)
    assert found.rows.tolist() == by_hand(asked, vectors, 6, own)
    names = [found.queries.path(query) for query in range(len(asked))]
    assert names[:5] == [birds.paths[1], None, None, *birds.paths[:2]]
    assert os.path.samefile(str(names[-1]), tmp_path / "new.jpg")


def test_an_image_that_stands_twice_in_the_gallery_is_left_out_twice(
    here: Path, model: EmbeddingModel, birds: ImageSet
) -> None:
    paths = [birds.paths[row] for row in (4, 9, 4, 12, 9, 4)]
    Path("twice.txt").write_text("\n".join(paths))
    found = embedding_learning.search(model, "twice.txt", [paths[0], paths[1], birds.paths[20]], 9)
    # The third query is not in the gallery, and finds all of it.
    assert [sorted(row for row in rows if row >= 0) for rows in found.rows] == [
        *([1, 3, 4], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5])
    ]
    assert [found.is_right(0, 5), found.distances[0, 5]] == [None, np.inf]
    assert [len(query["neighbours"]) for query in describe_result(found)] == [3, 4, 6]
    # A copy in another file is another image.
    shutil.copy(birds.paths[4], "copy.jpg")
    copied = embedding_learning.search(model, "twice.txt", ["copy.jpg"], 3)
    assert sorted(copied.rows[0]) == [0, 2, 5]
    np.testing.assert_allclose(copied.distances, 0, atol=CLOSE)


@pytest.mark.slow
def test_images_of_the_querys_group_are_left_out(
    here: Path, file: Path, model: EmbeddingModel, birds: ImageSet, capsys: Any
) -> None:
    names = ["left", "", "right", "left"]
    lines = [f"{path},x,test,{names[row % 4]}" for row, path in enumerate(birds.paths[:12])]
    Path("rooms.csv").write_text("\n".join(["path,label,split,group", *lines]))
    embed = ["embed", str(file), "--data-path=rooms.csv", "--output=groups.npy"]
    assert program(embed) == 0
    vectors = np.load("groups.npy")
    left = {row for row in range(12) if row % 4 in (0, 3)}
    own = {0: left, 1: {1}, 2: {2, 6, 10}}
    # By the file of the query, which is in the gallery, and by vectors with groups of their own.
    found = embedding_learning.search(model, "groups.npy", birds.paths[:3], 8)
    assert [[row for row in rows if row >= 0] for rows in found.rows.tolist()] == by_hand(
        vectors[:3], vectors, 8, own
    )
    assert (found.rows[0] < 0).sum() == 2
    draw_result(found, "found.png")
    assert cv2.imread("found.png").size
    of_all = embedding_learning.search(model, "groups.npy", ["groups.npy"], 8)
    np.testing.assert_array_equal(of_all.rows[:3], found.rows)
    assert [len(query["neighbours"]) for query in describe_result(found)] == [6, 8, 8]
    # Another group is another output.
    Path("rooms.csv").write_text(
        "\n".join(["path,label,split,group", *lines]).replace("right", "up")
    )
    assert program(embed) == 0
    assert (
        embedding_file.read_embeddings("groups.npy", None).groups == ["left", "", "up", "left"] * 3
    )
    Path("one.csv").write_text("path,label,split,group\n" + "\n".join(lines[:4:3]))
    assert program([*embed[:2], "--data-path=one.csv", "--output=pair.npy"]) == 0
    with pytest.raises(
        UsageError, match=r"pair\.npy: holds no image but those of the queries' own"
    ):
        embedding_learning.search(model, "pair.npy", ["pair.npy"])


def test_a_gallery_of_the_query_alone_has_nothing_to_find(
    here: Path, model: EmbeddingModel, birds: ImageSet
) -> None:
    with pytest.raises(UsageError, match="holds no image but the query's own"):
        embedding_learning.search(model, birds.paths[0], [birds.paths[0]])
    # Another query finds it.
    found = embedding_learning.search(model, birds.paths[0], birds.paths[:2])
    assert found.rows.tolist() == [[-1], [0]]
    draw_result(found, "found.png")


def test_impossible_arguments_are_refused(model: EmbeddingModel, birds: ImageSet) -> None:
    own = birds.paths[:1]
    for k in (0, -2):
        with pytest.raises(ValueError, match=f"k must be at least 1, not {k}"):
            embedding_learning.search(model, "birds.npy", own, k)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        embedding_learning.search(model, birds.paths[0], own, batch_size=0)
    for queries in ([], birds.paths[0], Path(birds.paths[0])):
        with pytest.raises(ValueError, match="a list of queries expected, not "):
            embedding_learning.search(model, "birds.npy", queries)


def test_class_folders_label_what_is_searched_and_what_is_asked(
    here: Path, model: EmbeddingModel, birds: ImageSet, tmp_path: Path
) -> None:
    names = [class_of(birds, row) for row in range(0, 8)]
    for row, name in enumerate(names):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(birds.paths[row], tmp_path / name)
    found = embedding_learning.search(model, "data/images", [str(tmp_path)], 2)
    assert found.queries.labels == names
    assert set(found.gallery.labels) == set(birds.class_names)
    # Each finds the file that it is a copy of.
    assert [found.is_right(query, 0) for query in range(8)] == [True] * 8
    # A vector without a label is the image's, and the folder still knows the class.
    embedding_learning.embed(model, birds.paths[:8], f"{tmp_path}/e.npy")
    shutil.copytree("data/images", "copied")
    embedding_learning.embed(model, sorted(str(p) for p in Path("copied").rglob("*.jpg")), "c.npy")
    asked = embedding_learning.search(model, "c.npy", ["copied"], 1).queries
    assert set(asked.labels) == set(birds.class_names)


# Vectors of other models


def test_vectors_of_this_model_cause_no_warning(
    here: Path, model: EmbeddingModel, birds: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    embedding_learning.search(load_model(model_file(here)), "birds.npy", [birds.paths[0]])
    assert caplog.messages == []


def model_file(folder: Path, name: str = "same", **changes: Any) -> Path:
    """A file of the model's weights, its description changed."""
    save_model(folder / f"{name}.params", "--model=tiny", **changes)
    return folder / f"{name}.params"


@pytest.mark.parametrize("change", ["weights", "sizes"])
def test_vectors_of_another_model_cause_a_warning(
    here: Path,
    birds: ImageSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    other = load_model(model_file(tmp_path, image_size=41 if change == "sizes" else 40))
    if change == "weights":
        other.net.dense.bias.set_data(other.net.dense.bias.data() + 1)
    embedding_learning.search(other, "birds.npy", [birds.paths[0]], 1)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("birds.npy: was embedded with another model, so dist")
    # What belongs to a run and not to its network makes no difference.
    caplog.clear()
    same = load_model(model_file(tmp_path, "later", epoch=9, recall_at_1=0.25))
    embedding_learning.search(same, "birds.npy", [birds.paths[0]], 1)
    assert caplog.messages == []


def test_vectors_of_another_length_cause_a_warning(
    here: Path, model: EmbeddingModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = np.load("birds.npy")
    vectors[3] *= 2
    np.save(tmp_path / "long.npy", vectors)
    embedding_learning.search(model, "birds.npy", [str(tmp_path / "long.npy")], 1)
    assert caplog.messages == [
        f"{tmp_path}/long.npy: row 3 has the length 2; this model's vectors have the length 1, so "
        "distances to others mean little."
    ]


# What is printed


def test_the_help_says_that_the_querys_own_file_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        program(["search", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "A query whose own file is in the gallery is left out" in text


def test_the_table(
    here: Path, file: Path, birds: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    query = birds.paths[6]
    assert program(["search", str(file), "birds.npy", query, "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    vectors = np.load("birds.npy")
    (rows,) = by_hand(vectors[[6]], vectors, 3, {0: {6}})
    assert lines[0] == f"{query}  ({class_of(birds, 6)})"
    for rank, (line, row) in enumerate(zip(lines[1:], rows), 1):
        judged = "right" if birds.labels[row] == birds.labels[6] else "wrong"
        distance = np.linalg.norm(vectors[row] - vectors[6])
        name = f"{birds.paths[row]}  ({class_of(birds, row)})"
        assert line == f"    {rank}  {distance:.4f}  {judged}  {name}"
    assert len(lines) == 4


def test_without_classes_nothing_is_right_or_wrong(
    here: Path, file: Path, birds: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text("\n".join(birds.paths))
    assert program(["search", str(file), "list.txt", birds.paths[0], "-k1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == birds.paths[0]
    assert re.fullmatch(r"    1  \d\.\d{4}  data/images/\S+\.jpg", lines[1])


def test_vectors_without_a_list_are_reported_by_row(
    here: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("birds.npy", tmp_path / "bare.npy")
    bare = str(tmp_path / "bare.npy")
    assert program(["search", str(file), bare, bare, "-k1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Without names a vector finds itself.
    for row in range(32):
        assert lines[2 * row : 2 * row + 2] == [f"row {row}", f"    1  0.0000  row {row}"]


def test_names_that_would_speak_to_the_terminal_do_not(
    here: Path, file: Path, birds: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["red \x1b[31m.jpg", "two\nlines.jpg", os.fsdecode(b"latin\xe4.jpg")]
    for name in odd:
        shutil.copy(birds.paths[0], tmp_path / name)
    assert program(["search", str(file), str(tmp_path), str(tmp_path / odd[0])]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 3
    assert "\x1b" not in out
    for name in (r"red \x1b[31m.jpg", r"two\nlines.jpg", r"latin\udce4.jpg"):
        assert name in out
    assert program(["search", str(file), str(tmp_path), str(tmp_path / odd[0]), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    names = {os.path.basename(image["path"]) for image in found["neighbours"]}
    assert names == set(odd[1:])


def test_json_holds_all_that_is_known(
    here: Path, file: Path, birds: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(birds.paths[3], tmp_path / "new.jpg")
    queries = [birds.paths[3], f"{tmp_path}/new.jpg"]
    assert program(["search", str(file), "birds.npy", *queries, "-k2", "--json"]) == 0
    known, new = json.loads(capsys.readouterr().out)
    found = embedding_learning.search(load_model(file), "birds.npy", queries, 2)
    assert known == {
        "query": birds.paths[3],
        "row": 0,
        "label": class_of(birds, 3),
        "neighbours": [
            {
                "path": birds.paths[row],
                "row": row,
                "label": class_of(birds, row),
                "distance": pytest.approx(float(distance), abs=1e-7),
                "right": bool(birds.labels[row] == birds.labels[3]),
            }
            for row, distance in zip(found.rows[0].tolist(), found.distances[0])
        ],
    }
    assert (new["row"], new["label"]) == (1, None)
    assert [image["right"] for image in new["neighbours"]] == [None, None]
    # With the lines of one query on a line of their own.
    assert program(["search", str(file), "birds.npy", *queries, "--json"]) == 0
    assert capsys.readouterr().out.count("\n") == 4


# The picture


def test_what_is_drawn(
    here: Path, model: EmbeddingModel, birds: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    names = (
        "query_names", "query_thumbnail", "neighbours", "distances", "names", "thumbnail", "path",
        "right",
    )  # fmt: skip
    monkeypatch.setattr(
        plots, "plot_search_results", lambda *values: drawn.update(zip(names, values))
    )
    shutil.copy(birds.paths[3], "new-one.jpg")
    queries = [birds.paths[11], "new-one.jpg"]
    found = embedding_learning.search(model, "birds.npy", queries, 7)
    draw_result(found, "x.png")
    assert drawn["query_names"] == [class_of(birds, 11)[4:].replace("_", " "), "new-one.jpg"]
    assert drawn["right"][1].tolist() == [None] * 7
    np.testing.assert_array_equal(drawn["distances"], found.distances)

    def pixels(path: str) -> np.ndarray:
        return cv2.imread(path)[:, :, ::-1]

    for query, path in enumerate(queries):
        np.testing.assert_array_equal(drawn["query_thumbnail"](query), pixels(path))
        for place, row in enumerate(found.rows[query]):
            image = drawn["neighbours"][query, place]
            assert drawn["names"][image] == class_of(birds, row)[4:].replace("_", " ")
            np.testing.assert_array_equal(drawn["thumbnail"](image), pixels(birds.paths[row]))
            if query == 0:
                assert drawn["right"][0, place] == (birds.labels[row] == birds.labels[11])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["found.png", "found.svg"])
def test_a_picture_is_drawn_beside_the_table(
    here: Path,
    file: Path,
    birds: ImageSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    picture = tmp_path / name
    queries = [birds.paths[0], birds.paths[31]]
    flags = ["-k", "2", "--picture", str(picture)]
    assert program(["search", str(file), "birds.npy", *queries, *flags]) == 0
    assert capsys.readouterr().out.count("\n") == 6
    if name.endswith("png"):
        assert min(cv2.imread(str(picture)).shape[:2]) > 300
    else:
        assert picture.read_text().count("<image") >= 1


# Mistakes


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ("MODEL birds.npy", "the following arguments are required: QUERY"),
        ("missing.params birds.npy QUERY", "MODEL missing.params: no such file"),
        ("MODEL missing.npy QUERY", "missing.npy: no such file"),
        ("MODEL missing QUERY", "missing: no such file or folder"),
        ("MODEL birds.npy missing.jpg", "missing.jpg: no such file or folder"),
        ("MODEL birds.npy data/classes.txt", r"data/1 001\.Bird_1: cannot be read: No such file"),
        ("MODEL birds.npy birds.csv", "birds.csv: is a CSV file"),
        ("MODEL birds.npy empty", "empty: holds no image"),
        ("MODEL empty QUERY", "empty: holds no image"),
        ("MODEL wide.npy QUERY", r"wide\.npy: holds an array \(32, 32\); vectors \(n, 16\)"),
        ("MODEL birds.npy QUERY -k 0", "-k 0: must be at least 1"),
        ("MODEL - QUERY -", "-: the standard input can be read only once; write one of the lists"),
        ("MODEL birds.npy QUERY -k x", "argument -k: invalid int value: 'x'"),
        ("MODEL birds.npy QUERY --workers=-2", "--workers -2: must be at least 0"),
        ("missing.params birds.npy QUERY --picture=x.gif", "x.gif: end the name in .png or .svg"),
        (
            "MODEL birds.npy QUERY --picture=nowhere/x.png",
            "nowhere/x.png: the folder nowhere",
        ),
        (
            "MODEL birds.npy a.png --picture=./a.png",
            r"--picture \./a\.png: would replace a\.png, which is read; name another file",
        ),
        # The images of a gallery are read too.
        (
            "MODEL photos QUERY --picture=photos/b.png",
            r"--picture photos/b\.png: would replace photos/b\.png, which is read; name another",
        ),
        ("MODEL bare.npy QUERY --picture=x.png", "--picture: no .csv file names the image of row"),
        ("MODEL gone.npy QUERY --picture=x.png", r"gone/\d+\.jpg: cannot be read: No such file"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    here: Path, file: Path, birds: ImageSet, capsys: pytest.CaptureFixture[str], arguments: str,
    message: str,
) -> None:  # fmt: skip
    Path("a.png").write_bytes(b"a photograph")
    Path("photos").mkdir(exist_ok=True)
    cv2.imwrite("photos/b.png", np.zeros((8, 8, 3)))
    np.save("wide.npy", np.repeat(np.load("birds.npy"), 2, axis=1))
    shutil.copy("birds.npy", "bare.npy")
    shutil.copy("birds.npy", "gone.npy")
    lines = [f"{row},gone/{row}.jpg," for row in range(32)]
    Path("gone.csv").write_text("\n".join(["row,path,label", *lines]))
    words = arguments.replace("MODEL", str(file)).replace("QUERY", birds.paths[0]).split()
    assert run_command("program", lambda: program(["search", *words])) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"program: error: {message}.*\n", err), err
    assert not Path("x.png").exists()


def test_a_gallery_that_cannot_be_decoded_is_named(
    here: Path, model: EmbeddingModel, birds: ImageSet, tmp_path: Path
) -> None:
    shutil.copytree("data/images", tmp_path / "images")
    bad = sorted((tmp_path / "images").rglob("*.jpg"))[3]
    bad.write_text("no image")
    with pytest.raises(embedding_learning.data.datasets.DataError, match=re.escape(str(bad))):
        embedding_learning.search(model, str(tmp_path / "images"), [birds.paths[0]])
