"""TFRecords without TensorFlow, SIFA's slices and test volumes, known problems."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from releases import sections, tfrecord
from scripts.core.errors import InputError
from scripts.lab.check.case_search import find_cases
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.sifa import read_record_slice
from scripts.lab.prepare.tfrecord import masked_crc, parse_example, read_records

SHAPE = (6, 5, 3)
LOW, HIGH = {"ct": -2.8, "mr": -1.8}, {"ct": 3.2, "mr": 4.4}


def slice_triple(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and labels 0 to 5; the outer channels of the label say something else, as they may."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=SHAPE).astype(np.float32)
    label = rng.integers(0, 6, SHAPE).astype(np.float32)
    return image, label


def write_record(path: Path, seed: int, **int64s: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tfrecord(*slice_triple(seed), **int64s))
    return path


def write_release(root: Path) -> Path:
    for domain in ("ct", "mr"):
        for index in range(12):
            write_record(root / f"{domain}_train_tfs" / f"{domain}_train_slice{index}.tfrecords", index)
        write_record(root / f"{domain}_val_tfs" / f"{domain}_val_slice7.tfrecords", 99)
    volume = np.random.default_rng(5).normal(size=(6, 5, 4)).astype(np.float32)
    (root / "test_ct").mkdir()
    np.savez(root / "test_ct" / "ct_1003.npz", volume, np.round(np.abs(volume)))
    return root


def run(source: Path, out: Path, **settings: object) -> dict:
    return prepare(Preparation("sifa", source, out, workers=1, **settings))


def scaled(image: np.ndarray, domain: str) -> np.ndarray:
    """SIFA's map: 2 (x - low) / (high - low) - 1, not clipped."""
    return 2 * (image - LOW[domain]) / (HIGH[domain] - LOW[domain]) - 1


def test_the_checksum_is_crc_32c() -> None:
    # The check value of CRC-32C is 0xE3069283 for "123456789" (RFC 3720); TFRecord masks it by a rotation and a sum.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_an_example_has_bytes_numbers_with_their_sign_and_floats(tmp_path: Path) -> None:
    path = write_record(tmp_path / "ct_train_slice0.tfrecords", 0, bias_dim0=-17, bias_dim1=300)
    (payload,) = read_records(path)
    features = parse_example(payload)
    assert features["bias_dim0"] == [-17]  # on disk 18446744073709551599
    assert features["bias_dim1"] == [300]
    assert features["dsize_dim2"] == [3]
    assert np.array_equal(np.frombuffer(features["data_vol"][0], "<f4").reshape(SHAPE), slice_triple(0)[0])


def test_an_example_as_googles_own_library_writes_it() -> None:
    """An independent implementation of the wire format, with floats and unpacked numbers."""
    google = pytest.importorskip("google.protobuf")
    del google
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="e", syntax="proto2")
    for name, kind in (("Bytes", "TYPE_BYTES"), ("Floats", "TYPE_FLOAT"), ("Int64s", "TYPE_INT64")):
        message = file.message_type.add(name=name)
        field = message.field.add(name="value", number=1, label="LABEL_REPEATED", type=kind)
        field.options.packed = name == "Floats"
    feature = file.message_type.add(name="Feature")
    for number, name in enumerate(("Bytes", "Floats", "Int64s"), start=1):
        feature.field.add(name=name, number=number, type="TYPE_MESSAGE", type_name=f".e.{name}", label="LABEL_OPTIONAL")
    entry = file.message_type.add(name="Entry")
    entry.field.add(name="key", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    entry.field.add(name="value", number=2, type="TYPE_MESSAGE", type_name=".e.Feature", label="LABEL_OPTIONAL")
    for name, inner, label in (("Features", "Entry", "LABEL_REPEATED"), ("Example", "Features", "LABEL_OPTIONAL")):
        outer = file.message_type.add(name=name)
        outer.field.add(name="content", number=1, type="TYPE_MESSAGE", type_name=f".e.{inner}", label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    example = message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))()
    example.content.content.add(key="f").value.Floats.value.extend([0.5, -2.0])
    example.content.content.add(key="i").value.Int64s.value.extend([3, -1, 1 << 40])
    example.content.content.add(key="b").value.Bytes.value.extend([b"xy", b""])
    read = parse_example(memoryview(example.SerializeToString()))
    assert read == {"f": [0.5, -2.0], "i": [3, -1, 1 << 40], "b": [b"xy", b""]}


def test_only_the_middle_channel_is_the_slice(tmp_path: Path) -> None:
    image, label = read_record_slice(write_record(tmp_path / "mr_val_slice1.tfrecords", 4, mask_scale=4))
    assert np.array_equal(image, slice_triple(4)[0][..., 1])
    assert np.array_equal(label, slice_triple(4)[1][..., 1])


