"""From a checkpoint with the released names to features, maps and a loop of one's own."""

import torch

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.data.samples import SAMPLES, sample_video
from tests.model.weight_layouts import backbone_state, training_checkpoint


def test_a_released_checkpoint_gives_features_maps_and_a_loop_of_ones_own(tmp_path, capsys):
    path = training_checkpoint(tmp_path / "endo_fm.pth")
    assert main(["inspect", str(path)]) == 0
    assert "teacher" in capsys.readouterr().out
    model = lab.load_model(str(path))
    assert torch.equal(model.backbone.cls_token, backbone_state(0)["cls_token"])

    video = sample_video(next(iter(SAMPLES)))
    features = lab.FeatureExtractor(model).fit([video]).transform([str(video)])
    clip = lab.read_clip(str(video), model.card.clip, "centre")
    x = lab.to_input(clip.frames, model.card.input)
    with torch.no_grad():
        tokens = model.backbone(x)
    assert features.shape == (1, 128)
    assert torch.allclose(torch.from_numpy(features), tokens.cls, atol=1e-3)

    maps = lab.look(model, x)
    assert maps.blocks == 2 and maps.in_space(-1).shape == (4, 2, 2)
    assert bool((maps.in_space(-1).sum((1, 2)) <= 1).all())

    head = torch.nn.Linear(model.backbone.width, 2)
    optimiser = torch.optim.SGD([*head.parameters(), *model.backbone.parameters()], lr=0.01)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(head(model.backbone(x).pooled()), torch.tensor([1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
