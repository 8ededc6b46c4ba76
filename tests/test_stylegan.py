"""StyleGAN and VQ-VAE-2: agreement with the released networks, every size, slow plain computations, bad input."""

import numpy as np
import pytest
import torch
from parity import drawn, filled, fixture
from torch import nn
from torch.nn import functional

from deepfake_nb.networks.stylegan import (
    Discriminator,
    Encoder,
    Generator,
    append_batch_deviation,
    binomial_kernels,
    convolve_and_halve,
    double_and_convolve,
    encoder_settings,
    generator_settings,
    mix_styles,
    require_same_codes,
    restore_encoder,
    restore_generator,
    style_count,
)
from deepfake_nb.networks.vqvae import VQVAE2, Codebook, Indices
from deepfake_nb.study.files import InputError, UsageError

SIZES = (32, 64, 128, 256, 512, 1024)
SMALL = {"style_size": 16, "channels_base": 512, "max_channels": 24}


def default(key, shape):
    """A tensor that the parity fixtures do not fill."""
    if key.endswith("lod"):
        return torch.zeros(shape)
    if key.endswith("blur.kernel"):
        return binomial_kernels(shape[0])
    return torch.cat([torch.full((1, 8, 1), 0.7), torch.ones(1, shape[1] - 8, 1)], dim=1)


