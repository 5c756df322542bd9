"""A disk that is watched, that fails, and that loses power.

A Disk stands in for `os` in lpe_jax.records.files, through which all records but SQLite's go.
"""

import os


class Disk:
    """Does what `os` does, writes down all that changes a disk, and fails where it is told to."""

    def __init__(self, fails=lambda number: None, unsynced=()):
        """
        Args:
          fails: by an operation's number, the OSError that it ends in; None is none.
          unsynced: what is not told to the disk although the code says so: "file", "folder".
        """
        self.log = []  # (operation, arguments)
        self.count = 0
        self.paths = {}
        self._fails, self._unsynced = fails, unsynced

    def __getattr__(self, name):
        return getattr(os, name)

    def _do(self, name, *entry, half=None):
        error = self._fails(self.count)
        self.count += 1
        if error is not None:
            if half is not None:
                half()
            raise error
        self.log.append((name, *entry))

    def mkdir(self, path, mode):
        self._do("mkdir", str(path))
        os.mkdir(path, mode)

    def open(self, path, flags, mode=0o777):
        if flags & os.O_WRONLY:
            self._do("open", str(path))
        handle = os.open(path, flags, mode)
        self.paths[handle] = str(path)
        return handle

    def pwrite(self, handle, data, offset):
        # A disk that is full takes the first of it.
        half = bytes(data)[: len(data) // 2]
        self._do("pwrite", self.paths[handle], offset, bytes(data), half=lambda: os.pwrite(handle, half, offset))
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle, size):
        self._do("ftruncate", self.paths[handle], size)
        os.ftruncate(handle, size)

    def fsync(self, handle):
        path = self.paths[handle]
        kind = "folder" if os.path.isdir(path) else "file"
        if kind in self._unsynced:
            self.count += 1
        else:
            self._do("fsync", path, kind)

    def replace(self, source, target):
        self._do("replace", str(source), str(target))
        os.replace(source, target)

    def say(self, **done):
        """What the code was promised is on disk from here on."""
        self.log.append(("say", done))


class Lost:
    """What is left on a disk when power goes, after some of a log's operations.

    A file's data are safe once the file was synced, and a name once its folder was, and that folder's name likewise. Of
    the rest each folder keeps the first so many changes, and each file the first so many writes and perhaps zeros for
    one more, as is drawn; or nothing.
    """

    def __init__(self):
        self.names = {}  # path -> file; None for a folder: what processes see
        self.safe_names = {}  # what is on disk
        self.pending_names = {}  # folder -> [(path, file or absent)]
        self.volatile, self.safe, self.pending = {}, {}, {}  # file -> data, data, [writes]
        self.said = []
        self._files = 0

    def do(self, name, *entry):
        getattr(self, f"_{name}")(*entry)

    def _say(self, done):
        self.said.append(done)

    def _name(self, path, file):
        self.names[path] = file
        self.pending_names.setdefault(os.path.dirname(path), []).append({path: file})

    def _mkdir(self, path):
        self._name(path, None)

    def _open(self, path):
        if path not in self.names:
            self._files += 1
            self.volatile[self._files], self.safe[self._files], self.pending[self._files] = b"", b"", []
            self._name(path, self._files)

    def _pwrite(self, path, offset, data):
        file = self.names[path]
        before = self.volatile[file].ljust(offset, b"\0")
        self.volatile[file] = before[:offset] + data + before[offset + len(data) :]
        self.pending[file].append((offset, data))

    def _ftruncate(self, path, size):
        file = self.names[path]
        self.volatile[file] = self.volatile[file][:size]
        self.pending[file].append((size, None))

    def _fsync(self, path, kind):
        if kind == "file":
            file = self.names[path]
            self.safe[file], self.pending[file] = self.volatile[file], []
        else:
            for change in self.pending_names.pop(path, []):
                self.safe_names |= change

    def _replace(self, source, target):
        file = self.names.pop(source)
        self.names[target] = file
        # One change: no crash sees both names, or neither.
        self.pending_names.setdefault(os.path.dirname(target), []).append({source: "gone", target: file})

    def left(self, rng=None):
        """Path -> data, None for a folder. Nothing that was not synced; with an rng, as much of it as is drawn."""
        names = dict(self.safe_names)
        for changes in self.pending_names.values():
            for change in changes[: 0 if rng is None else rng.integers(len(changes) + 1)]:
                names |= change
        there = {path: file for path, file in names.items() if file != "gone"}
        whole = {path: file for path, file in there.items() if self._reachable(path, there)}
        return {path: None if file is None else self._data(file, rng) for path, file in whole.items()}

    def _reachable(self, path, there):
        above = [folder for folder in self.names if self.names[folder] is None and path.startswith(f"{folder}/")]
        return all(folder in there for folder in above)

    def _data(self, file, rng):
        data, pending = self.safe[file], self.pending[file]
        if rng is None or not pending:
            return data
        done = rng.integers(len(pending) + 1)
        for number, (offset, written) in enumerate(pending[: done + rng.integers(2)]):
            if written is None:
                data = data[:offset]
                continue
            if number == done:
                # The length is there, and of what was written a part, first or last.
                kept = int(rng.integers(len(written) + 1))
                zeros = bytes(len(written))
                written = written[:kept] + zeros[kept:] if rng.integers(2) else zeros[:kept] + written[kept:]
            data = data.ljust(offset, b"\0")[:offset] + written + data[offset + len(written) :]
        return data
