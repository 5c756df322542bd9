"""Checkpoints that are not what they should be: refused in one sentence, or loaded as exactly what their files hold."""

import hashlib
import json
import os
import random
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from lpe_jax.errors import CheckpointError, PairError, UserError
from lpe_jax.loading import load
from lpe_jax.models.layout import leaves_of
from lpe_jax.prompts import chat
from tests.helpers import hf_model, save_tokenizer

SMALL = {"vocab_size": 272, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
# Of resident memory, and of a busy machine's time.
MOST_BYTES, MOST_SECONDS = 250e6, 20.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders as transformers writes them: whole/ in one file, shards/ in two, and variant/."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("made")
    for name, seed, size in (("whole", 0, "1GB"), ("shards", 0, "16KB"), ("variant", 1, "1GB")):
        model = hf_model(seed, **SMALL)
        end = save_tokenizer(folder / name)
        model.generation_config.eos_token_id = [end, end - 2]
        model.save_pretrained(folder / name, max_shard_size=size)
    return folder


@pytest.fixture(scope="module")
def base(made):
    """What is loaded of undamaged files; it is the same of one file as of two."""
    whole, shards = (load(str(made / name), str(made / "variant")) for name in ("whole", "shards"))
    assert whole.identity == shards.identity and whole.identity["pair_mode"] == "shared"
    return whole


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made / "whole", tmp_path / "model"))


@pytest.fixture
def shards(made, tmp_path):
    return Path(shutil.copytree(made / "shards", tmp_path / "model"))


# What a file holds, read by other means than the loader's.


def parts(path):
    """A safetensors file's header and data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def held(folder):
    """Tensors by name, as float32, of all files of weights that an index names, or of the only one."""
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    found = {}
    for name in names:
        header, data = parts(folder / name)
        for tensor, value in header.items():
            if tensor != "__metadata__":
                begin, end = value["data_offsets"]
                found[tensor] = decoded(data[begin:end], value["dtype"]).reshape(value["shape"])
    return found


def decoded(data, dtype):
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype("<f4")


def fingerprint(tensors):
    digests = sorted((name, hashlib.sha256(value.tobytes()).hexdigest()) for name, value in tensors.items())
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def assert_stands_for(loaded, folder):
    """The original is what its folder's files hold, and its identity says so."""
    tensors, pair = held(folder), loaded.pair
    if pair.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    hf_names = {leaf.name: leaf.hf_name for leaf in leaves_of(pair.config)}
    assert sorted(hf_names.values()) == sorted(tensors)
    assert loaded.identity["original_weights"] == fingerprint(tensors)
    assert not pair.edit_rank
    for name, leaf, axis in zip(pair.names, pair.leaves, pair.axes, strict=True):
        value = np.asarray(leaf) if axis is None else np.asarray(leaf)[0]
        expected = tensors[hf_names[name]]
        assert value.dtype == np.float32 and value.shape == expected.shape and value.tobytes() == expected.tobytes()
    raw = json.loads((folder / "config.json").read_text())
    rope = raw.get("rope_parameters") or {}
    assert loaded.identity["constants"] == {
        "rms_norm_eps": float(raw["rms_norm_eps"]),
        "rope_theta": float(rope.get("rope_theta", raw.get("rope_theta"))),
    }
    shape = pair.config.hidden_size, pair.config.num_layers, pair.config.num_heads, pair.config.num_kv_heads
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert shape == tuple(raw[name] for name in names)


def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def attempt(original, variant, **options):
    """(what was loaded, None) or (None, the sentence that refuses it), within bounds."""
    bounded = os.access("/proc/self/clear_refs", os.W_OK)
    if bounded:
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the peak begins anew
        before = peak()
    began = time.perf_counter()
    try:
        return load(str(original), str(variant), **options), None
    except UserError as error:
        message = str(error)
        assert type(error) in (CheckpointError, PairError)
        assert message.isprintable() and len(message) < 4000, message
        assert str(original) in message, message
        return None, message
    finally:
        assert time.perf_counter() - began < MOST_SECONDS
        assert not bounded or peak() - before < MOST_BYTES


