"""Run git independently of the user's settings, and make checkouts without changing a repository.

Diffs and checkouts must not depend on the settings of the user or of the repository, such as a diff
that can't be applied (`diff.context=0`) or converted line endings (`core.autocrlf`,
gitattributes(5)). So files are compared and written in a separate git folder, which borrows the
objects of the repository by git's `objects/info/alternates`.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pyclassify.utils.masking import mask

_TIMEOUT_SECONDS = 120.0
# They override the settings of all files.
_SETTINGS = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.autocrlf=false", "core.eol=lf"),
    *("core.safecrlf=false", "core.splitIndex=false", "core.untrackedCache=false"),
    *("apply.whitespace=nowarn", "apply.ignoreWhitespace=no", "diff.suppressBlankEmpty=false"),
    *("submodule.recurse=false", "color.ui=false"),
    # Another user may own a repository in a container or a shared folder. git refuses it because
    # its settings can name programs; the commands that run here start none of them.
    "safe.directory=*",
)
# All others are dropped: git sets variables for its hooks, and GIT_DIFF_OPTS changes diffs.
_PASSED_VARIABLES = (
    *("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"),
    *("GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
)
# Files are compared and written byte for byte; "!" since git refuses an encoding that is unset.
_RAW_ATTRIBUTES = "* -text -ident !working-tree-encoding\n"
_GIT_PATHS = ("objects", "shallow", "lfs", "index")
_LIST_ENTRIES = ("ls-files", "-v", "--stage", "-z")
_HIDING_TAGS = ("h", "s", "S")  # assume-unchanged, skip-worktree or both
_CONVERSIONS = ("text", "crlf", "eol", "ident", "working-tree-encoding", "filter")
_GITLINK = "160000"  # the mode of a submodule in an index
_DIFF = (
    *("diff-index", "--binary", "--full-index", "--unified=3", "--no-renames", "--no-ext-diff"),
    *("--no-textconv", "--no-color", "--no-relative", "--ignore-submodules=all"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


def run_git(
    folder: Path,
    *argv: str,
    stdin: bytes = b"",
    settings: Sequence[str] = _SETTINGS,
    variables: dict[str, str] | None = None,
) -> bytes:
    """Run git in a folder.

    Args:
        folder: The folder.
        argv: The command line after `git`.
        stdin: What git reads.
        settings: Settings, `name=value`, that override those of all files.
        variables: Additional environment variables for git.

    Returns:
        The standard output.

    Raises:
        FileNotFoundError: git is not installed.
        OSError: git fails; the message has git's reason and remedy in one line.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _PASSED_VARIABLES
    }
    own = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        process = subprocess.run(
            ["git", *(word for setting in settings for word in ("-c", setting)), *argv],
            cwd=folder,
            input=stdin,
            capture_output=True,
            env={**inherited, **own, **(variables or {})},
            timeout=_TIMEOUT_SECONDS,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"git {argv[0]} timed out after {_TIMEOUT_SECONDS:.0f} s") from error
    if process.returncode:
        raise OSError(f"git {argv[0]} failed: {_format_reason(process.stderr)}")
    return process.stdout


