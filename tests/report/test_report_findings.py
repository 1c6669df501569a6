"""What is kept of a test: counts, the surest mistakes with their images as they were, reconstructions, filters."""

import numpy as np
import pytest

from minidl import models, nn
from minidl.report import findings as module
from minidl.report.findings import Findings, first_weights

GENERATOR = np.random.default_rng(0)


def logits(rows):
    return np.array(rows, np.float32)


class TestCounts:
    def test_are_of_what_it_is_and_what_it_was_taken_for(self):
        found = Findings((2,), 3, None)
        found(np.zeros((4, 2)), logits([[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]]), np.array([0, 1, 1, 2]))
        found(np.zeros((1, 2)), logits([[0, 0, 9]]), np.array([0]))
        assert found.counts.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]] and found.seen == 5

    def test_of_too_many_classes_are_left_out(self):
        found = Findings((2,), module.CLASSES + 1, None)
        found(np.zeros((1, 2)), np.eye(module.CLASSES + 1)[:1], np.array([5]))
        assert "counts" not in found.arrays(nn.Affine(2, 2)) and len(found.mistakes) == 1

    @pytest.mark.parametrize("outputs, y", [(np.zeros((4, 5, 3)), np.zeros((4, 5), int)), (np.zeros((4, 7)), np.zeros(4, int)),
                                            (np.zeros(4), np.zeros(4))])
    def test_what_is_no_such_classification_is_passed_over(self, outputs, y):
        found = Findings((2,), 3, None)
        found(np.zeros((4, 2)), outputs, y)
        assert found.counts.sum() == 0 and not found.mistakes


class TestMistakes:
    def test_the_surest_are_kept_over_all_minibatches(self, monkeypatch):
        monkeypatch.setattr(module, "MISTAKES", 3)
        found = Findings((1, 2, 2), 2, None)
        sure = [0.6, 0.9, 0.7, 0.95, 0.55, 0.8]
        for part in (slice(0, 4), slice(4, 6)):
            p = np.array(sure[part])
            x = np.broadcast_to(p[:, None, None, None], (len(p), 1, 2, 2))
            found(x, np.stack([np.log(p), np.log(1 - p)], axis=1), np.ones(len(p), int))
        kept = found.arrays(nn.Affine(2, 2))
        np.testing.assert_allclose(kept["mistakes_sure"], [0.95, 0.9, 0.8])
        assert kept["mistakes_right"].tolist() == [1, 1, 1] and kept["mistakes_taken"].tolist() == [0, 0, 0]
        assert kept["mistakes"][:, 0, 0, 0].tolist() == [242, 230, 204] and kept["mistakes"].dtype == np.uint8

    def test_their_images_are_as_before_they_were_normalised(self):
        images = GENERATOR.random((5, 3, 4, 4))
        mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
        x = (images - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
        found = Findings((3, 4, 4), 2, {"mean": mean.tolist(), "std": std.tolist()})
        found(x, np.tile([0.0, 1.0], (5, 1)), np.zeros(5, int))
        assert abs(found.arrays(nn.Affine(2, 2))["mistakes"] / 255 - images).max() <= 0.51 / 255

    def test_of_vectors_have_no_images(self):
        found = Findings((4,), 2, None)
        found(np.zeros((1, 4)), logits([[0, 1]]), np.array([0]))
        assert "mistakes" not in found.arrays(nn.Affine(2, 2)) and len(found.arrays(nn.Affine(2, 2))["mistakes_sure"]) == 1

    def test_of_scores_beyond_all_measure(self):
        found = Findings((4,), 2, None)
        found(np.zeros((2, 4)), logits([[0, 1e30], [np.inf, 0]]), np.array([0, 1]))
        assert len(found.mistakes) == 2


class TestReconstructions:
    def test_are_kept_beside_the_first_inputs(self):
        found = Findings((1, 2, 2), 10, None, rebuilds=True)
        x = GENERATOR.random((20, 1, 2, 2))
        found(x, np.log(x / (1 - x)).reshape(20, 4), np.zeros(20, int))
        found(1 - x, np.zeros((20, 4)), np.zeros(20, int))
        kept = found.arrays(nn.Affine(4, 4))
        assert kept["inputs"].shape == (module.PAIRS, 1, 2, 2) and (kept["inputs"] == kept["reconstructions"]).all()
        assert "counts" not in kept and kept["seen"] == 40


class TestFirstWeights:
    def test_of_a_convolution(self):
        path, w = first_weights(models.create("lenet", input_shape=(1, 28, 28), classes=10, generator=0), (1, 28, 28))
        assert path == "features.0.w" and w.ndim == 4 and w.shape[1] == 1

    def test_of_an_affine_layer_that_looks_at_images(self):
        net = models.create("mlp", input_shape=(3, 4, 4), classes=10, generator=0)
        path, w = first_weights(net, (3, 4, 4))
        assert w.shape == (512, 3, 4, 4) and path == "layers.1.w"
        np.testing.assert_array_equal(w[5].ravel(), dict(net.named_parameters())[path].data[:, 5])

    @pytest.mark.parametrize("shape", [(48,), (1, 6, 8), (48, 1, 1)])
    def test_of_one_that_looks_at_something_else_there_are_none(self, shape):
        w = first_weights(nn.Affine(48, 5), shape)[1]
        assert (w is not None) == (shape == (1, 6, 8))

    def test_of_a_model_without_any(self):
        assert first_weights(nn.Flatten(), (1, 2, 2)) == ("", None)

    def test_no_more_are_kept_than_can_be_seen(self):
        kept = Findings((1, 2, 2), 2, None).arrays(nn.Affine(4, 500))
        assert len(kept["filters"]) == module.FILTERS and kept["filters_all"] == 500