def refused(original, made):
    loaded, message = attempt(original, made / "variant")
    assert loaded is None
    return message


# Headers.

NORM = "model.norm.weight"


def reheaded(edit):
    """Damage: the header after edit(header), with the data as they are."""

    def damage(path):
        header, data = parts(path)
        write(path, edit(header) or header, data)

    return damage


def tensor(**fields):
    return reheaded(lambda header: header[NORM].update(fields))


def bytes_of(edit):
    """Damage: other bytes for the file's."""
    return lambda path: path.write_bytes(edit(path.read_bytes()))


def text_of(edit):
    """Damage: edit(the header's text)."""

    def damage(path):
        header, data = parts(path)
        write(path, edit(json.dumps(header)).encode("utf-8", "surrogatepass"), data)

    return damage


def place(header):
    return header[NORM]["data_offsets"]


def twice(text):
    """The same key once more, with another tensor's place."""
    header = json.loads(text)
    again = {**header[NORM], "data_offsets": header["model.layers.0.input_layernorm.weight"]["data_offsets"]}
    return text[:-1] + f', "{NORM}": {json.dumps(again)}}}'


def grown(header):
    """A hole of 64 bytes before the last tensor."""
    last = max((value for name, value in header.items() if name != "__metadata__"), key=lambda v: v["data_offsets"][1])
    last["data_offsets"] = [n + 64 for n in last["data_offsets"]]