def released_generator_tensors(resolution=32, width=6, style_size=8, fused_from=16):
    """Random tensors under the released names, with fused layers from a small side on."""
    rng = np.random.default_rng(0)
    layers = style_count(resolution)
    shapes = {f"mapping.dense{i}.fc.weight": (style_size, style_size) for i in range(7)}
    shapes |= {f"mapping.dense{i}.wscale.bias": (style_size,) for i in range(7)}
    shapes |= {"mapping.dense7.fc.weight": (layers * style_size, style_size)}
    shapes |= {"mapping.dense7.wscale.bias": (layers * style_size,), "truncation.w_avg": (style_size,)}
    shapes |= {"synthesis.layer0.const": (1, width, 4, 4)}
    for layer in range(layers):
        name, side = f"synthesis.layer{layer}", 4 * 2 ** (layer // 2)
        if layer and layer % 2 == 0 and side >= fused_from:
            shapes[f"{name}.weight"] = (3, 3, width, width)
        elif layer:
            shapes[f"{name}.conv.weight"] = (width, width, 3, 3)
        if layer and layer % 2 == 0:
            shapes[f"{name}.blur.kernel"] = (width, 1, 3, 3)
        shapes[f"{name}.epilogue.bias"] = shapes[f"{name}.epilogue.apply_noise.weight"] = (width,)
        shapes[f"{name}.epilogue.apply_noise.noise"] = (1, 1, side, side)
        shapes[f"{name}.epilogue.style_mod.dense.fc.weight"] = (2 * width, style_size)
        shapes[f"{name}.epilogue.style_mod.dense.wscale.bias"] = (2 * width,)
    for output in range(layers // 2):
        shapes |= {
            f"synthesis.output{output}.conv.weight": (3, width, 1, 1),
            f"synthesis.output{output}.bias": (3,),
        }
    tensors = {
        key: torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for key, shape in shapes.items()
    }
    return tensors | {"synthesis.lod": torch.zeros(()), "truncation.truncation": torch.zeros(1, layers, 1)}


@pytest.fixture(scope="module")
def parity():
    return fixture("stylegan")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Generator(64, **SMALL).eval()


@pytest.fixture(scope="module")
def released_size(parity):
    """The generator of the released size, filled by the rule of the fixtures."""
    kept = parity["kept_at_their_default"]
    shapes = parity["generator_keys"].items()
    return restore_generator({k: (default if k in kept else filled)(k, shape) for k, shape in shapes})


class TestParity:
    def test_mapping_and_truncation(self, released_size, parity):
        generator = released_size
        with torch.no_grad():
            w = generator.mapping(drawn("z", parity["inputs"]["z"]))
            w_plus = generator.truncate(w)
        expected = torch.tensor(parity["mapping(z)[:, :8]"])
        assert (w[:, :8] - expected).abs().max() < 1e-3
        coarse, fine = torch.tensor(parity["truncation(mapping(z))[:, (0, 13), :8]"])
        assert (w_plus[:, 0, :8] - coarse).abs().max() < 1e-3
        assert (w_plus[:, 13, :8] - fine).abs().max() < 1e-3
        assert (generator.truncate(w, strength=1)[:, 0, :8] - coarse).abs().max() > 1e-3

    def test_synthesis(self, released_size, parity):
        expected = parity["synthesis(w_plus)"]
        with torch.no_grad():
            images = released_size.synthesis(drawn("w_plus", parity["inputs"]["w_plus"]))
        assert list(images.shape) == expected["shape"]
        found = images.flatten()[expected["flat_index"]]
        assert (found - torch.tensor(expected["value"])).abs().max() < 1e-3
        assert images.mean(dim=(1, 2, 3)).tolist() == pytest.approx(expected["mean"], abs=1e-4)
        assert images.std(dim=(1, 2, 3)).tolist() == pytest.approx(expected["std"], abs=1e-4)

    def test_encoder(self, parity):
        encoder = restore_encoder({k: filled(k, shape) for k, shape in parity["encoder_keys"].items()})
        expected = parity["encoder(tanh(image))"]
        with torch.no_grad():
            codes = encoder(drawn("image", parity["inputs"]["image"]).tanh())
        assert codes.shape == (2, 14, 512)
        flat = codes.flatten(1)
        assert (flat[:, :16] - torch.tensor(expected["first 16"])).abs().max() < 1e-3
        assert flat.mean(dim=1).tolist() == pytest.approx(expected["mean"], abs=1e-4)
        assert flat.std(dim=1).tolist() == pytest.approx(expected["std"], abs=1e-4)


@pytest.mark.parametrize("resolution", SIZES)
def test_every_resolution_builds_and_gives_outputs(resolution):
    with torch.device("meta"):
        generator, encoder = Generator(resolution), Encoder(resolution).eval()
        critic = Discriminator(resolution)
        images = generator(torch.empty(2, 512))
        codes = encoder(images)
        logits = critic(images)
    assert images.shape == (2, 3, resolution, resolution)
    assert codes.shape == (2, style_count(resolution), 512)
    assert logits.shape == (2,)
    require_same_codes(generator, encoder)


def test_style_counts():
    assert [style_count(size) for size in SIZES] == [8, 10, 12, 14, 16, 18]


@pytest.mark.parametrize("resolution", (32, 64))
def test_small_ones_run(resolution):
    torch.manual_seed(1)
    generator = Generator(resolution, **SMALL, style_per_layer=False)
    encoder = Encoder(resolution, style_size=16, first_channels=4, max_channels=16).eval()
    images = generator(torch.randn(3, 16))
    assert images.isfinite().all() and images.std() > 0.01
    assert generator.synthesis(encoder(images)).shape == images.shape
    assert Discriminator(resolution, channels_base=512, max_channels=24)(images).isfinite().all()


@pytest.mark.parametrize("resolution", (16, 96, 2048, 0, "256"))
@pytest.mark.parametrize("build", (Generator, Encoder, Discriminator))
def test_other_resolutions_are_refused(build, resolution):
    with pytest.raises(UsageError, match="32, 64, 128, 256, 512, 1024"):
        build(resolution)


def slow_double_and_convolve(maps, kernels):
    """Every output cell on its own: sum over inputs of weights times the copied cell that each weight meets."""
    maps, kernels = maps.numpy().astype(np.float64), kernels.numpy().astype(np.float64)
    count, _, height, width = maps.shape
    out = np.zeros((count, len(kernels), 2 * height, 2 * width))
    for row, column in np.ndindex(2 * height, 2 * width):
        for down, right in np.ndindex(3, 3):
            y, x = row + down - 1, column + right - 1
            if 0 <= y < 2 * height and 0 <= x < 2 * width:
                out[:, :, row, column] += maps[:, :, y // 2, x // 2] @ kernels[:, :, down, right].T
    return out


@pytest.mark.parametrize("fused", (False, True))
def test_both_ways_up_are_the_slow_one(fused):
    torch.manual_seed(2)
    maps, kernels = torch.randn(2, 3, 3, 5), torch.randn(4, 3, 3, 3)
    found = double_and_convolve(maps, kernels, fused).numpy()
    np.testing.assert_allclose(found, slow_double_and_convolve(maps, kernels), atol=1e-5)


def test_halving_is_convolution_and_mean():
    torch.manual_seed(3)
    maps, kernels, bias = torch.randn(2, 3, 6, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    plain = functional.avg_pool2d(functional.conv2d(maps, kernels, padding=1), 2) + bias[:, None, None]
    torch.testing.assert_close(convolve_and_halve(maps, kernels, bias), plain, atol=1e-5, rtol=1e-5)


def test_fused_and_plain_generators_make_the_same_pictures_and_gradients(small):
    other = Generator(64, **SMALL, fused_from=2048).eval()
    other.load_state_dict(small.state_dict())
    results = []
    for network in (small, other):
        w_plus = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(4)).requires_grad_()
        images = network.synthesis(w_plus)
        images.square().mean().backward()
        results.append((images.detach(), w_plus.grad))
    assert any(layer.source.fused for layer in small.synthesis.layers[2::2])
    assert not any(layer.source.fused for layer in other.synthesis.layers[2::2])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_released_fused_kernels_mean_what_the_transposed_convolution_says():
    """A released kernel (3, 3, inputs, outputs) is padded, summed at four places, and applied transposed."""
    tensors = released_generator_tensors()
    name = "synthesis.layer4"
    generator = restore_generator(tensors)
    maps = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(5))
    spread = torch.zeros(6, 6, 4, 4)
    for down, right in np.ndindex(2, 2):
        spread[:, :, down : down + 3, right : right + 3] += tensors[f"{name}.weight"].permute(2, 3, 0, 1)
    doubled = functional.conv_transpose2d(maps, spread * np.sqrt(2 / 54), stride=2, padding=1)
    expected = functional.conv2d(doubled, tensors[f"{name}.blur.kernel"], padding=1, groups=6)
    for fused in (False, True):
        source = generator.synthesis.layers[4].source
        source.fused = fused
        torch.testing.assert_close(source(maps), expected, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_style_vector(small):
    w_plus = torch.randn(2, 10, 16, requires_grad=True)
    small.synthesis(w_plus).square().sum().backward()
    assert (w_plus.grad.abs().amax(dim=2) > 0).all()


def test_truncation_is_a_line_to_the_mean_style(small):
    w = small.mapping(torch.randn(3, 16))
    w_plus = w.reshape(3, 10, 16)
    mean = small.truncation.mean_style
    torch.testing.assert_close(small.truncate(w)[:, :8], mean + 0.7 * (w_plus[:, :8] - mean))
    torch.testing.assert_close(small.truncate(w)[:, 8:], w_plus[:, 8:])
    torch.testing.assert_close(small.truncate(w_plus, strength=0.5, layers=1)[:, 1:], w_plus[:, 1:])
    torch.testing.assert_close(small.truncate(w, strength=0), mean.expand(3, 10, 16))


def test_mean_style_follows_slowly():
    generator = Generator(32, **SMALL, style_per_layer=False)
    generator.truncation.follow(torch.full((5, 16), 2.0), decay=0.75)
    torch.testing.assert_close(generator.truncation.mean_style, torch.full((16,), 0.5))


def test_noise_is_fixed_random_or_none(small):
    network = restore_generator(small.state_dict()).requires_grad_(False)
    w_plus = torch.randn(2, 10, 16)
    assert torch.equal(network.synthesis(w_plus), network.synthesis(w_plus, noise="none"))
    for layer in network.synthesis.layers:
        layer.noise_strength.fill_(0.5)
    seeded = [
        network.synthesis(w_plus, noise="random", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    assert torch.equal(network.synthesis(w_plus), network.synthesis(w_plus))
    assert not torch.equal(network.synthesis(w_plus), network.synthesis(w_plus, noise="none"))
    with pytest.raises(UsageError, match="'fixed', 'random' or 'none'"):
        network.synthesis(w_plus, noise="loud")


def test_styles_mix_at_another_layer_for_each_picture():
    first, second = torch.zeros(3, 10, 2), torch.ones(3, 10, 2)
    mixed = mix_styles(first, second, torch.tensor([0, 4, 10]))
    assert mixed[:, :, 0].sum(dim=1).tolist() == [10, 6, 0]


class TestReading:
    def test_released_names_and_ours_make_the_same_network(self):
        released = released_generator_tensors()
        generator = restore_generator(released)
        again = restore_generator(generator.state_dict())
        z = torch.randn(2, 8)
        assert torch.equal(generator(z), again(z))
        assert not generator.training
        assert generator_settings(released)["resolution"] == 32
        assert generator.settings["style_per_layer"]

    def test_the_truncation_of_the_file_is_not_used(self):
        strengths = restore_generator(released_generator_tensors()).truncation.strengths
        assert strengths.flatten().tolist() == pytest.approx([0.7] * 8)

    @pytest.mark.parametrize("resolution", (32, 64))
    def test_settings_are_read_off_tensors(self, resolution):
        generator = Generator(resolution, **SMALL, style_per_layer=False, mapping_layers=3)
        found = generator_settings(generator.state_dict())
        assert found.items() <= generator.settings.items()
        encoder = Encoder(resolution, style_size=16, first_channels=4, max_channels=16)
        assert encoder_settings(encoder.state_dict()) == encoder.settings

    def test_the_tanh_is_said_not_read(self):
        tensors = released_generator_tensors()
        w_plus = torch.randn(1, 8, 8)
        closed, open_ = restore_generator(tensors), restore_generator(tensors, final_tanh=False)
        torch.testing.assert_close(closed.synthesis(w_plus), open_.synthesis(w_plus).tanh())

    def test_half_precision_is_read_into_single(self):
        tensors = {key: value.half() for key, value in Generator(32, **SMALL).state_dict().items()}
        assert restore_generator(tensors).synthesis.constant.dtype == torch.float32

    def test_a_generator_that_was_still_growing(self):
        with pytest.raises(InputError, match="still growing"):
            restore_generator(released_generator_tensors() | {"synthesis.lod": torch.tensor(1.5)})

    @pytest.mark.parametrize(
        ("lost", "sentence"),
        [
            ("synthesis.layer5.conv.weight", "lacks 1 tensors such as 'synthesis.layers.5.source.weight'"),
            ("mapping.dense7.wscale.bias", "not those of a StyleGAN generator"),
            ("synthesis.layer0.epilogue.style_mod.dense.fc.weight", "no 'synthesis.layers.0.style.weight'"),
            ("synthesis.layer7.epilogue.bias", "not those of a StyleGAN generator"),
        ],
    )
    def test_a_generator_with_a_hole(self, lost, sentence):
        tensors = released_generator_tensors()
        del tensors[lost]
        with pytest.raises(InputError, match=sentence):
            restore_generator(tensors)

    @pytest.mark.parametrize("shape", [(), (3,), (6, 6, 3, 5)])
    def test_a_tensor_of_another_shape(self, shape):
        tensors = released_generator_tensors() | {"synthesis.layer5.conv.weight": torch.zeros(shape)}
        with pytest.raises(InputError, match="in another shape"):
            restore_generator(tensors)

    @pytest.mark.parametrize(
        "tensors", [{}, {"fc.weight": torch.zeros(2, 2)}, {"block7.fc.weight": torch.zeros(3)}]
    )
    @pytest.mark.parametrize("restore", (restore_generator, restore_encoder))
    def test_something_else(self, restore, tensors):
        with pytest.raises(InputError, match="These tensors are not those of a StyleGAN"):
            restore(tensors)

    def test_an_encoder_is_no_generator(self, small):
        encoder = Encoder(64, style_size=16, first_channels=4, max_channels=16)
        with pytest.raises(InputError, match="not those of a StyleGAN generator"):
            restore_generator(encoder.state_dict())
        with pytest.raises(InputError, match="not those of a StyleGAN encoder"):
            restore_encoder(small.state_dict())


class TestWrongShapes:
    def test_codes_of_another_generator(self, small):
        with pytest.raises(InputError, match=r"\(N, 10, 16\), not \(1, 14, 512\)"):
            small.synthesis(torch.zeros(1, 14, 512))
        with pytest.raises(InputError, match="10 style vectors of 16"):
            small.truncate(torch.zeros(1, 512))

    def test_noise_of_another_length(self, small):
        with pytest.raises(InputError, match=r"\(N, 16\), not \(2, 512\)"):
            small.mapping(torch.zeros(2, 512))

    def test_pictures_of_another_size(self):
        networks = [
            Encoder(32, style_size=8, first_channels=4, max_channels=8),
            Discriminator(32, channels_base=64, max_channels=8),
            VQVAE2(32, channels=8, residual_channels=4, codebook_size=8, code_size=4),
        ]
        for network in networks:
            with pytest.raises(InputError, match=r"\(N, 3, 32, 32\), not \(1, 3, 64, 64\); resize"):
                network(torch.zeros(1, 3, 64, 64))

    def test_generator_and_encoder_that_do_not_belong_together(self, small):
        for encoder in (
            Encoder(32, style_size=16),
            Encoder(64, style_size=24, first_channels=4, max_channels=16),
        ):
            with pytest.raises(InputError, match="do not belong together"):
                require_same_codes(small, encoder)


class TestDiscriminator:
    def test_pictures_are_judged_together(self):
        torch.manual_seed(6)
        critic = Discriminator(32, channels_base=256, max_channels=16).eval()
        images = torch.rand(4, 3, 32, 32) * 2 - 1
        together, alone = critic(images), torch.cat([critic(image[None]) for image in images])
        assert (together - alone).abs().max() > 1e-5
        assert torch.allclose(together[[1, 0, 3, 2]], critic(images[[1, 0, 3, 2]]), atol=1e-5)

    @pytest.mark.parametrize(("count", "group"), [(8, 4), (6, 3), (7, 1), (3, 3)])
    def test_groups_fit_any_batch(self, count, group):
        torch.manual_seed(7)
        maps = torch.randn(count, 5, 4, 4)
        found = append_batch_deviation(maps, 4)[:, 5]
        members = [maps[start :: count // group] for start in range(count // group)]
        slow = [np.sqrt(part.numpy().var(axis=0) + 1e-8).mean() for part in members]
        assert found[:, 0, 0].tolist() == pytest.approx(slow * group, abs=1e-6)

    def test_every_parameter_has_a_gradient(self):
        critic = Discriminator(32, channels_base=256, max_channels=16)
        critic(torch.randn(4, 3, 32, 32)).sum().backward()
        assert all(parameter.grad is not None for parameter in critic.parameters())


def test_every_parameter_of_a_generator_has_a_gradient():
    generator = Generator(32, **SMALL)
    generator.synthesis(generator.truncate(generator.mapping(torch.randn(2, 16)))).square().sum().backward()
    assert all(parameter.grad.any() for parameter in generator.parameters())


class TestVQVAE2:
    @pytest.fixture
    def network(self):
        torch.manual_seed(8)
        return VQVAE2(64, channels=16, residual_channels=8, codebook_size=32, code_size=8)

    def test_index_counts(self):
        network = VQVAE2(channels=8, residual_channels=4, code_size=4)
        indices = network.encode(torch.zeros(2, 3, 256, 256))
        assert indices.top.shape == (2, 32, 32) and indices.bottom.shape == (2, 64, 64)
        assert indices.flat().shape == (2, 5120)

    def test_round_trip(self, network):
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        indices = network.eval().encode(images)
        assert indices.flat().shape == (2, 8 * 8 + 16 * 16)
        assert indices.top.dtype == torch.int64 and indices.flat().max() < 32
        decoded = network.decode(indices)
        assert decoded.shape == images.shape and decoded.abs().max() <= 1
        result = network(images)
        assert torch.equal(result.indices.flat(), indices.flat())
        torch.testing.assert_close(result.images.clamp(-1, 1), decoded, atol=1e-5, rtol=1e-4)

    def test_nearest_is_nearest(self):
        torch.manual_seed(9)
        book, features = Codebook(7, 3), torch.randn(2, 3, 4, 5)
        distances = (features.movedim(1, -1)[..., None, :] - book.codes).square().sum(dim=-1)
        assert torch.equal(book.nearest(features), distances.argmin(dim=-1))

    def test_gradients_pass_the_codebook(self, network):
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        result = network(images)
        functional.mse_loss(result.images, images).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert network.bottom_encoder[0].weight.grad.abs().sum() > 0

    def test_codes_follow_the_mean_of_their_features_in_training_only(self):
        book = Codebook(2, 1, decay=0.5)
        book.codes.copy_(torch.tensor([[0.0], [10.0]]))
        book.sums.copy_(book.codes)
        features = torch.tensor([1.0, 3.0, 11.0, 11.0]).reshape(1, 1, 2, 2)
        book.eval()(features)
        assert book.codes.flatten().tolist() == [0, 10]
        book.train()(features)
        assert book.codes.flatten().tolist() == pytest.approx([4 / 3, (10 + 22) / 3])

    def test_unused_codes_stay_where_they_are(self):
        book = Codebook(2, 1, decay=0.5).train()
        book.codes.copy_(torch.tensor([[0.0], [10.0]]))
        book.sums.copy_(book.codes)
        for _ in range(200):
            book(torch.zeros(1, 1, 2, 2))
        assert book.codes.isfinite().all()
        assert book.codes[1].item() == pytest.approx(10)

    def test_dead_codes_move_to_features(self, network):
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        network.train()(images)
        for book in (network.top_codebook, network.bottom_codebook):
            book.usage.fill_(5)
            book.usage[:3] = 0
        kept = network.bottom_codebook.codes[3:].clone()
        moved = network.reset_dead_codes(images, generator=torch.Generator().manual_seed(0))
        assert moved == {"top": 3, "bottom": 3}
        assert torch.equal(network.bottom_codebook.codes[3:], kept)
        _, features = network.top_features(images)
        distances = torch.cdist(network.top_codebook.codes[:3], features.movedim(1, -1).flatten(0, 2))
        assert distances.amin(dim=1).max() < 1e-4
        assert network.reset_dead_codes(images) == {"top": 0, "bottom": 0}

    def test_no_pictures_are_no_symbols_and_no_pictures(self, network):
        nothing = torch.zeros(0, 3, 64, 64)
        indices = network.encode(nothing)
        assert indices.flat().shape == (0, 8 * 8 + 16 * 16)
        assert network.decode(indices).shape == nothing.shape

    def test_foreign_indices_are_refused(self, network):
        indices = network.encode(torch.zeros(1, 3, 64, 64))
        with pytest.raises(InputError, match="8 x 8 and 16 x 16 indices"):
            network.decode(Indices(indices.bottom, indices.top))
        with pytest.raises(InputError, match="outside 0 to 31"):
            network.decode(Indices(indices.top, indices.bottom + 32))

    def test_sides_that_do_not_divide_are_refused(self):
        with pytest.raises(UsageError, match="multiple of 8"):
            VQVAE2(100)

    def test_settings_rebuild_the_network(self, network):
        again = VQVAE2(**network.settings)
        again.load_state_dict(network.state_dict())
        images = torch.zeros(1, 3, 64, 64)
        assert torch.equal(again.encode(images).flat(), network.encode(images).flat())


def test_batch_norms_of_the_encoder_train_their_shift_only():
    encoder = Encoder(32, style_size=8, first_channels=4, max_channels=8)
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms and not any(norm.weight.requires_grad for norm in norms)
    assert all(norm.bias.requires_grad for norm in norms)
