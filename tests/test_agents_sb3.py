"""The Stable-Baselines3 bridge reads frames of any size, and a trained model is an agent."""

from __future__ import annotations

import importlib
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

torch = pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO  # noqa: E402
from stable_baselines3 import A2C, PPO  # noqa: E402
from stable_baselines3.common.preprocessing import preprocess_obs  # noqa: E402

from agents.sb3 import FrameExtractor, sb3_policy  # noqa: E402
from agents.scripted import Agent  # noqa: E402
from examples.evaluate import evaluate  # noqa: E402
from gym_longvideo.wrappers import ChannelStack  # noqa: E402

# Under Python 3.11 with NumPy 2.4, TensorBoard warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ID = "gym_longvideo:LongVideoQA-v0"
KWARGS = {"features_extractor_class": FrameExtractor, "net_arch": [8]}


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(**options):
    suite_options = {"families": "needle", "duration_s": 60.0, "size": 8}
    return gym.make(
        ID, suite_options=suite_options, **{"frame_size": 8, "question_bytes": 64, **options}
    )


def tensors(env, observation):
    """Return a batch of one observation, as SB3 hands it to an extractor."""
    batch = {key: torch.as_tensor(np.asarray(value))[None] for key, value in observation.items()}
    return preprocess_obs(batch, env.observation_space)


@pytest.mark.parametrize(
    "options",
    [
        {"frame_size": 8},
        {"frame_size": (9, 31)},
        {"frame_size": 20},
        {"frame_size": 56},
        {"frame_size": (224, 128)},
        {"pool_size": 7, "frame_budget": 4},
        {"pool_size": 500, "max_turns": 1},
        {"max_turns": 9, "overview_frames": 0, "frames_per_retrieval": 1},
    ],
    ids=str,
)
def test_frames_pools_and_turns_of_any_size_give_features_of_the_promised_length(options):
    env = make(**options)
    observation, _ = env.reset(seed=0)
    extractor = FrameExtractor(env.observation_space, features=5)
    features = extractor(tensors(env, observation))
    count, turns = env.observation_space["frames"].shape[0], env.unwrapped.max_turns
    assert extractor.features_dim == count * 6 + 5 + turns + 1
    assert features.shape == (1, extractor.features_dim)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("side", [20, 56, 224])
def test_what_a_feature_spans_does_not_depend_on_the_frame_size(side):
    env = make(frame_size=side)
    extractor = FrameExtractor(env.observation_space)
    maps = extractor.look(extractor.shrink(torch.zeros(1, 3, side, side)))
    assert 4 <= maps.shape[-1] <= 8


def test_features_tell_what_was_seen_and_when_but_not_what_padding_holds():
    env = make(frame_budget=8, max_turns=2)
    torch.manual_seed(0)
    extractor = FrameExtractor(env.observation_space)
    first, _ = env.reset(seed=0)
    features = extractor(tensors(env, first))

    def moved(key, value):
        return not torch.equal(extractor(tensors(env, {**first, key: value})), features)

    frames = first["frames"].copy()
    frames[1] = 255 - frames[1]
    assert moved("frames", frames)
    assert moved("turn", np.int64(1))
    assert moved("frame_index", first["frame_index"][::-1].copy())
    second, *_ = env.step(np.array([0, 4, 5, 0]))  # two frames, two slots of padding
    features, first = extractor(tensors(env, second)), second
    frames = second["frames"].copy()
    frames[2:] = 77
    assert not moved("frames", frames)
    # Left out on purpose.
    assert not moved("question", np.zeros_like(second["question"]))


def without(space, key):
    return spaces.Dict({name: part for name, part in space.spaces.items() if name != key})


def test_a_space_that_is_not_the_environments_is_refused_with_what_to_do():
    space = make().observation_space
    with pytest.raises(ValueError, match="needs the Dict observation"):
        FrameExtractor(ChannelStack(make(frame_size=64)).observation_space)
    for key in ("frames", "frame_index", "seen", "turn"):
        with pytest.raises(ValueError, match=rf"\['{key}'\] missing"):
            FrameExtractor(without(space, key))
    flat = spaces.Dict({**space.spaces, "frames": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) are not \(F, H, W, 3\)"):
        FrameExtractor(flat)
    other = spaces.Dict({**space.spaces, "frame_index": spaces.Box(-1, 9, (3,), np.int64)})
    with pytest.raises(ValueError, match="does not go with frames"):
        FrameExtractor(other)
    with pytest.raises(ValueError, match="frame_size=8 or more"):
        FrameExtractor(make(frame_size=(8, 7)).observation_space)
    for features in (0, 2.5, True):
        with pytest.raises(ValueError, match="features="):
            FrameExtractor(space, features=features)


@pytest.mark.parametrize("algorithm", [PPO, A2C, MaskablePPO])
def test_a_model_learns_with_the_extractor_is_saved_and_plays_as_an_agent(algorithm, tmp_path):
    env = make(frame_budget=4, pool_size=8)
    batches = {} if algorithm is A2C else {"batch_size": 16}
    options = {"n_steps": 16, "policy_kwargs": KWARGS, "seed": 0, "device": "cpu", **batches}
    model = algorithm("MultiInputPolicy", env, **options)
    before = [part.clone() for part in model.policy.features_extractor.parameters()]
    model.learn(32)
    after = model.policy.features_extractor.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    agent = sb3_policy(model)
    assert isinstance(agent, Agent)
    assert agent.name == algorithm.__name__
    score = evaluate(env, agent, 8)
    assert score.episodes == 8
    model.save(tmp_path / "model")
    again = sb3_policy(algorithm.load(tmp_path / "model", device="cpu"))
    again.reset(5)  # greedy: nothing to seed
    assert evaluate(env, again, 8) == score


def test_a_masked_model_never_acts_illegally():
    env = make(frame_budget=4, pool_size=128, max_turns=2)
    agent = sb3_policy(MaskablePPO("MultiInputPolicy", env, policy_kwargs=KWARGS, device="cpu"))
    for index in range(8):
        observation, _ = env.reset(seed=0, options={"index": index})
        over = False
        while not over:
            observation, _, over, _, info = env.step(agent.act(env.unwrapped, observation))
            assert info["malformed"] == ""


def test_only_this_module_imports_stable_baselines3():
    code = "import agents, agents.scripted, sys; sys.exit('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_trains_on_files_and_compares(monkeypatch, capsys, tmp_path):
    sizes = "--steps 64 --n-envs 2 --n-steps 16 --videos 2 --episodes 2 --seconds 60".split()
    out = ["--mp4", str(tmp_path / "videos"), "--save", str(tmp_path / "model.zip")]
    monkeypatch.setattr(sys, "argv", ["train_sb3", *sizes, *out])
    importlib.import_module("examples.train_sb3").main()
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert lines[0].split() == ["policy", "accuracy", "95", "%", "interval", "turns", "frames"]
    assert [line.split()[0] for line in lines[1:]] == [
        "random",
        "overview-only",
        "trained",
        "oracle",
    ]
    assert lines[-1].split()[1] == "1.000"
    assert len(list((tmp_path / "videos" / "train" / "videos").glob("*.mp4"))) == 2
    assert len(list((tmp_path / "videos" / "val" / "videos").glob("*.mp4"))) == 2
    assert (tmp_path / "model.zip").exists()
