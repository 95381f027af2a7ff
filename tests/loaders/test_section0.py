"""Section 0: the statistics of the real features come out again, to the digits printed with them."""

from __future__ import annotations

import numpy as np
import pytest

from reprolib.loaders import load_manifest, load_split

# shape, gap norm, mean positive cosine, mean image-image and text-text cosine, R@1 image->text, text->image
PRINTED = {
    "coco-clip-500": ((2, 500, 512), 0.8514, 0.3099, 0.5315, 0.5152, 0.552, 0.506),
    "coco-clip-500-random": ((2, 500, 512), 1.1361, 0.0285, 0.6814, 0.6635, 0.002, 0.002),
    "clasp-99": ((2, 99, 768), 1.0447, 0.1196, 0.6072, 0.7050, 0.030, 0.000),
    "videoclip-100": ((2, 100, 768), 1.0669, 0.0915, 0.6889, 0.4947, 0.370, 0.240),
}
# by hand, for images e_i and texts 0.6 e_i + 0.8 e_last (n = 12): gap^2 = 12 (0.4 / 12)^2 + 0.8^2
BY_HAND = ((2, 12, 24), round((12 * (0.4 / 12) ** 2 + 0.64) ** 0.5, 4), 0.6, 0.0, 0.64, 1.0, 1.0)


@pytest.mark.parametrize("name", PRINTED)
def test_the_statistics_of_section_0_come_out_again(name, mirror):
    split = load_split(name, mirror=mirror.path)
    image, text = (rows.astype(np.float64) for rows in (split.image, split.text))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    n = len(image)
    assert (split.relevance.toarray() == np.eye(n, dtype=bool)).all()

    cosine = image @ text.T
    other = ~np.eye(n, dtype=bool)
    found = (
        (2, *image.shape),
        round(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0)), 4),
        round(np.diag(cosine).mean(), 4),
        round((image @ image.T)[other].mean(), 4),
        round((text @ text.T)[other].mean(), 4),
        round((cosine.argmax(axis=1) == np.arange(n)).mean(), 3),
        round((cosine.argmax(axis=0) == np.arange(n)).mean(), 3),
    )
    assert found == (PRINTED[name] if mirror.real else BY_HAND)


@pytest.mark.parametrize("name", PRINTED)
def test_the_manifest_states_the_same_numbers(name):
    manifest = load_manifest(name)
    assert tuple(manifest.statistics.values()) == PRINTED[name][1:]
    assert PRINTED[name][0] == (2, manifest.counts["images"], manifest.counts["width"])


@pytest.mark.parametrize("name", ["coco-clip-500-random", "videoclip-100-random", "clasp-99", "clasp-99-random"])
def test_negative_controls_retrieve_at_chance(name):
    manifest = load_manifest(name)
    hits = manifest.counts["images"] * manifest.statistics["r1_image_to_text"]
    assert round(hits) <= 3, "chance finds one of n; more than three hits have a probability below 2 %"
