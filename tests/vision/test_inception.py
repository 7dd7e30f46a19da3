"""InceptionV3 of FID: against torch-fidelity and pytorch-fid on random weights, and what is said of other files."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from PIL import Image

from tpusd.errors import UserError
from tpusd.networks.inception import SIZE, InceptionV3
from tpusd.vision.inception import load_inception, open_inception, resized, scaled

SIZES = ((32, 32), (299, 299), (128, 200), (700, 333))


def module_of(package, name):
    """A module of a package whose __init__ imports more than is there, such as torchvision."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        bare = types.ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations)
        patch.setitem(sys.modules, package, bare)
        for stub in ("torchvision", "torchvision.models"):
            if importlib.util.find_spec("torchvision") is None:
                patch.setitem(sys.modules, stub, types.ModuleType(stub))
        return importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(torch-fidelity's network with random weights, a directory with its files)."""
    torch = pytest.importorskip("torch")
    module = module_of("torch_fidelity", "feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, values: None)
        network = module.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.manual_seed(3)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.running_mean, layer.bias):
                values.normal_(0, 0.1)
            for values in (layer.running_var, layer.weight):
                values.uniform_(0.5, 1.5)
        elif isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("inception")
    torch.save(network.state_dict(), path / "new.pth")
    torch.save(network.state_dict(), path / "old.pth", _use_new_zipfile_serialization=False)  # as the published one
    return network, path


def drawn(height, width, number=2):
    return np.random.default_rng(height).integers(0, 256, (number, height, width, 3), np.uint8)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("size", SIZES)
def test_features_are_those_of_torch_fidelity(reference, size):
    torch = pytest.importorskip("torch")
    network, path = reference
    pixels = drawn(*size)
    (wanted,) = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = load_inception(path / "old.pth")([Image.fromarray(one) for one in pixels])
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert float(wanted.std(dim=0).mean()) > 1e-3  # the pictures differ in them


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_features_and_statistics_are_those_of_pytorch_fid(reference, monkeypatch):
    """Its network, on pictures of the network's own size, where nobody resizes."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("pytorch_fid.inception")
    network, path = reference
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: network.state_dict())
    other = module.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    pixels = drawn(SIZE, SIZE, 6)
    with torch.no_grad():
        (wanted,) = other((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 128) / 128)
    wanted = wanted[:, :, 0, 0].numpy()
    found = load_inception(path / "new.pth")([Image.fromarray(one) for one in pixels])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    covariance = np.cov(wanted, rowvar=False)
    np.testing.assert_allclose(found.mean(axis=0), wanted.mean(axis=0), rtol=0, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(np.cov(found, rowvar=False), covariance, rtol=0, atol=1e-4 * np.abs(covariance).max())


@pytest.mark.parity
@pytest.mark.parametrize("size", [*SIZES, (1, 1), (3, 1000)])
def test_pictures_are_resized_as_tensorflow_1_does_it(size):
    torch = pytest.importorskip("torch")
    module = module_of("torch_fidelity", "interpolate_compat_tensorflow")
    pixels = drawn(*size, 1).astype(np.float32)
    wanted = module.interpolate_bilinear_2d_like_tensorflow1x(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), size=(SIZE, SIZE), align_corners=False
    )
    np.testing.assert_allclose(resized(pixels[0]), wanted[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-4 * 255)


def test_a_picture_of_any_mode_is_scaled():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = scaled(Image.fromarray(gray))
    assert found.shape == (SIZE, SIZE, 3) and found.dtype == np.float32
    assert found.min() == -1 and found.max() == 127 / 128 and (found[..., 0] == found[..., 2]).all()
    alpha = np.dstack([gray] * 3 + [gray[::-1]])
    np.testing.assert_array_equal(scaled(Image.fromarray(alpha)), found)  # as PIL's convert leaves alpha out


@pytest.mark.slow
def test_another_file_is_one_line(tmp_path):
    from safetensors.numpy import save_file

    save_file({"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 3), np.float32)}, tmp_path / "few.safetensors")
    (tmp_path / "cut.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    (tmp_path / "text.pth").write_text("no weights")
    for name, said in {
        "few.safetensors": "the weights do not fit: .* missing",
        "cut.pth": "is not a whole file of torch.save",
        "text.pth": "is not a",
        "gone.pth": "cannot be read: No such file",
        "x.onnx": "must end in .pth",
    }.items():
        with pytest.raises(UserError, match=f"inception.path=.*{name}: {said}.*; download https://github.com") as error:
            open_inception(tmp_path / name, "inception.path")
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_network_has_the_names_of_the_published_file():
    from flax import nnx

    from tpusd.checkpoints.fill import parameters

    names = parameters(nnx.eval_shape(lambda: InceptionV3(rngs=nnx.Rngs(0))))
    assert len(names) == 94 * 5
    assert names["Mixed_7c.branch3x3dbl_3b.conv.weight"].stored_shapes("torch") == ((384, 384, 3, 1),)
    assert {"Conv2d_1a_3x3.bn.running_var", "Mixed_6e.branch7x7dbl_5.bn.bias"} <= names.keys()