@pytest.mark.parametrize("domain", ["ct", "mr"])
def test_slices_are_stacked_in_the_order_of_their_numbers(domain: str, tmp_path: Path) -> None:
    run(write_release(tmp_path / "in"), tmp_path / "out")
    image = nib.load(tmp_path / "out" / domain / f"{domain}_training_000_image.nii.gz")
    label = nib.load(tmp_path / "out" / domain / f"{domain}_training_000_label.nii.gz")
    assert image.shape == (6, 5, 12)
    for index in range(12):  # slice10 comes after slice9
        triple, labels = slice_triple(index)
        expected = scaled(triple[..., 1], domain)
        assert np.allclose(np.asarray(image.dataobj)[..., index], expected, atol=1e-6)
        # 5 is a further vessel: background.
        assert np.array_equal(np.asarray(label.dataobj)[..., index], np.where(labels[..., 1] == 5, 0, labels[..., 1]))
    assert sections(tmp_path / "out", domain)["validation"] == [f"{domain}_validation_000"]


def test_test_volumes_are_flipped_on_both_axes(tmp_path: Path) -> None:
    source = write_release(tmp_path / "in")
    run(source, tmp_path / "out")
    with np.load(source / "test_ct" / "ct_1003.npz") as arrays:
        image, label = arrays["arr_0"], arrays["arr_1"]
    written = nib.load(tmp_path / "out" / "ct" / "ct_1003_image.nii.gz")
    assert np.allclose(np.asarray(written.dataobj), scaled(image[::-1, ::-1], "ct"), atol=1e-6)
    labels = nib.load(tmp_path / "out" / "ct" / "ct_1003_label.nii.gz")
    assert np.array_equal(np.asarray(labels.dataobj), label[::-1, ::-1])
    assert sections(tmp_path / "out", "ct")["test"] == ["ct_1003"]
    assert nib.aff2axcodes(written.affine) == ("R", "S", "A")


def test_what_the_release_adds_and_an_empty_label_are_legal(tmp_path: Path) -> None:
    """Records also contain masks and negative offsets, and some slices do not contain the heart."""
    for index in range(2):
        path = write_record(tmp_path / "in" / f"mr_train_slice{index}.tfrecords", index)
        path.write_bytes(tfrecord(slice_triple(index)[0], np.zeros(SHAPE, np.float32), bias_dim0=-17, mask_scale=4))
    run(tmp_path / "in", tmp_path / "out")
    label = nib.load(tmp_path / "out" / "mr" / "mr_training_000_label.nii.gz")
    assert not np.asarray(label.dataobj).any()


def test_masks_as_bytes_and_a_label_of_one_channel_are_read(tmp_path: Path) -> None:
    """The release adds 4,096 ones as ``mask_vol``; according to its loader, labels have one channel."""
    image, label = slice_triple(8)
    path = tmp_path / "mr_train_slice0.tfrecords"
    path.write_bytes(tfrecord(image, label[..., 1:2], mask_vol=np.ones(4096, np.float32), mask_scale=4))
    (payload,) = read_records(path)
    assert len(parse_example(payload)["mask_vol"][0]) == 16_384
    read = read_record_slice(path)
    assert np.array_equal(read[0], image[..., 1])
    assert np.array_equal(read[1], label[..., 1])


@pytest.mark.parametrize("place", ["mr_hearts/{0}_train_slice{1}", "mr_ct/{0}/structures/train_slice{1}"])
def test_letters_elsewhere_in_a_path_do_not_make_an_mr_of_a_ct(place: str, tmp_path: Path) -> None:
    """SIFA looks for ``mr`` or ``ct`` anywhere in a list's path and takes that modality's constants."""
    for domain in ("ct", "mr"):
        for index in range(2):
            write_record(tmp_path / "in" / f"{place.format(domain, index)}.tfrecords", index)
    run(tmp_path / "in", tmp_path / "out")
    for domain in ("ct", "mr"):
        image = nib.load(tmp_path / "out" / domain / f"{domain}_training_000_image.nii.gz")
        expected = scaled(slice_triple(1)[0][..., 1], domain)
        assert image.shape == (6, 5, 2)
        assert np.allclose(np.asarray(image.dataobj)[..., 1], expected, atol=1e-6)


def test_lists_of_paths_are_not_needed(tmp_path: Path) -> None:
    """SIFA's list reader drops the last character of every line, and so of the last path without a line's end."""
    paths = [write_record(tmp_path / "in" / f"ct_train_slice{index}.tfrecords", index) for index in range(3)]
    (tmp_path / "in" / "datalist").mkdir()
    (tmp_path / "in" / "datalist" / "training_ct.txt").write_text("\n".join(map(str, paths)))
    run(tmp_path / "in", tmp_path / "out")
    assert nib.load(tmp_path / "out" / "ct" / "ct_training_000_image.nii.gz").shape == (6, 5, 3)


