"""A checkpoint is data: whatever a file holds, reading it runs nothing, and a refusal says which file and why."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sightline
from sightline.archive import read_tensors
from sightline.errors import CheckpointError, UnsafeCheckpointError
from tiny import tiny_config, tiny_encoder, tiny_model


class Bomb:
    """Pickles to a call of os.system that makes a file."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4", "torchscript", "in a state dict"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, form: str) -> None:
    proof, file = tmp_path / "it-ran", tmp_path / "weights.pt"
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps(Bomb(proof), protocol=int(form[-1])))
    elif form == "torchscript":
        tiny_encoder().export(tmp_path / "good.pt", to="original")
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(file, "w") as bad:
            for info in good.infolist():
                evil = info.filename.endswith("/data.pkl")
                bad.writestr(info.filename, pickle.dumps(Bomb(proof)) if evil else good.read(info))
    else:
        payload = {"state_dict": {"a": Bomb(proof)}} if form == "in a state dict" else Bomb(proof)
        torch.save(payload, file, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(
        CheckpointError, match=r"weights\.pt: (refused, because reading it would run|is not a (whole )?weight file)"
    ):
        sightline.load(file)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch.jit", "load"),
        ("torch.jit._pickle", "os"),
        ("collections", "namedtuple"),
        ("numpy.core.multiarray", "_reconstruct"),
    ],
)
def test_only_the_names_that_weights_need_are_known(tmp_path: Path, module: str, name: str) -> None:
    program = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/data.pkl", program)
    with pytest.raises(UnsafeCheckpointError, match=f"would run {module}.{name}"):
        read_tensors(tmp_path / "x.pt")


def torch_zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(f"archive/{name}", data)
    return path


