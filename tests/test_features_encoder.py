"""Frozen encoder features: what is computed, what is kept, what a failing disk costs, and that a
resume goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from limits import HANG_S

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from depo_rl import GroupOutcome, Prompt, make_curriculum  # noqa: E402
from depo_rl.checkpoint import load_state, save_state  # noqa: E402
from depo_rl.cli import main  # noqa: E402
from depo_rl.config import EncoderFeatureSettings, FeatureSettings  # noqa: E402
from depo_rl.errors import ConfigError, StateMismatch  # noqa: E402
from depo_rl.features import backbone, embedding_cache  # noqa: E402
from depo_rl.features.backbone import FrozenEncoder, tiny_random  # noqa: E402
from depo_rl.features.experimental import encoder as module  # noqa: E402
from depo_rl.features.experimental.encoder import embed, principal_components  # noqa: E402
from depo_rl.features.table import FeatureTable  # noqa: E402

TEXTS = [f"What is {37 * i} plus {i * i}?" + " Explain." * (i % 4) for i in range(12)]
ODD = ["", "\ud800 lone surrogate", "数学 🙂 ∑", "\x00", "x" * 5000]
PROMPTS = [Prompt(f"k{i}", text, fields={"answer": i}) for i, text in enumerate(TEXTS * 2)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def embedded(monkeypatch):
    """The texts that went through the encoder."""
    texts, real = [], FrozenEncoder.embed
    monkeypatch.setattr(
        FrozenEncoder, "embed", lambda self, new, *a: texts.extend(new) or real(self, new, *a)
    )
    return texts


def given(tmp_path, **more):
    return EncoderFeatureSettings.model_validate(
        {"backbone": "tiny-random", "cache": str(tmp_path / "c")} | more
    )


def vectors(texts, settings):
    return embed(texts, settings)[1]


def files(tmp_path):
    return sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file())


def saved(folder, change=lambda model, tokenizer: None):
    """A folder with a real encoder of random weights; without a pooler, as many are."""
    with backbone.private_rng(1):
        tokenizer, model = tiny_random()
    change(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# -- embeddings ------------------------------------------------------------------------------------


def test_an_embedding_is_the_mean_over_the_texts_own_tokens(tmp_path):
    got = vectors([*TEXTS, *ODD], given(tmp_path, max_length=64))
    assert got.shape == (17, 64) and got.dtype == np.float32 and np.isfinite(got).all()
    tokenizer, model = backbone.load_backbone("tiny-random")
    for text, vector in zip(TEXTS, got, strict=False):
        with torch.no_grad():
            read = tokenizer([text], return_tensors="pt", truncation=True, max_length=64)
            alone = model.eval()(**read).last_hidden_state
        np.testing.assert_allclose(vector, alone[0].mean(0).numpy(), atol=1e-5)


def test_order_and_repeats_change_nothing(tmp_path):
    whole = vectors(TEXTS, given(tmp_path))
    turned = vectors(TEXTS[::-1] + TEXTS[:3], given(tmp_path, cache=str(tmp_path / "other")))
    np.testing.assert_array_equal(turned, np.vstack([whole[::-1], whole[:3]]))


def test_the_callers_modes_and_generators_are_left_alone(tmp_path):
    plain, before = vectors(TEXTS, given(tmp_path)), torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        again = vectors(TEXTS, given(tmp_path, cache=str(tmp_path / "other")))
    np.testing.assert_array_equal(plain, again)
    assert torch.equal(before, torch.get_rng_state())


def test_no_text_is_no_work(tmp_path, embedded):
    assert vectors([], given(tmp_path)).shape == (0, 64) and not embedded and not files(tmp_path)


# -- the cache -------------------------------------------------------------------------------------


def test_what_is_kept_is_not_computed_again_and_is_the_same(tmp_path, embedded):
    cold = vectors(TEXTS, given(tmp_path))
    assert len(embedded) == 12
    np.testing.assert_array_equal(vectors(TEXTS, given(tmp_path)), cold)
    assert len(embedded) == 12 and len(files(tmp_path)) == 1


def test_a_text_that_changed_is_the_only_one_computed(tmp_path, embedded):
    vectors(TEXTS, given(tmp_path))
    del embedded[:]
    vectors([*TEXTS[:-1], "another"], given(tmp_path))
    assert embedded == ["another"]


def test_another_length_or_encoder_has_entries_of_its_own(tmp_path, embedded):
    folder = saved(tmp_path / "enc")
    wide = vectors(TEXTS, given(tmp_path))
    assert not np.array_equal(vectors(TEXTS, given(tmp_path, max_length=8)), wide)
    assert not np.array_equal(vectors(TEXTS, given(tmp_path, backbone=folder)), wide)
    assert len(embedded) == 36


def test_a_moved_folder_keeps_its_entries_and_altered_weights_or_words_do_not(tmp_path, embedded):
    vectors(TEXTS, given(tmp_path, backbone=saved(tmp_path / "enc")))
    vectors(TEXTS, given(tmp_path, backbone=str((tmp_path / "enc").rename(tmp_path / "moved"))))
    assert len(embedded) == 12

    def bias(model, tokenizer):
        model.encoder.layer[0].output.dense.bias.data[0] += 1

    def cased(model, tokenizer):
        tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()

    for n, change in enumerate((bias, cased)):
        vectors(TEXTS, given(tmp_path, backbone=saved(tmp_path / f"enc{n}", change)))
        assert len(embedded) == 24 + 12 * n


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-7], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_a_damaged_file_is_said_and_made_again(tmp_path, embedded, caplog, damage):
    cold = vectors(TEXTS, given(tmp_path))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(vectors(TEXTS, given(tmp_path)), cold)
    assert "is damaged" in caplog.text and len(embedded) == 24 and path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, embedded, caplog):
    (tmp_path / "c").write_text("a file where the folder should be")
    assert vectors(TEXTS, given(tmp_path)).any() and vectors(TEXTS, given(tmp_path)).any()
    assert (
        len(embedded) == 24
        and "cannot be kept" in caplog.text
        and "estimator.encoder.cache" in caplog.text
    )


def test_a_full_disk_is_said_once_and_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_SHARD", 5)
    monkeypatch.setattr(embedding_cache.os, "replace", full)
    assert vectors(TEXTS, given(tmp_path)).any()
    assert len(caplog.records) == 1 and "No space left" in caplog.text and not files(tmp_path)


def test_what_was_computed_before_a_crash_is_kept(tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(module, "_SHARD", 5)
    real, calls = embedding_cache.EmbeddingCache.add, []

    def crash(self, keys, rows):
        real(self, keys, rows)
        calls.append(keys)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding_cache.EmbeddingCache, "add", crash)
        vectors(TEXTS, given(tmp_path))
    del embedded[:]
    vectors(TEXTS, given(tmp_path))
    assert len(embedded) == 2


@pytest.mark.slow
def test_processes_that_write_at_once_leave_whole_files(tmp_path, embedded):
    code = (
        "import sys; from depo_rl.features.experimental.encoder import embed\n"
        "from depo_rl.config import EncoderFeatureSettings as S\n"
        "embed([f'text {i}' for i in range(40)], S(backbone='tiny-random', cache=sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    running = [
        subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)
    ]
    assert [process.wait(timeout=HANG_S) for process in running] == [0, 0]
    assert {path.suffix for path in files(tmp_path)} == {".safetensors"}
    vectors([f"text {i}" for i in range(40)], given(tmp_path))
    assert not embedded


def test_the_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    vectors(TEXTS, given(tmp_path, cache=None))
    assert files(tmp_path)[0].relative_to(tmp_path / "c").parts[:2] == ("depo-rl", "embeddings")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedding_cache.default_cache() == Path("~/.cache/depo-rl/embeddings")


# -- principal components --------------------------------------------------------------------------


def test_components_keep_distances_and_have_norm_one():
    raw = np.random.default_rng(0).normal(size=(60, 6)).astype("f4") + 5
    kept = principal_components(raw, 8).astype("f8")
    assert kept.shape == (60, 6) and np.isclose((kept**2).sum(1).mean(), 1, atol=1e-2)
    assert (np.diff(kept.std(axis=0)) < 0).all()
    apart = np.linalg.norm(raw[0] - raw[1]) / np.linalg.norm(raw[2] - raw[3])
    assert np.isclose(
        np.linalg.norm(kept[0] - kept[1]) / np.linalg.norm(kept[2] - kept[3]), apart, rtol=1e-2
    )


def test_components_of_equal_vectors_and_of_none_are_zero():
    assert not principal_components(np.full((5, 3), 7.1, np.float32), 2).any()
    assert principal_components(np.zeros((0, 3), np.float32), 2).shape == (0, 2)


# -- the table -------------------------------------------------------------------------------------


def test_the_table_has_the_block_and_nothing_else_changes(tmp_path):
    small = {"n_buckets": 256, "n_random": 8}
    settings = FeatureSettings.model_validate({**small, "encoder": given(tmp_path, dims=10)})
    table, plain = (
        FeatureTable(PROMPTS, settings),
        FeatureTable(PROMPTS, FeatureSettings.model_validate(small)),
    )
    assert table.width == plain.width + 10 and table.nbytes == plain.nbytes + 24 * 10 * 2
    assert len(table.start(0.7)) == table.width and "tiny-random" in table.origin["encoder"]
    assert plain.origin == {"encoder": None}
    rows, same = table.rows(np.arange(24)), plain.rows(np.arange(24))
    assert rows.width == table.width
    np.testing.assert_array_equal(rows.dense[:, :-10], same.dense)
    assert np.isclose((rows.dense[:, -10:] ** 2).sum(1).mean(), 0.25, atol=1e-2)


def test_without_the_setting_torch_is_not_imported():
    code = (
        "import sys; from depo_rl import Prompt, make_curriculum;"
        "make_curriculum('depo+', [Prompt(str(i), 'x') for i in range(9)]); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the curriculum --------------------------------------------------------------------------------


def curriculum(tmp_path, **more):
    encoder = given(tmp_path, **more).model_dump() if more.pop("encoder", True) else None
    estimator = {"type": "fused", "n_buckets": 2**10, "n_random": 16, "encoder": encoder}
    return make_curriculum("depo+", PROMPTS, {"estimator": estimator, "warmup_steps": 1})


def step(one, number):
    batch = one.propose(4)
    one.settle([GroupOutcome(p.key, int(p.key[1:]) % 9, 8, policy_step=number) for p in batch])
    return [p.key for p in batch]


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole, first = curriculum(tmp_path), curriculum(tmp_path)
    expected = [step(whole, n) for n in range(8)]
    assert [step(first, n) for n in range(4)] == expected[:4]
    save_state(tmp_path / "state", first.state_dict())
    second = curriculum(tmp_path)
    second.load_state_dict(load_state(tmp_path / "state"))
    assert [step(second, n) for n in range(4, 8)] == expected[4:]
    assert str(second.estimator.state_dict()) == str(whole.estimator.state_dict())


@pytest.mark.parametrize(
    "other", [{"encoder": False}, {"max_length": 16}, {"dims": 8}, {"backbone": "folder"}]
)
def test_a_state_of_another_encoder_is_refused_naming_both(tmp_path, other):
    if "backbone" in other:
        other = {"backbone": saved(tmp_path / "folder")}
    one, two = curriculum(tmp_path), curriculum(tmp_path, **other)
    for saver, loader in ((one, two), (two, one)):
        with pytest.raises(
            StateMismatch, match=r"saved with encoder .*this run has .*resume with"
        ) as caught:
            loader.load_state_dict(saver.state_dict())
        assert "tiny-random (" in str(caught.value) and "\n" not in str(caught.value)


# -- bad input -------------------------------------------------------------------------------------


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"estimator\.encoder\.backbone = '.*nothing here'.*tiny-random"
    ):
        vectors(TEXTS, given(tmp_path, backbone=str(tmp_path / "nothing here")))
    with pytest.raises(ConfigError, match=r"estimator\.encoder\.device = 'warp-drive'"):
        vectors(TEXTS, given(tmp_path, device="warp-drive"))


def test_missing_libraries_are_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name == "transformers" else object()
    )
    with pytest.raises(
        ConfigError, match=r"needs transformers, not installed: pip install './depo-rl\[trl\]'"
    ):
        vectors(TEXTS, given(tmp_path))


def test_an_encoder_that_gives_no_numbers_is_named(tmp_path):
    def broken(model, tokenizer):
        model.encoder.layer[0].output.dense.bias.data[0] = float("nan")

    with pytest.raises(ConfigError, match=r"gives 12 of 12 texts NaN"):
        vectors(TEXTS, given(tmp_path, backbone=saved(tmp_path / "enc", broken)))
    assert not files(tmp_path)


def test_settings_are_short_and_closed():
    short = make_curriculum("depo", [Prompt("a", "b")], {"estimator": {"type": "fused"}}).config
    assert short.estimator.encoder is None
    settings = FeatureSettings.model_validate({"encoder": "tiny-random"})
    assert settings.encoder == EncoderFeatureSettings(backbone="tiny-random")
    with pytest.raises(
        ConfigError, match=r"unknown setting 'estimator\.encoder\.max_lenght'.*'max_length'"
    ):
        wrong = {"type": "fused", "encoder": {"backbone": "tiny-random", "max_lenght": 5}}
        make_curriculum("depo+", PROMPTS, {"estimator": wrong})


def test_the_command_replays_with_an_encoder(tmp_path, capsys, embedded):
    rows = [json.dumps({"prompt": f"task {i}", "pass_rate": i % 5 / 4}) for i in range(60)]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    options = [
        "--methods",
        "grpo,depo+",
        "--prompts-per-step",
        "4",
        "--steps",
        "4",
        "--seeds",
        "0",
        "--json",
    ]
    sets = ["type=fused", "encoder.backbone=tiny-random", f"encoder.cache={tmp_path / 'c'}"]
    sets = [word for text in sets for word in ("--set", f"depo+.estimator.{text}")]
    assert (
        main(
            [
                "replay",
                str(tmp_path / "pool.jsonl"),
                *options,
                *sets,
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert len(embedded) == 60 and json.loads(capsys.readouterr().out)["notes"]


def test_nothing_is_drawn_where_there_is_no_terminal(tmp_path, capfd):
    vectors(TEXTS, given(tmp_path, backbone=saved(tmp_path / "enc")))
    capfd.readouterr()
    vectors([*TEXTS[:3], "new"], given(tmp_path, backbone=str(tmp_path / "enc")))
    assert "".join(capfd.readouterr()) == ""