def _format_reason(stderr: bytes) -> str:
    """Format git's stderr in one line: from its first error on, with the remedy that follows."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith(("fatal: ", "error: "))]
    reason = " ".join(lines[errors[0] :] if errors else lines[-1:])
    return mask(reason.removeprefix("fatal: ").removeprefix("error: ")) or "no error message"


def find_root(folder: Path, needs_git: bool = True) -> Path | None:
    """Find the root of the repository that a folder is in, if it is in one.

    Args:
        folder: The folder.
        needs_git: Whether to raise an error if git is not installed.

    Raises:
        OSError: git is not installed, or can't read the repository.
    """
    try:
        return Path(os.fsdecode(run_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    except FileNotFoundError:
        if needs_git:
            raise
    except OSError as error:
        if "not a git repository" not in str(error):
            raise
    return None


class Repository:
    """A git repository, which is only read.

    Args:
        root: The root of its working tree.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def commit(self) -> str:
        """The hash of the current commit.

        Raises:
            OSError: The repository has no commit.
        """
        try:
            return run_git(self.root, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
        except OSError as error:
            raise OSError(f"the git repository {self.root} has no commit yet") from error

    @property
    def remote(self) -> str | None:
        """The URL of the remote `origin`, without credentials; None if there is none."""
        return mask(self.settings.get("remote.origin.url"))

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings of the repository and the user, by their names in lower case."""
        listed = run_git(self.root, "config", "--list", "-z", settings=("safe.directory=*",))
        pairs = (os.fsdecode(pair).partition("\n") for pair in listed.split(b"\0") if pair)
        return {name: value for name, _, value in pairs}

    @property
    def object_format(self) -> str:
        """The hash algorithm of its objects, sha1 or sha256."""
        return self.settings.get("extensions.objectformat", "sha1")

    @cached_property
    def entries(self) -> "dict[str, _Entry]":
        """The entries of its index, by their paths relative to the root."""
        return _parse_entries(run_git(self.root, *_LIST_ENTRIES))

    def list_submodules(self) -> list[str]:
        """List the folders that are submodules, checked out or not."""
        return [name for name, entry in self.entries.items() if entry.mode == _GITLINK]

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The paths in its git folder of objects, shallow, lfs and index."""
        options = [word for name in _GIT_PATHS for word in ("--git-path", name)]
        listed = run_git(self.root, "rev-parse", *options).splitlines()
        paths = ((self.root / os.fsdecode(path)).resolve() for path in listed)
        return dict(zip(_GIT_PATHS, paths, strict=True))

    def find_attributes(self, *options: str) -> dict[str, dict[str, str]]:
        """Find the files that git converts, with the values of their gitattributes(5)."""
        names = b"".join(os.fsencode(name) + b"\0" for name in self.entries)
        argv = ("check-attr", *options, "-z", "--stdin", *_CONVERSIONS)
        words = [os.fsdecode(word) for word in run_git(self.root, *argv, stdin=names).split(b"\0")]
        found: dict[str, dict[str, str]] = {}
        for name, attribute, value in zip(words[0::3], words[1::3], words[2::3], strict=False):
            if value not in ("unspecified", "unset"):
                found.setdefault(name, {})[attribute] = value
        return found

    def find_resized_files(self) -> set[str]:
        """Find the files whose size differs from that of git's object.

        git reports a file as unchanged that it wrote with other line endings, even if the setting
        `core.autocrlf` was changed afterwards.
        """
        sizes = {}
        for name, entry in self.entries.items():
            with suppress(OSError):  # the file was removed
                if entry.mode != _GITLINK:
                    sizes[name] = os.lstat(self.root / name).st_size
        blobs = "".join(f"{self.entries[name].blob}\n" for name in sizes).encode()
        listed = run_git(self.root, "cat-file", "--batch-check=%(objectsize)", stdin=blobs)
        stored = listed.splitlines()  # not a number if the repository lacks the object
        return {
            name for name, size in zip(sizes, stored, strict=True) if size != b"%d" % sizes[name]
        }


def make_checkout(
    repository: Repository, target: Path, commit: str, copies_objects: bool = False
) -> Repository:
    """Make a folder a checkout of a commit, without writing its files.

    Args:
        repository: A repository that has the commit.
        target: The folder, which must exist.
        commit: The commit's hash.
        copies_objects: Whether to copy the objects, so that the repository may be removed.

    Returns:
        The checkout.

    Raises:
        OSError: git fails, or the disk is full.
    """
    git_folder = target / ".git"
    _make_git_folder(repository, git_folder, commit)
    if copies_objects:
        shutil.copytree(repository.paths["objects"], git_folder / "objects", dirs_exist_ok=True)
        (git_folder / "objects/info/alternates").unlink(missing_ok=True)
    if repository.paths["lfs"].is_dir():
        (git_folder / "lfs").symlink_to(repository.paths["lfs"])
    run_git(target, "read-tree", "HEAD")
    checkout = Repository(target)
    _write_attributes(git_folder, checkout.find_attributes("--cached"))
    return checkout


def write_files(checkout: Repository) -> None:
    """Write the files of a checkout's commit as git stores them, byte for byte.

    Only files of git-lfs(1) are converted: their pointers become files.
    """
    run_git(checkout.root, "checkout-index", "--all", "--force", "--quiet", "--index")


class Comparison:
    """A comparison of the tracked files of a repository with its commit, byte for byte.

    Args:
        repository: The repository.
        folder: A folder for a separate git folder.

    Raises:
        OSError: The repository has no commit, or git fails.

    Example:
        >>> with compare(Repository(root)) as comparison:
        ...     names = comparison.list_changed_files()
        ...     diff = comparison.diff()
    """

    def __init__(self, repository: Repository, folder: Path) -> None:
        self._repository, self._folder = repository, folder
        _make_git_folder(repository, folder, repository.commit)
        self._attributes = repository.find_attributes()
        _write_attributes(folder, self._attributes)
        self._copy_index()

    def list_changed_files(self) -> list[str]:
        """List the files that differ from the commit, relative to the root."""
        names = self._run(*_DIFF, "--name-only", "-z", "HEAD").split(b"\0")
        return [os.fsdecode(name) for name in names if name]

    def diff(self, name: str | None = None) -> bytes:
        """Diff a file, or all of them, against the commit, as `git apply` takes it."""
        paths = [] if name is None else ["--", f":(top,literal){name}"]
        return self._run(*_DIFF, "--patch", "HEAD", *paths)

    def list_lost_changes(self, names: Sequence[str], diff: bytes) -> list[str]:
        """List the files that a diff does not restore, by applying it to the commit's index.

        Args:
            names: The files in the diff.
            diff: The diff.
        """
        if not names:
            return []
        index = {"GIT_INDEX_FILE": str(self._folder / "applied")}
        self._run("read-tree", "HEAD", variables=index)
        with suppress(OSError):
            self._run("apply", "--cached", "-", stdin=diff, variables=index)
        restored = _parse_entries(self._run(*_LIST_ENTRIES, variables=index))
        return [name for name in names if not self._is_restored(name, restored.get(name))]

    def _is_restored(self, name: str, entry: "_Entry | None") -> bool:
        if self._attributes.get(name, {}).get("filter") == "lfs":  # git's object is a pointer
            return True
        path = self._repository.root / name
        exists = path.is_symlink() or path.is_file()  # false if a folder replaced it
        if entry is None or not exists:
            return entry is None and not exists
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        blob = b"blob %d\0" % len(content) + content
        algorithm = self._repository.object_format
        return entry.blob == hashlib.new(algorithm, blob, usedforsecurity=False).hexdigest()

    def _copy_index(self) -> None:
        """Copy the index, which knows the unchanged files, without the changes that it may hide.

        The commit's entries replace staged ones; files that the commit lacks stay in it. Files that
        git converts, or that are marked as unchanged (assume-unchanged), are read again.
        """
        index = self._repository.paths["index"]
        for file in (index, *index.parent.glob("sharedindex.*")):
            if file.is_file():
                shutil.copy2(file, self._folder / file.name)
        self._run("read-tree", "--reset", "HEAD")
        committed = _parse_entries(self._run(*_LIST_ENTRIES))
        staged = self._repository.entries
        lines = []
        for name in self._find_unsure_files(staged) & committed.keys():
            entry = committed[name]  # removed and added: a replaced entry retains its flags
            lines += [f"0 {'0' * len(entry.blob)}\t{name}", f"{entry.mode} {entry.blob}\t{name}"]
        for name, entry in staged.items():
            if name not in committed and entry.mode != _GITLINK:
                lines.append(f"{entry.mode} {entry.blob}\t{name}")
        if lines:
            content = b"".join(os.fsencode(line) + b"\0" for line in lines)
            self._run("update-index", "-z", "--index-info", stdin=content)
        self._run("update-index", "-q", "--refresh", "--ignore-submodules")

    def _find_unsure_files(self, staged: "Mapping[str, _Entry]") -> set[str]:
        """Find the files whose bytes may differ from git's object although git sees no change."""
        lfs_files = {
            name for name, values in self._attributes.items() if values == {"filter": "lfs"}
        }
        flagged = (
            name
            for name, entry in staged.items()
            if entry.tag in _HIDING_TAGS and os.path.lexists(self._repository.root / name)
        )
        unsure = {*self._attributes, *self._repository.find_resized_files()} - lfs_files
        return unsure.union(flagged)

    def _run(
        self, *argv: str, stdin: bytes = b"", variables: dict[str, str] | None = None
    ) -> bytes:
        root = self._repository.root
        own = {"GIT_DIR": str(self._folder), "GIT_WORK_TREE": str(root)}
        return run_git(root, *argv, stdin=stdin, variables={**own, **(variables or {})})


@contextmanager
def compare(repository: Repository) -> Iterator[Comparison]:
    """Compare the tracked files of a repository with its commit; see `Comparison`."""
    with tempfile.TemporaryDirectory(prefix="pyclassify-git-") as folder:
        yield Comparison(repository, Path(folder))


class _Entry(NamedTuple):
    """An entry of an index: `ls-files -v` gives its tag, a letter for its state."""

    tag: str
    mode: str
    blob: str


def _parse_entries(listed: bytes) -> dict[str, _Entry]:
    """Parse `ls-files -v --stage -z`."""
    entries = {}
    for line in listed.split(b"\0"):
        if line:
            facts, _, name = line.partition(b"\t")
            tag, mode, blob, _ = facts.decode().split()
            entries[os.fsdecode(name)] = _Entry(tag, mode, blob)
    return entries


def _make_git_folder(repository: Repository, git_folder: Path, commit: str) -> None:
    """Make a git folder at a commit, which borrows the objects of a repository."""
    settings = repository.settings
    config = {
        "core.repositoryformatversion": "0",
        "core.bare": "false",
        "core.filemode": settings.get("core.filemode", "true"),  # false on file systems without
    }
    if repository.object_format != "sha1":
        config["core.repositoryformatversion"] = "1"
        config["extensions.objectformat"] = repository.object_format
    if repository.remote:
        config["remote.origin.url"] = repository.remote
    # A partial clone fetches the objects that it lacks: git-clone(1), --filter.
    for name in ("remote.origin.promisor", "remote.origin.partialclonefilter"):
        if name in settings:
            config[name] = settings[name]
    for folder in ("objects/info", "refs", "info"):
        (git_folder / folder).mkdir(parents=True, exist_ok=True)
    (git_folder / "config").write_text("".join(map(_format_setting, config.items())))
    (git_folder / "HEAD").write_text(f"{commit}\n")
    (git_folder / "objects/info/alternates").write_text(f"{repository.paths['objects']}\n")
    if repository.paths["shallow"].is_file():
        shutil.copyfile(repository.paths["shallow"], git_folder / "shallow")


def _format_setting(setting: tuple[str, str]) -> str:
    section, _, name = setting[0].rpartition(".")
    section, _, subsection = section.partition(".")
    title = f'{section} "{subsection}"' if subsection else section
    value = setting[1].replace("\\", "\\\\").replace('"', '\\"')
    return f'[{title}]\n\t{name} = "{value}"\n'


def _write_attributes(git_folder: Path, attributes: Mapping[str, Mapping[str, str]]) -> None:
    """Write attributes by which git converts no file, except those of git-lfs."""
    converted = [n for n, values in attributes.items() if values.get("filter", "lfs") != "lfs"]
    lines = [f"{_quote_pattern(name)} -filter\n" for name in converted]
    content = _RAW_ATTRIBUTES + "".join(lines)
    (git_folder / "info/attributes").write_bytes(os.fsencode(content))


def _quote_pattern(name: str) -> str:
    """Quote a file's name as a pattern of gitattributes(5)."""
    escaped = "".join(f"\\{letter}" if letter in "*?[\\" else letter for letter in name)
    return '"/' + escaped.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