def tensor_program(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """The pickle of {"w": tensor} over a storage of `count` floats, written by a pickler with torch's names."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Tensor()})
    return buffer.getvalue()


def test_a_tensor_is_the_part_of_its_storage_that_its_strides_say(tmp_path: Path) -> None:
    data = torch.arange(4.0).numpy().tobytes()
    file = torch_zip(tmp_path / "x.pt", {"data.pkl": tensor_program((2, 2), (1, 2)), "data/0": data})
    assert read_tensors(file)["w"].tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("program", "storage", "message"),
    [
        (tensor_program((5,), (1,)), bytes(16), "damaged"),
        (tensor_program((2, 2), (1, 3)), bytes(16), "damaged"),
        (tensor_program((2,), (1,), offset=3), bytes(16), "damaged"),
        (tensor_program((2,), (1,), offset=-1), bytes(16), "damaged"),
        (tensor_program((2,), (-1,)), bytes(16), "damaged"),
        (tensor_program((2**40, 2**40), (0, 0)), bytes(16), "damaged"),
        (tensor_program((5,), (0,)), bytes(16), "damaged"),
        (tensor_program((4,), (1,)), bytes(12), "data/0 is missing or not of its stated size"),
        (tensor_program((4,), (1,), count=2**50), bytes(16), "data/0 is missing or not of its stated size"),
        (tensor_program((4,), (1,)), None, "data/0 is missing or not of its stated size"),
        (b"\x80\x02", bytes(16), "damaged"),
        (b"garbage", bytes(16), "damaged"),
        (b"", bytes(16), "damaged"),
        (pickle.dumps([1, 2]), bytes(16), "holds no named tensors"),
        (pickle.dumps({"w": "text"}), bytes(16), "holds no named tensors"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, program: bytes, storage: bytes | None, message: str) -> None:
    entries = {"data.pkl": program} | ({"data/0": storage} if storage is not None else {})
    file = torch_zip(tmp_path / "x.pt", entries)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(file)


@pytest.mark.parametrize("name", ["data.pkl", "byteorder", "data/0"])
def test_compressed_entries_are_refused(tmp_path: Path, name: str) -> None:
    entries = {"data.pkl": tensor_program((4,), (1,)), "byteorder": b"little", "data/0": bytes(16)}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for entry, data in entries.items():
            file.writestr(f"x/{entry}", data, zipfile.ZIP_DEFLATED if entry == name else zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match=f"{name} is (compressed|missing or not of its stated size)"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_a_bomb_is_refused_by_its_size(tmp_path: Path, name: str) -> None:
    file = torch_zip(tmp_path / "x.pt", {"data.pkl": b"}.", name: bytes(17 * 2**20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=f"its {name} is larger than any that describes weights"):
        read_tensors(file)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TENSOR = tensor_program((4,), (1,))[:-2]  # {"w": tensor, still without its end: "s."
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02})" + b"\x85" * 1_500_000 + b"Ns.", "damaged"),  # as a key: hashing it would overflow the stack
        (b"\x80\x02)" + b"\x85" * 1_500_000 + b".", "holds no named tensors"),  # and so would an unwary release
        (b"\x80\x02" + b"}" * 2_100_000 + b".", "longer than any"),
        (b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".", "holds no named tensors"),  # a memo of one entry
        (b"\x80\x02}\x8a\x09" + b"\x01" * 9 + b"Ns.", "damaged"),
        (b"\x80\x02}" + text("w" * 501) + b"Ns.", "damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n((tNtR.", "damaged"),  # would be hashed inside
        (b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.", "holds no named tensors"),
        (TENSOR + b"}bs.", r"would run Tensor\.__setstate__"),
        (b"\x80\x02" + REBUILD + b"}" + text("__defaults__") + b"Nsb.", r"would run function\.__setstate__"),
        (b"(S'true'\nios\nsystem\n.", r"damaged|would run os\.system"),
        (b"(ios\nsystem\n.", r"would run os\.system"),
        (b"(No.", "would run the opcode OBJ"),
        (b"\x80\x04NN}\x92.", "would run the opcode NEWOBJ_EX"),
        (b"\x80\x02\x82\x01.", "would run the opcode EXT1"),
        (b"\x80\x02ca\x1b[2J\nb\n.", r"would run a\?\[2J\.b;"),  # nothing of it acts on a terminal
        (b"\x80\x02ctorch\nComplexFloatStorage\n.", "a ComplexFloatStorage, which weights are not"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_hostile_pickle_is_refused_in_bounded_time_and_memory(
    tmp_path: Path, form: str, program: bytes, message: str
) -> None:
    if form == "zip":
        file = torch_zip(tmp_path / "x.pt", {"data.pkl": program, "data/0": bytes(16)})
    else:
        file = tmp_path / "x.pt"
        file.write_bytes(program)
        message += "|is not a whole weight file"
    with pytest.raises(CheckpointError, match=message):
        read_tensors(file)


def test_modules_that_hold_each_other_many_times_over_are_refused(tmp_path: Path) -> None:
    program = b"\x80\x02"  # each module has four references to the one before it: 4 ** 30 paths
    for number in range(30):
        before = b"".join(text(name) + b"h" + bytes([number - 1]) for name in "abcd") if number else b""
        program += b"c__torch__.x\nM\n)\x81q" + bytes([number]) + b"}(" + before + b"ub"
    with pytest.raises(CheckpointError, match="no end of them"):
        read_tensors(torch_zip(tmp_path / "x.pt", {"data.pkl": program + b"."}))


def test_a_training_checkpoint_with_its_optimizer_and_scaler_is_read(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000, "_growth_tracker": 2**40}
    checkpoint = {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler}
    checkpoint["device"] = torch.device("cpu")
    for zipped in (True, False):
        torch.save(checkpoint, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        state = read_tensors(tmp_path / "x.pt")
        assert state.keys() == {"weight", "bias"}
        assert torch.equal(state["weight"], model.weight)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_file_from_before_1_6_is_refused(tmp_path: Path, keep: float) -> None:
    file = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(300), "v": torch.ones(7)}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="is not a whole weight file"):
        read_tensors(file)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
        with pytest.raises(CheckpointError, match="not a file"):
            read_tensors(tmp_path / name)


def test_complex_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor w is of torch\.complex64, which weights are not"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_module_that_contains_itself_is_refused(tmp_path: Path) -> None:
    # c__torch__ M, () NEWOBJ, memo 0; {} {"me": memo 0} BUILD
    program = b"\x80\x02c__torch__.x\nM\n)\x81q\x00}X\x02\x00\x00\x00meh\x00sb."
    with pytest.raises(CheckpointError, match="contains itself"):
        read_tensors(torch_zip(tmp_path / "x.pt", {"data.pkl": program}))


def safetensors_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.pt", b"", "is not a whole weight file|is not a weight file"),
        ("text.pt", b"<html>404 not found</html>", "is not a (whole )?weight file"),
        ("zip.pt", b"PK\x03\x04 and no more", "is damaged"),
        ("empty.safetensors", b"", "is not a whole safetensors file"),
        ("long-header.safetensors", struct.pack("<Q", 2**60), "is not a whole safetensors file"),
        ("bad-json.safetensors", safetensors_of(b"{{{"), "is not a whole safetensors file"),
        (
            "outside.safetensors",
            safetensors_of({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(3)),
            "is not a whole safetensors file",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        sightline.load(tmp_path / name)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["model.safetensors", "weights.pt", "original.pt"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, form: str, keep: float) -> None:
    clip = tiny_encoder()
    file = tmp_path / form
    if form == "original.pt":
        clip.export(file, to="original")
    elif form == "weights.pt":
        torch.save(clip.model.state_dict(), file)
    else:
        save_file(clip.model.state_dict(), file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(CheckpointError):
        sightline.load(file, config=tiny_config())


def test_a_checkpoint_that_does_not_fit_says_what_is_wrong(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    cases = {
        "the weights lack tensor ln_final.bias and 1 more": {
            n: t for n, t in state.items() if not n.startswith("ln_final")
        },
        "the weights have an unknown tensor extra": {**state, "extra": torch.zeros(1)},
        r"the tensor visual.proj has shape \[3, 3\] where the model has \[128, 48\]": {
            **state,
            "visual.proj": torch.zeros(3, 3),
        },
    }
    for message, wrong in cases.items():
        torch.save(wrong, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=message):
            sightline.load(tmp_path / "x.pt", config=tiny_config())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[" * 100_000, "cannot be read as JSON"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"format": "sightline-1"}', "the configuration of 'vision' is missing"),
        ("config.json", '{"format": "sightline-1", "colour": 3}', "the configuration of 'vision' is missing"),
        ("config.json", '{"format": "sightline-9"}', "newer Sightline"),
        ("config.json", '{"model_type": "llama"}', "describes a 'llama' model, not a CLIP"),
        ("config.json", '{"model_type": "clip", "vision_config": {"hidden_size": 99}}', "not divisible by 12 heads"),
        ("config.json", '{"model_type": "clip", "vision_config": 3}', "is not a model's configuration"),
        ("config.json", "x" * (2**20 + 1), "is larger than any configuration"),
        ("open_clip_config.json", '{"model_cfg": {"vision_cfg": {"head_width": 0}}}', "is not a model's configuration"),
        ("open_clip_config.json", '{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}', "is not a model's"),
        ("vocabulary.txt", "#version: 0.2\nzz zz\n", "line 2 does not join two tokens known by then"),
        ("vocabulary.txt", "#version: 0.2\na b\n", "has 515 ids where the model has 49408"),
        ("vocabulary.txt", "", "line 1 does not join"),
    ],
)
def test_a_folder_with_a_hostile_file_is_refused(tmp_path: Path, file: str, content: str, message: str) -> None:
    tiny_encoder().save(tmp_path / "model")
    if file == "open_clip_config.json":
        (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        sightline.load(tmp_path / "model")


def test_an_index_that_names_files_outside_its_folder_reads_none_of_them(tmp_path: Path) -> None:
    clip = tiny_encoder()
    clip.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "../../secret.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sightline.load(tmp_path / "model").fingerprint() == clip.fingerprint()


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weight file"):
        sightline.load(tmp_path)