HEADERS = {
    "nothing at all": (bytes_of(lambda raw: b""), "truncated or damaged"),
    "a length and nothing else": (bytes_of(lambda raw: raw[:8]), "truncated or damaged"),
    "half of the header": (bytes_of(lambda raw: raw[:400]), "truncated or damaged"),
    "data cut short": (bytes_of(lambda raw: raw[:-1]), "truncated or damaged"),
    "data too long": (bytes_of(lambda raw: raw + bytes(64)), "truncated or damaged"),
    "a header length of 2^64 - 1": (bytes_of(lambda raw: b"\xff" * 8 + raw[8:]), "18446744073709551615 bytes"),
    "a header length one too short": (
        lambda path: write(path, *parts(path), length=len(json.dumps(parts(path)[0])) - 1),
        "truncated or damaged",
    ),
    "a header length one too long": (
        lambda path: write(path, *parts(path), length=len(json.dumps(parts(path)[0])) + 1),
        "truncated or damaged",
    ),
    "a header of no bytes": (lambda path: write(path, b"", parts(path)[1]), "not JSON"),
    "a header that is no JSON": (text_of(lambda text: text.replace(":", ";")), "not JSON"),
    "a header that is a list": (text_of(lambda text: f"[{text}]"), "not an object"),
    "a header with half a surrogate": (text_of(lambda text: text.replace(NORM, "\ud800")), "not JSON"),
    "a header nested deeply": (text_of(lambda text: '{"a":' * 100_000), "not JSON"),
    "a key that is there twice": (text_of(twice), "appears twice"),
    "a number of 5,000 digits": (text_of(lambda text: text.replace("[16]", f"[{'9' * 5000}]")), "not JSON"),
    "overlapping places": (reheaded(lambda h: h[NORM].update(data_offsets=place(h) and [0, 64])), "damaged"),
    "a hole between places": (reheaded(grown), "truncated or damaged"),
    "places beyond the file": (tensor(data_offsets=[10**9, 10**9 + 64]), "truncated or damaged"),
    "places backwards": (reheaded(lambda h: h[NORM].update(data_offsets=place(h)[::-1])), "truncated or damaged"),
    "a negative place": (tensor(data_offsets=[-64, 0]), "its header says of model.norm.weight"),
    "a place beyond 64 bits": (tensor(data_offsets=[0, 2**64]), "truncated or damaged"),
    "a fraction of a place": (tensor(data_offsets=[0.0, 64.0]), "its header says of model.norm.weight"),
    "a shape whose product overflows": (tensor(shape=[2**32, 2**32, 16]), "truncated or damaged"),
    "a negative shape": (tensor(shape=[-16]), "its header says of model.norm.weight"),
    "a shape of another product": (tensor(shape=[17]), "truncated or damaged"),
    "another shape of that product": (tensor(shape=[4, 4]), "model.norm.weight has shape [4, 4] instead of [16]"),
    "a dtype of that size": (tensor(dtype="I32"), "model.norm.weight has dtype I32"),
    "a dtype of another size": (tensor(dtype="F64"), "truncated or damaged"),
    "a dtype that is none": (tensor(dtype="F33"), "truncated or damaged"),
    "a dtype that is no text": (tensor(dtype=7), "its header says of model.norm.weight"),
    "no dtype": (reheaded(lambda h: h[NORM].pop("dtype") and None), "its header says of model.norm.weight"),
    "metadata that are no object": (reheaded(lambda h: h.update(__metadata__=[1])), "truncated or damaged"),
    "metadata that are no text": (reheaded(lambda h: h.update(__metadata__={"a": 1})), "truncated or damaged"),
    "a name that a terminal would obey": (
        reheaded(lambda h: {("\x1b[2J" if n == NORM else n): v for n, v in h.items()}),
        "'\\x1b[2J' is unknown; model.norm.weight is missing",
    ),
    "a name of a megabyte": (
        reheaded(lambda h: {("n" * 10**6 if n == NORM else n): v for n, v in h.items()}),
        "model.norm.weight is missing",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malformed_header(folder, made, kind):
    damage, part = HEADERS[kind]
    damage(folder / "model.safetensors")
    message = refused(folder, made)
    assert part in message and message.count(str(folder)) == 1, message


def test_headers_without_end(folder, made):
    """A length that the file does have, and a header of very many tensors."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 99 << 20))
    os.truncate(path, 100 << 20)
    assert "is the most" in refused(folder, made)
    path.write_bytes(whole)
    header, data = parts(path)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}
    write(path, header | {f"t{i}": empty for i in range(40_000)}, data)
    message = refused(folder, made)
    assert "t0 is unknown" in message and "and 39980 more" in message


def test_metadata_do_not_matter(folder, made, base):
    reheaded(lambda header: header.update(__metadata__={"format": "\x1b[2J", "torch": "pickle" * 9999}))(
        folder / "model.safetensors"
    )
    loaded, _ = attempt(folder, made / "variant")
    assert loaded.identity == base.identity
    assert_stands_for(loaded, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(folder, made, value):
    path = folder / "model.safetensors"
    header, data = parts(path)
    begin = place(header)[0]
    write(path, header, data[:begin] + struct.pack("<f", value) + data[begin + 4 :])
    assert "model.norm.weight has values that are NaN or infinite" in refused(folder, made)


def test_any_bit_of_the_weights_is_another_fingerprint(folder, made, base):
    """Every bit of one value, and one bit in each tensor: loaded as it is, under another name, or no number."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header, data = parts(path)
    starts = [v["data_offsets"][0] for n, v in header.items() if n != "__metadata__"]
    bits = [8 * place(header)[0] + bit for bit in range(32)] + [8 * start for start in starts]
    seen = {base.identity["original_weights"]}
    for bit in bits:
        raw = bytearray(whole)
        raw[len(whole) - len(data) + bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        loaded, message = attempt(folder, made / "variant")
        if message is not None:
            assert "NaN or infinite" in message
            continue
        assert_stands_for(loaded, folder)
        assert loaded.identity["original_weights"] not in seen or bit == 8 * place(header)[0]
        seen.add(loaded.identity["original_weights"])
    assert len(seen) > 40


# Files of an index, links, pipes and pickles.


def reindexed(edit):
    def damage(folder):
        path = folder / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(edit(raw) or raw))

    return damage


def elsewhere(name):
    return reindexed(lambda raw: raw["weight_map"].update({NORM: name}))


def again(folder):
    """A shard under a second name, by which the index finds one tensor."""
    second = sorted(folder.glob("*.safetensors"))[1]
    shutil.copy(second, folder / "copy.safetensors")
    elsewhere("copy.safetensors")(folder)


def doubled(folder):
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"weight_map"', '"weight_map": {}, "weight_map"', 1))


def leftover(folder):
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.safetensors")


INDICES = {
    "an absolute file": (elsewhere("/etc/passwd"), "names '/etc/passwd', which is not a plain file name"),
    "a file outside": (elsewhere("../whole/model.safetensors"), "is not a plain file name"),
    "the folder above": (elsewhere(".."), "names '..'"),
    "no name": (elsewhere(""), "names ''"),
    "a name with a NUL": (elsewhere("a\0.safetensors"), "names 'a\\x00.safetensors'"),
    "a name that is half a surrogate": (elsewhere("\ud800.safetensors"), "names '\\ud800.safetensors'"),
    "a name of ten kilobytes": (elsewhere("a" * 10_000 + ".safetensors"), "is not a plain file name"),
    "a pickle": (elsewhere("pytorch_model.bin"), "names 'pytorch_model.bin'"),
    "a file that is not there": (elsewhere("gone.safetensors"), "gone.safetensors does not exist"),
    "a file under two names": (again, "is in both"),
    "a tensor in the wrong file": (elsewhere("model-00001-of-00002.safetensors"), "disagree about where to find"),
    "a tensor too many": (
        reindexed(lambda raw: raw["weight_map"].update(more="model-00001-of-00002.safetensors")),
        "disagree about where to find more",
    ),
    "a tensor too few": (reindexed(lambda raw: raw["weight_map"].pop(NORM) and None), "disagree about where to find"),
    "no files": (reindexed(lambda raw: {"weight_map": {}}), "is missing"),
    "a map of lists": (reindexed(lambda raw: {"weight_map": [NORM]}), "has no weight_map"),
    "two maps": (doubled, "'weight_map' appears twice"),
    "another model beside": (leftover, "holds model.safetensors and an index of other files"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_a_malformed_index(shards, made, kind):
    damage, part = INDICES[kind]
    damage(shards)
    assert part in refused(shards, made)


def test_links_are_followed_and_what_they_lead_to_is_checked(folder, made, base, tmp_path):
    """The hub's cache is made of links; what is no file is not read at all."""
    path = folder / "model.safetensors"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    loaded, _ = attempt(folder, made / "variant")
    assert loaded.identity == base.identity
    for target, part in (
        (tmp_path / "gone", "neither model.safetensors nor"),
        ("/dev/zero", "is not a file"),
        (tmp_path, "is not a file"),
        (folder / "config.json", "truncated or damaged"),
        (path, "neither model.safetensors nor"),
    ):
        path.unlink()
        path.symlink_to(target)
        assert part in refused(folder, made)


JSONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.mark.parametrize("name", ["model.safetensors", *JSONS])
def test_pipes_and_devices_are_not_read(folder, made, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in refused(folder, made)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert name in refused(folder, made)


def test_a_pickle_beside_is_not_touched(folder, made, base, tmp_path):
    """Opened by pickle, it would make a file."""
    code = f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode()
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl"):
        (folder / name).write_bytes(code)
    loaded, _ = attempt(folder, made / "variant")
    assert loaded.identity == base.identity and not (tmp_path / "ran").exists()
    (folder / "model.safetensors").write_bytes(code)
    assert "truncated or damaged" in refused(folder, made)
    (folder / "model.safetensors").unlink()
    assert "pickle weights (model.pt)" in refused(folder, made)
    assert not (tmp_path / "ran").exists()


# Configs that ask for more than there is.


def reconfigured(folder, name, **fields):
    raw = json.loads((folder / name).read_text()) | fields
    (folder / name).write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"num_hidden_layers": 10**9}, "num_layers = 1000000000"),
        ({"num_hidden_layers": 999}, "model.layers.1.input_layernorm.weight is missing"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000"),
        ({"hidden_size": 10**9}, "instead of [272, 1000000000]"),
        ({"vocab_size": 10**9}, "instead of [1000000000, 16]"),
        ({"head_dim": 2**30, "num_attention_heads": 2**30}, "instead of [1152921504606846976, 16]"),
        ({"head_dim": ..., "num_attention_heads": 0}, "num_heads = 0"),
        ({"head_dim": ..., "hidden_size": "16"}, "hidden_size = '16'"),
        ({"hidden_size": ["x" * 10**6]}, "hidden_size = ['xxx"),
        ({"rms_norm_eps": float("nan")}, "NaN is not JSON"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps = 1e-300"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta = 1000"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "Infinity is not JSON"),
        ({"rope_parameters": [1]}, "are not an object"),
        ({"architectures": {"a": "\x1b[2J"}}, "architectures is {'a': '\\x1b[2J'}"),
    ],
)
def test_a_config_that_asks_for_more(folder, made, fields, part):
    reconfigured(folder, "config.json", **fields)
    _, message = attempt(folder, folder)
    assert message is not None and part in message, message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"a": 1e999}', "architectures is None"),
        ('{"a": "' + "x" * 5_000_000 + '"}', "is the most"),
        ('{"a": "endless', "Unterminated string"),
        ("[" * 900 + "]" * 900, "holds list"),
        ('{"architectures": ' + "[" * 900 + "]" * 900 + "}", "architectures is"),
        ("\ud800", "surrogate"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_without_end_or_sense(shards, made, name, text, part):
    (shards / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    message = refused(shards, made)
    assert name in message and (part in message or "weight_map" in message or "cannot be read as JSON" in message)


def test_what_only_transformers_would_read_asks_for_nothing(folder, made, base):
    """Its own reading of a config makes what that asks for, as names for so many labels."""
    reconfigured(folder, "config.json", num_labels=10**10, dtype="load", layer_types=["x"] * 1000, model_type="bert")
    loaded, _ = attempt(folder, made / "variant")
    assert loaded.identity == base.identity


@pytest.mark.parametrize(
    ("ids", "part"),
    [
        (10**30, "is beyond the 272 rows"),
        ([260, 272], "eos_token_id 272 is beyond the 272 rows"),
        (-1, "names an eos_token_id"),
        ("260", "names an eos_token_id"),
        ([True], "names an eos_token_id"),
        ([], "names an eos_token_id"),
        (list(range(400_000)), "eos_token_id 399999 is beyond"),
    ],
)
def test_ends_that_are_no_tokens(folder, made, ids, part):
    reconfigured(folder, "generation_config.json", eos_token_id=ids)
    assert part in refused(folder, made)


def test_constants_are_of_the_identity(folder, made, base):
    """Equal weights, another model: a run must not go on with it."""
    for fields in ({"rms_norm_eps": 1e-6}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}):
        for name in ("whole", "variant"):
            target = folder.parent / name
            shutil.copytree(made / name, target, dirs_exist_ok=True)
            reconfigured(target, "config.json", **fields)
        loaded, _ = attempt(folder.parent / "whole", folder.parent / "variant")
        differing = {k for k in base.identity if loaded.identity[k] != base.identity[k]}
        assert differing == {"constants"}


# Tokenizers.


def retokenized(edit):
    def damage(folder):
        path = folder / "tokenizer.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(edit(raw) or raw))

    return damage


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (retokenized(lambda raw: raw["model"]["vocab"].update({"far": 272})), "more than the 272 rows"),
        (retokenized(lambda raw: raw["model"]["vocab"].update({"far": 2**31})), "a token of id 2147483648"),
        (retokenized(lambda raw: raw["model"]["vocab"].update({"far": 2**40})), "cannot be loaded"),
        (retokenized(lambda raw: raw["model"]["vocab"].clear()), "cannot be loaded"),
        (retokenized(lambda raw: raw["model"].update(type="Unigram")), "cannot be loaded"),
        (lambda folder: os.truncate(folder / "tokenizer.json", 100 << 20), "larger than 64 MiB"),
        (lambda folder: reconfigured(folder, "tokenizer_config.json", tokenizer_class=["x"]), "cannot be loaded"),
        (lambda folder: reconfigured(folder, "tokenizer_config.json", auto_map=["a.B", "a.B"]), "code of its own"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"), "cannot be loaded"),
    ],
)
def test_a_malformed_tokenizer(folder, made, damage, part):
    damage(folder)
    _, message = attempt(folder, folder)
    assert message is not None and part in message, message


def test_a_template_that_is_no_text(folder, made):
    (folder / "chat_template.jinja").unlink()
    reconfigured(folder, "tokenizer_config.json", chat_template=7)
    assert "chat template" in refused(folder, made)


# Any change at all.

NUMBERS = [b"-1", b"0", b"1e999", b"18446744073709551616", b"0.5", b"null", b"true", b"[", b"{", b'"', b"NaN"]


def mutated(rng, raw):
    """The bytes after a random change or a few."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not raw:
            break
        at, size = rng.randrange(len(raw)), rng.choice([1, 2, 8, 60])
        kind = rng.randrange(8)
        if kind <= 1:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            raw[at : at + size] = rng.randbytes(size)
        elif kind == 3:
            del raw[at : at + size]
        elif kind == 4:
            raw[at:at] = raw[rng.randrange(len(raw)) :][:size]
        elif kind == 5:
            del raw[at:]
        elif kind == 6:
            raw[at : at + rng.choice([0, 1, 2])] = rng.choice(NUMBERS)
        else:  # among what is text, another digit or letter
            text = [i for i in range(max(0, at - 2000), min(len(raw), at + 2000)) if chr(raw[i]).isalnum()]
            if text:
                raw[rng.choice(text)] = rng.choice(b"0123456789abcdefBFI")
    return bytes(raw)


def survive(made, base, folder, seeds):
    """Loads a folder after each of these changes; how many were refused, and how many loaded."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    texts = ["a house by the sea", "that thé 紙 <|im_end|> \n\n", "<think>\nHm.\n</think>"]
    before = [base.tokenizer(text)["input_ids"] for text in texts]
    counts = {"refused": 0, "loaded": 0, "another": 0}
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(sorted(files))
        raw = files[name]
        if name.endswith(".safetensors") and rng.random() < 0.7:  # most bytes are data
            begin = 8 + struct.unpack("<Q", raw[:8])[0]
            changed = mutated(rng, raw[:begin]) + raw[begin:]
        else:
            changed = mutated(rng, raw)
        (folder / name).write_bytes(changed)
        if rng.random() < 0.02:
            (folder / name).unlink()
        try:
            loaded, _ = attempt(folder, made / "variant")
        except Exception as error:
            raise AssertionError(f"change {seed}, of {name}") from error
        if loaded is None:
            counts["refused"] += 1
        else:
            counts["loaded"] += 1
            counts["another"] += loaded.identity != base.identity
            assert_stands_for(loaded, folder)
            if loaded.identity["tokenizer"] == base.identity["tokenizer"]:
                assert [loaded.tokenizer(text)["input_ids"] for text in texts] == before, seed
        (folder / name).write_bytes(raw)
    assert load(str(folder), str(made / "variant")).identity == base.identity
    return counts


def test_any_change_is_refused_or_is_what_it_says(made, base, shards):
    counts = survive(made, base, shards, range(300))
    assert counts["refused"] > 100 and counts["loaded"] > 20 and counts["another"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_changes(made, base, shards, part):
    counts = survive(made, base, shards, range(1000 + 1000 * part, 2000 + 1000 * part))
    print(counts)
    assert counts["refused"] > 300 and counts["loaded"] > 70 and counts["another"] > 30


def test_the_oracle_can_fail(made, base, folder):
    """A loader that read another file would be seen."""
    path = folder / "model.safetensors"
    header, data = parts(path)
    write(path, header, bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(AssertionError):
        assert_stands_for(base, folder)
    assert chat.number_of_tokens(base.tokenizer) == len(base.tokenizer)
