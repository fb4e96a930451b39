"""`python -m examples.image_service`, as a user runs it: in a process of its own."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from PIL import Image

from examples.image_service import command
from examples.image_service.demo import make_demo
from examples.image_service.server import PhotoServer
from tests.loops import LOOPS, command_on
from tests.markdown import sample, without_figures

if TYPE_CHECKING:
    from conftest import Web

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.image_service"]
GIVE_UP = 60.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(*arguments: str | Path, loop: str = "asyncio", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command_on(loop, "examples.image_service"), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command, to be read line by line; it is killed at the end if the test has not seen its end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def names(path: Path, pattern: str = "*.jpg") -> set[str]:
    return {file.name for file in path.glob(pattern)}


def assert_only_whole_images(out: Path) -> None:
    """Every file in the folder, hidden ones too, can be decoded to its end."""
    for path in out.iterdir():
        with Image.open(path) as image:
            image.load()


# -- output --


def test_a_folder_of_photos_becomes_thumbnails_and_a_contact_sheet(folder: Path, out: Path) -> None:
    done = run(folder, "--out", out, "--size", "320x200", "--quality", "70", "--workers", "2")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"Resizing 3 images to fit 320x200 pixels, 2 at a time, into {out}/"
    assert len(lines) == 7
    for line in lines[1:4]:
        assert re.fullmatch(r"SUCCESS: Image img00\d processed in \d+ms \(\d+\.\d KB -> \d+\.\d KB\)", line)
    assert re.fullmatch(r"3 images in \d+\.\d s: 3 done, 0 skipped, 0 failed", lines[4])
    assert re.fullmatch(r"\d+\.\d images/s, \d+\.\d MB/s in, \d+\.\d MB/s out", lines[5])
    assert lines[6] == f"Contact sheet: {out}/contact-sheet.png"
    assert names(out) == {"img001.jpg", "img002.jpg", "img003.jpg"}
    assert_only_whole_images(out)


def test_the_address_of_the_dashboard_is_printed_on_request(folder: Path, out: Path) -> None:
    done = run(folder, "--out", out, "--dashboard")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Dashboard: http://127\.0\.0\.1:\d+/#token=[\w-]{32}", done.stdout.splitlines()[0])


def test_a_rerun_skips_what_is_there_and_has_the_same_contact_sheet(folder: Path, out: Path) -> None:
    run(folder, "--out", out)
    sheet = (out / "contact-sheet.png").read_bytes()

    done = run(folder, "--out", out)

    assert done.returncode == 0
    assert len(re.findall(r"^SKIPPED: Image img00\d - already exists \(800x600, \d+\.\d KB\)$", done.stdout, re.M)) == 3
    assert "3 images in" in done.stdout
    assert "0 done, 3 skipped, 0 failed" in done.stdout
    assert (out / "contact-sheet.png").read_bytes() == sheet


def test_a_photo_that_changed_is_made_anew(folder: Path, out: Path) -> None:
    run(folder, "--out", out)
    Image.new("RGB", (800, 800), "red").save(folder / "img002.jpg")

    done = run(folder, "--out", out)

    assert "SUCCESS: Image img002" in done.stdout
    assert "1 done, 2 skipped, 0 failed" in done.stdout


def test_an_image_that_fails_is_told_with_its_place_and_fails_the_command(folder: Path, out: Path) -> None:
    Image.new("RGB", (4001, 2)).save(folder / "img005.jpg")

    done = run(folder, "--out", out, "--max-width", "4000")

    assert done.returncode == 1
    assert (
        f"FAILED: Image img005 - image too large: max width is 4000px ({folder}/img005.jpg)" in done.stdout.splitlines()
    )
    assert "4 images in" in done.stdout
    assert "3 done, 0 skipped, 1 failed\n" in done.stdout


def test_a_photo_of_a_phone_is_not_too_wide(folder: Path, out: Path) -> None:
    Image.new("RGB", (8064, 2000)).save(folder / "img005.jpg")

    assert run(folder, "--out", out).returncode == 0


def test_a_file_of_urls_is_read_with_its_comments_and_each_url_once(tmp_path: Path, out: Path) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text("\ufeff# photos\n\nnonsense  # no URL\nftp://a/b.jpg\r\n nonsense\n", encoding="utf-8")

    done = run(urls, "--out", out)

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Resizing 2 images to fit ")
    assert "FAILED: Image nonsense - not an http or https URL (nonsense)" in lines
    assert "FAILED: Image b - not an http or https URL (ftp://a/b.jpg)" in lines
    assert lines[-1] == "No contact sheet: there are no thumbnails."


def test_passwords_and_tokens_in_urls_are_not_printed(tmp_path: Path, out: Path) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text("ftp://user:SECRET@host/a.jpg?token=SECRET\nhttp://user:SECRET@host:99999/b.jpg\n")

    done = run(urls, "--out", out)

    assert done.returncode == 1
    assert "SECRET" not in done.stdout + done.stderr
    assert f"(ftp://host/a.jpg?..., line 1 of {urls})" in done.stdout
    done = run("ftp://user:SECRET@host/a.jpg?token=SECRET", "--out", out)
    assert done.stderr == "image_service: error: ftp://host/a.jpg?... is not an http or https URL\n"


def test_photos_of_subfolders_are_found_and_hidden_and_other_files_are_not(
    folder: Path, out: Path, photo: bytes
) -> None:
    for path in ("sub/img001.JPG", "sub/ümläut #1?.jpeg", ".hidden/img009.jpg", ".img010.jpg", "notes.txt"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(photo)

    done = run(folder, "--out", out)

    assert done.returncode == 0
    assert "5 images in" in done.stdout
    made = names(out)
    assert {"img002.jpg", "img003.jpg", "ümläut_1_.jpg", "img001.jpg"} < made
    assert len(made) == 5


def test_a_name_that_is_no_text_is_no_obstacle(folder: Path, out: Path, photo: bytes) -> None:
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(photo)

    done = run(folder, "--out", out, PYTHONIOENCODING="ascii")

    assert done.returncode == 0
    assert "4 done, 0 skipped, 0 failed" in done.stdout


def test_the_thumbnails_of_an_earlier_run_are_no_photos(folder: Path) -> None:
    run(folder, "--out", folder / "small")

    done = run(folder, "--out", folder / "small")

    assert "0 done, 3 skipped, 0 failed" in done.stdout


def test_the_output_folder_may_hold_the_folder_of_photos(folder: Path) -> None:
    assert "3 done" in run(folder, "--out", folder.parent).stdout


def test_a_reader_that_leaves_early_is_no_reason_for_a_traceback(folder: Path, out: Path) -> None:
    words = [*COMMAND, str(folder), "--out", str(out), "--workers", "1"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == b""
        assert process.wait(GIVE_UP) == 1
    assert_only_whole_images(out)


def test_on_a_terminal_a_progress_bar_stays_below_the_lines(folder: Path, out: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvpe(
            COMMAND[0], [*COMMAND, str(folder), "--out", str(out)], os.environ | {"TERM": "xterm", "COLUMNS": "120"}
        )
    shown = b""
    while select.select([terminal], [], [], GIVE_UP)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # Linux reports a closed other end this way
            break
    os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = shown.decode()
    assert "3/3" in text
    assert "images/s" in text
    assert re.search(r"\x1b\[32mSUCCESS: Image img001 processed", text)


# -- the demo --


@pytest.fixture(scope="session")
def demo_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos of a demo of three, made already."""
    folder = tmp_path_factory.mktemp("demo")

    async def make() -> None:
        async with PhotoServer() as server:
            await make_demo(server, folder, 3)

    asyncio.run(make())
    return folder


