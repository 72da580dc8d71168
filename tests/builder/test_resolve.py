import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from enginehouse_builder.cache import Cache
from enginehouse_builder.errors import ResolveError, SpecError, UnsupportedModelError
from enginehouse_builder.host import Host
from enginehouse_builder.manifest import sha256_of
from enginehouse_builder.resolve import Resolved, resolve
from enginehouse_builder.samples import read_samples
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.stages import CompileSettings, Workplace
from enginehouse_builder.stages.context import Context


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "My Model"))


def _resolve(model: Path | str, **settings: object) -> Resolved:
    spec = BuildSpec(str(model), Path("repository"), Path("cache"), **settings)  # type: ignore[arg-type]
    return resolve(spec, lambda _: None)


def _edit_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    document = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def test_folder_is_resolved_with_its_hash_and_a_name_made_of_its_own(folder: Path) -> None:
    resolved = _resolve(folder)
    assert resolved.folder == folder
    assert resolved.name == "my-model"
    assert resolved.task == "classify"
    assert resolved.source.id == "My Model"
    assert resolved.source.revision == ""
    assert resolved.source.architecture == "BertForSequenceClassification"
    assert len(resolved.source.sha256) == 64


def test_hash_is_that_of_the_listed_weight_files(folder: Path) -> None:
    file = folder / "model.safetensors"
    listing = f"{file.name} {sha256_of(file)}\n"
    expected = subprocess.run(
        ["sha256sum"], input=listing.encode(), capture_output=True, check=True
    )
    assert _resolve(folder).source.sha256 == expected.stdout.split()[0].decode()


@pytest.mark.parametrize(
    "name", ["vocab.txt", "additional_chat_templates/tools.jinja", "code/a.py"]
)
def test_every_text_beside_the_weights_makes_another_original(folder: Path, name: str) -> None:
    spec = BuildSpec(str(folder), Path("repository"), Path("cache"))
    resolved = resolve(spec, lambda _: None)
    place = Workplace(
        cache=Cache(folder / ".cache"),
        host=Host({}),
        targets=(),
        devices={},
        num_threads=1,
        compiling=CompileSettings(),
    )
    context = Context(place, spec, resolved, read_samples(None))
    found = [context.original]
    for text in ("one", "two"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        found.append(context.original)
    assert len({str(original) for original in found}) == 3


def test_name_that_cannot_be_served_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="'Two Words' does not match"):
        _resolve(folder, name="Two Words")


def test_folder_without_a_name_of_its_own_asks_for_one(folder: Path) -> None:
    odd = folder.rename(folder.with_name("_"))
    with pytest.raises(SpecError, match="give one with --name"):
        _resolve(odd)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match=r"there is no folder .*absent"):
        _resolve(tmp_path / "absent")


def test_revision_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="--revision main is for models of the hub"):
        _resolve(folder, revision="main")


def test_shards_with_an_index_are_taken(folder: Path) -> None:
    single = folder / "model.safetensors"
    tensors = load_file(single)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = _resolve(folder).source.sha256
    single.unlink()
    assert _resolve(folder).source.sha256 != whole
    (folder / "b.safetensors").unlink()
    with pytest.raises(ResolveError, match=r"names b\.safetensors, which is not there"):
        _resolve(folder)


def test_pickled_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ResolveError, match=r"pickle \(pytorch_model.bin\).*save_pretrained"):
        _resolve(folder)


def test_adapter_alone_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ResolveError, match=r"holds an adapter.*--adapter"):
        _resolve(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ResolveError, match=r"model\.safetensors .* damaged or cut short"):
        _resolve(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_json_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"model_type": "bert", ')
    with pytest.raises(ResolveError, match=f"{name} cannot be read"):
        _resolve(folder)


def test_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ResolveError, match=r"has no config\.json"):
        _resolve(folder)


def test_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ResolveError, match="has no tokenizer"):
        _resolve(folder)


def test_unknown_type_of_model_is_refused(folder: Path) -> None:
    _edit_config(folder, model_type="brand_new")
    with pytest.raises(UnsupportedModelError, match="'brand_new', which transformers"):
        _resolve(folder)


def test_model_with_its_own_code_needs_the_flag(folder: Path) -> None:
    _edit_config(folder, model_type="own", auto_map={"AutoConfig": "code.Config"})
    with pytest.raises(UnsupportedModelError, match="--trust-remote-code"):
        _resolve(folder)


def test_code_in_another_repository_is_refused_by_name(folder: Path) -> None:
    _edit_config(folder, model_type="own", auto_map={"AutoConfig": "someone/code--own.Config"})
    with pytest.raises(
        UnsupportedModelError, match=r"another repository, someone/code, .*own\.Conf"
    ):
        _resolve(folder, trust_remote_code=True)


def test_type_without_a_classifier_is_refused(folder: Path) -> None:
    _edit_config(folder, model_type="whisper", architectures=["WhisperForSequenceClassification"])
    with pytest.raises(UnsupportedModelError, match=r"no sequence classifier .* 'whisper'"):
        _resolve(folder)


def test_quantized_checkpoint_is_refused(folder: Path) -> None:
    _edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match=r"quantized already \(gptq\)"):
        _resolve(folder)


@pytest.mark.parametrize(("named", "shown"), [(["BertModel"], "BertModel"), (None, "no arch")])
def test_unknown_task_is_asked_for(folder: Path, named: list[str] | None, shown: str) -> None:
    _edit_config(folder, architectures=named)
    with pytest.raises(SpecError, match=f"{shown}.*--task classify"):
        _resolve(folder)
    assert _resolve(folder, task="classify").task == "classify"


@pytest.mark.parametrize("head", ["BertForTokenClassification", "GPT2LMHeadModel"])
def test_head_of_another_task_is_refused_whatever_is_asked_for(folder: Path, head: str) -> None:
    _edit_config(folder, architectures=[head])
    with pytest.raises(SpecError, match=f"--task classify: its config.json names {head}"):
        _resolve(folder, task="classify")


@pytest.mark.parametrize(
    ("family", "architecture"), [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel")]
)
def test_a_language_model_is_known_by_its_head(
    decoder_checkpoint: Callable[[str], Path], family: str, architecture: str
) -> None:
    resolved = _resolve(decoder_checkpoint(family), name="m")
    assert (resolved.task, resolved.source.architecture) == ("generate", architecture)


def test_a_folder_with_both_heads_is_asked_for_its_task(
    decoder_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(decoder_checkpoint("llama"), tmp_path / "model"))
    _edit_config(folder, architectures=["LlamaForCausalLM", "LlamaForSequenceClassification"])
    with pytest.raises(SpecError, match=r"can do more than one thing .*choose with --task"):
        _resolve(folder)
    assert _resolve(folder, task="generate").source.architecture == "LlamaForCausalLM"
    assert _resolve(folder, task="classify").source.architecture == "LlamaForSequenceClassification"


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_a_quantized_language_model_is_refused_by_the_name_of_its_method(
    decoder_checkpoint: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    folder = Path(shutil.copytree(decoder_checkpoint("llama"), tmp_path / "model"))
    _edit_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UnsupportedModelError, match=rf"quantized already \({method}\)"):
        _resolve(folder)