def test_two_archives_with_one_id(tmp_path: Path) -> None:
    source = write_release(tmp_path / "in")
    (source / "copy_ct").mkdir()
    (source / "copy_ct" / "ct_1003.npz").write_bytes((source / "test_ct" / "ct_1003.npz").read_bytes())
    with pytest.raises(InputError, match=r"the id 'ct_1003', also used by .*ct_1003.npz\. Expected one volume"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_lists_become_several_stacks(tmp_path: Path) -> None:
    for index in range(203):
        write_record(tmp_path / "in" / f"ct_train_slice{index}.tfrecords", index)
    run(tmp_path / "in", tmp_path / "out")
    assert sections(tmp_path / "out", "ct") == {"training": ["ct_training_000", "ct_training_001"]}
    assert nib.load(tmp_path / "out" / "ct" / "ct_training_001_image.nii.gz").shape == (6, 5, 3)


def test_the_report_says_where_the_release_peeks(tmp_path: Path) -> None:
    report = run(write_release(tmp_path / "in"), tmp_path / "out")
    assert "1007, 1009, 1018 and 1019" in " ".join(report["peeks"])
    assert report["protocol"]["name"] == "sifa"  # its only protocol, so it need not be named
    assert report["protocol"]["metric"]["distance"].startswith("voxels")
    assert any("mapped to 0" in note for note in report["domains"]["ct"]["notes"]["ct_training_000"])


def test_the_datalist_says_that_neither_spacing_nor_unit_is_known(tmp_path: Path) -> None:
    run(write_release(tmp_path / "in"), tmp_path / "out")
    assert not any(case.has_spacing or case.has_unit for case in find_cases([str(tmp_path / "out")]))


def test_it_cannot_be_made_clean(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"protocol 'clean': no rules for 'sifa'\. Expected .*: sifa\. Fix: give"):
        run(write_release(tmp_path / "in"), tmp_path / "out", protocol="clean")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def cut_head(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\1\2\3")


def other_kind(path: Path) -> None:
    path.write_bytes(b"this is no record at all")


def no_label(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"label_vol", b"label_wol"))


def short_data(path: Path) -> None:
    image, label = slice_triple(0)
    path.write_bytes(tfrecord(image, label, dsize_dim0=7))


def two_records(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def broken_message(path: Path) -> None:
    payload = b"\x0a\xff"
    head = struct.pack("<Q", len(payload))
    path.write_bytes(head + struct.pack("<I", masked_crc(head)) + payload + b"\0" * 4)


def six(path: Path) -> None:
    image, _ = slice_triple(0)
    path.write_bytes(tfrecord(image, np.full(SHAPE, 6, np.float32)))


def hounsfield(path: Path) -> None:
    image, label = slice_triple(0)
    path.write_bytes(tfrecord(image * 400, label))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"slice3.tfrecords: \d+ bytes, 300 fewer than its record requires: it is truncated"),
        (cut_head, "3 bytes after the last record: it is truncated"),
        (other_kind, "a wrong checksum at the start of a record"),
        (no_label, "Expected one example with data_vol and label_vol"),
        (short_data, "Expected one example with data_vol and label_vol"),
        (two_records, "2 records"),
        (broken_message, "a number that does not end"),
        (six, r"label value\(s\) 6 \(30 voxels\)\. Expected only 0, 1, 2, 3, 4, 5"),
        (hounsfield, "intensities from .*. Expected z-scores, within -30 and 30"),
    ],
)
def test_a_bad_record_gets_a_sentence_and_leaves_nothing(damage, message: str, tmp_path: Path) -> None:
    for index in range(2, 5):
        write_record(tmp_path / "in" / f"ct_train_slice{index}.tfrecords", index)
    damage(tmp_path / "in" / "ct_train_slice3.tfrecords")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "in", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_bad_archive(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "mr_1007.npz", np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match="Expected an npz file with the image as arr_0 and the label map as arr_1"):
        run(tmp_path / "in", tmp_path / "out")
    np.savez(tmp_path / "in" / "mr_1007.npz", np.zeros((4, 4, 4)), np.zeros((4, 4, 3)))
    with pytest.raises(InputError, match=r"an image of \(4, 4, 4\) and a label map of \(4, 4, 3\)"):
        run(tmp_path / "in", tmp_path / "out")


def test_a_path_that_does_not_tell_the_modality(tmp_path: Path) -> None:
    write_record(tmp_path / "in" / "train" / "image_01.tfrecords", 0)
    with pytest.raises(InputError, match="neither 'ct' nor 'mr' in its name and folders"):
        run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "train").rename(tmp_path / "in" / "mr")
    with pytest.raises(InputError, match="neither 'train' nor 'val' in its name and folders"):
        run(tmp_path / "in", tmp_path / "out")