def demo(out: Path, photos: Path, *more: str, loop: str = "asyncio") -> subprocess.CompletedProcess[str]:
    return run("--out", out, "--demo-photos", photos, "--demo-count", "3", "--timeout", "2", *more, loop=loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_demo_succeeds_if_exactly_the_broken_images_fail_each_for_its_reason(
    out: Path, demo_photos: Path, loop: str
) -> None:
    done = demo(out, demo_photos, loop=loop)

    assert (done.returncode, done.stderr) == (0, "")
    failures = sorted(line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert failures == [
        "FAILED: Image img003 - download failed: timed out after 2 s (as expected)",
        "FAILED: Image img005 - image too large: max width is 4000px (as expected)",
        "FAILED: Image img006 - image damaged: the file is truncated (as expected)",
        "FAILED: Image img007 - not an image: expected JPEG, PNG, WebP, GIF, BMP or TIFF (as expected)",
        "FAILED: Image img008 - download failed: the server responded with 404 Not Found (as expected)",
    ]
    assert "8 images in" in done.stdout
    assert "3 done, 0 skipped, 5 failed as expected" in done.stdout
    assert names(out) == {"img001.jpg", "img002.jpg", "img004.jpg"}
    printed = {without_figures(line) for line in done.stdout.splitlines()}
    assert sample(ROOT / "examples" / "image_service" / "README.md", "make demo") - printed == set()


def test_the_demo_fails_if_a_broken_image_does_not_fail(out: Path, demo_photos: Path) -> None:
    done = demo(out, demo_photos, "--max-width", "5000")

    assert done.returncode == 1
    assert "WRONG: Image img005 is too wide but did not fail" in done.stdout


def test_the_demo_makes_its_photos_once(out: Path, demo_photos: Path, start: Start) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_photos.glob("photo*")}

    process = start("--out", out, "--demo-photos", demo_photos, "--demo-count", "3")
    read_lines(process, 1)

    assert len(before) == 3
    assert {path: path.stat().st_mtime_ns for path in demo_photos.glob("photo*")} == before


def test_the_demo_keeps_its_photos_with_its_output_unless_told_otherwise(
    out: Path, demo_photos: Path, start: Start
) -> None:
    out.mkdir()
    (out / ".demo-photos").symlink_to(demo_photos)

    process = start("--out", out, "--demo-count", "3")

    assert process.stdout is not None
    assert f"kept in {out}/.demo-photos" in process.stdout.readline()
    assert len(read_lines(process, 3)) == 3


# -- what makes no sense --


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", ""], "the folder name must not be empty (use . for the current folder)"),
        (
            ["--out", "x", "--size", "800"],
            "must be WIDTHxHEIGHT, each from 1 to 65500 pixels, such as 800x600, got '800'",
        ),
        (
            ["--out", "x", "--size", "0x600"],
            "must be WIDTHxHEIGHT, each from 1 to 65500 pixels, such as 800x600, got '0x600'",
        ),
        (["--out", "x", "--size", "-1x6"], "argument --size: "),
        (["--out", "x", "--size", "99999x6"], "argument --size: "),
        (["--out", "x", "--quality", "0"], "argument --quality: must be an integer from 1 to 100, got '0'"),
        (["--out", "x", "--quality", "good"], "must be an integer from 1 to 100, got 'good'"),
        (["--out", "x", "--workers", "0"], "argument --workers: must be an integer >= 1, got '0'"),
        (["--out", "x", "--workers", "many"], "argument --workers: must be an integer >= 1, got 'many'"),
        (["--out", "x", "--timeout", "nan"], "argument --timeout: must be a number >= 0.001, got 'nan'"),
        (["--out", "x", "--rate", "0"], "argument --rate: must be a number >= 0.001, got '0'"),
        (["--out", "x", "--fast"], "unrecognized arguments: --fast"),
        (["--out", "x", "--siz\x1b[31me", "9"], "unrecognized arguments: --siz?[31me (see --help"),
    ],
)
def test_arguments_that_make_no_sense_get_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)

    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err
    assert re.fullmatch(r"image_service: error: [^\n]+\n", told.err)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "nowhere is neither a URL nor an existing file or folder"),
        ("ftp://a/b.jpg", "ftp://a/b.jpg is not an http or https URL"),
        ("no\x1b[31mwhere", "no?[31mwhere is neither a URL nor"),
    ],
)
def test_a_source_that_is_not_there_gets_one_sentence_and_status_2(out: Path, source: str, says: str) -> None:
    done = run(source, "--out", out)

    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert re.fullmatch(r"image_service: error: [^\n]+\n", done.stderr)
    assert not out.exists()


def test_a_source_without_photos_is_told_as_that(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe\x00")

    for source, says in (
        ("empty", "there are no photos in the folder"),
        ("empty.txt", "there are no URLs in the file"),
        ("data.bin", "is neither a photo nor a text file of URLs"),
    ):
        done = run(tmp_path / source, "--out", out)
        assert done.returncode == 2
        assert says in done.stderr


def test_the_output_folder_cannot_be_the_source(folder: Path) -> None:
    done = run(folder, "--out", folder)

    assert done.returncode == 2
    assert "is the output folder, which cannot also be a source" in done.stderr
    assert names(folder) == {"img001.jpg", "img002.jpg", "img003.jpg"}


def test_an_output_that_is_no_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for out, said in [
        (tmp_path / "file", r"\S+ is a file, not a folder"),
        (tmp_path / "file" / "sub", r"cannot write to the folder [^\n]+"),
    ]:
        done = run(folder, "--out", out)
        assert done.returncode == 2
        assert re.fullmatch(rf"image_service: error: {said}\n", done.stderr)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    done = run(folder, "--out", tmp_path / "locked")

    assert done.returncode == 2
    assert "Permission denied" in done.stderr


def test_a_missing_package_is_told_with_what_to_install(tmp_path: Path, out: Path) -> None:
    # -S: without the packages that are installed; those of asyncpool itself are found by their path.
    done = subprocess.run(
        [sys.executable, "-S", *COMMAND[1:], "--out", out], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert (
        "is not installed; to install the packages that the examples need, run python3 -m pip install -e '.[examples]'"
        in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1


# -- Ctrl+C --


@pytest.fixture
def many(folder: Path, photo: bytes) -> Path:
    """A folder with enough photos to interrupt a run."""
    for number in range(4, 61):
        (folder / f"img{number:03}.jpg").write_bytes(photo)
    return folder


def read_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """Wait until the command has printed `count` successful images."""
    assert process.stdout is not None
    told: list[str] = []
    for line in process.stdout:
        told += [line] if line.startswith("SUCCESS") else []
        if len(told) == count:
            break
    return told


def rest_of(process: subprocess.Popen[str]) -> str:
    # Not communicate(): it would pass over what read_lines() has read ahead.
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(GIVE_UP)
    return output


def test_the_first_interrupt_finishes_what_is_under_way_and_tells_the_rest(many: Path, out: Path, start: Start) -> None:
    process = start(many, "--out", out, "--workers", "2")
    told = read_lines(process, 5)

    process.send_signal(signal.SIGINT)
    rest = rest_of(process)

    assert process.returncode == 130
    assert "Stopping: finishing the images in progress; press Ctrl+C again to cancel them." in rest
    done = len(told) + rest.count("SUCCESS")
    unfinished = re.findall(r"^UNFINISHED: Image (img\d+) \(", rest, re.M)
    assert done + len(unfinished) == 60
    assert unfinished == sorted(unfinished)
    assert names(out).isdisjoint({f"{name}.jpg" for name in unfinished})
    assert len(names(out)) == done
    assert rest.splitlines()[-1] == "Interrupted: run the same command again to process the rest."
    assert_only_whole_images(out)


@pytest.mark.asyncio
async def test_an_interrupt_does_not_wait_for_a_host_that_asks_for_time(site: Web, tmp_path: Path, out: Path) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "3600"})

    urls = [f"{site.base}/img{number}.jpg" for number in range(3)]
    site.replies |= {url.removeprefix(site.base): busy for url in urls}
    arguments = [*COMMAND[1:], *urls, "--out", str(out), "--workers", "1"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    while not site.requests:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(GIVE_UP):
        output, _ = await process.communicate()

    assert process.returncode == 130
    assert len(site.requests) == 1
    lines = output.decode().splitlines()
    assert [line.partition(" (")[0] for line in lines if line.startswith(("UNFINISHED", "FAILED"))] in (
        [f"UNFINISHED: Image img{number}" for number in range(3)],
        ["FAILED: Image img0 - download failed: the server responded with 429 Too Many Requests"]
        + [f"UNFINISHED: Image img{number}" for number in (1, 2)],  # the interrupt was before the response
    )


def test_the_next_run_does_the_rest(many: Path, out: Path, start: Start) -> None:
    process = start(many, "--out", out, "--workers", "2")
    read_lines(process, 5)
    process.send_signal(signal.SIGINT)
    rest_of(process)
    there = len(names(out))

    done = run(many, "--out", out)

    assert done.returncode == 0
    assert f"{60 - there} done, {there} skipped, 0 failed" in done.stdout


def test_the_second_interrupt_cancels_what_is_under_way(
    folder: Path, out: Path, demo_photos: Path, start: Start
) -> None:
    # The demo's third image stalls: only a cancellation ends it before its timeout.
    process = start("--out", out, "--demo-photos", demo_photos, "--demo-count", "3", "--timeout", "600")
    read_lines(process, 3)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "Stopping" not in process.stdout.readline():
        pass

    time.sleep(0.5)  # before that, it is not a second signal
    process.send_signal(signal.SIGINT)
    rest = rest_of(process)

    assert process.returncode == 130
    assert "UNFINISHED: Image img003" in rest
    assert "Traceback" not in rest


def test_an_interrupt_while_the_demo_is_painted_leaves_only_whole_photos(out: Path, start: Start) -> None:
    process = start("--out", out, "--demo-count", "20")
    while not names(out / ".demo-photos") and process.poll() is None:
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)
    rest = rest_of(process)

    assert process.returncode == 130
    assert rest.splitlines()[1:] == ["Interrupted: run the same command again to continue."]
    assert_only_whole_images(out / ".demo-photos")


@pytest.mark.parametrize("images", [0, 3, 11])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_run_that_is_killed_at_any_moment_leaves_only_whole_files(
    many: Path, out: Path, start: Start, number: signal.Signals, images: int
) -> None:
    process = start(many, "--out", out, "--workers", "4")
    read_lines(process, images)

    process.send_signal(number)
    if number != signal.SIGKILL:
        process.send_signal(number)
    rest = rest_of(process)

    assert "Traceback" not in rest
    if number == signal.SIGKILL:  # nothing can be cleaned up: a temporary file may be left, under its own name
        for left in out.glob(".image-service-*.part"):
            left.unlink()
    if out.exists():
        assert_only_whole_images(out)
