import numpy as np
import pytest

from sidestep_collector.sinks import crc32c

google_crc32c = pytest.importorskip("google_crc32c")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_the_vectors_of_rfc_3720_hold(data, expected):
    assert crc32c.crc32c(data) == expected


@pytest.mark.parametrize("length", [1, 3, 4, 5, 511, 512, 513, 514, 515, 516, 1000, 4096, 4097, 100_003])
def test_short_and_long_buffers_agree_with_another_implementation(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c.crc32c(data) == google_crc32c.value(data)


def test_a_position_table_gives_what_a_byte_contributes():
    rng = np.random.default_rng(0)
    for distance in (0, 1, 7, 255, 4095):
        data = bytearray(rng.bytes(5000))
        before = crc32c.crc32c(bytes(data))
        place = len(data) - 1 - distance
        old, data[place] = data[place], 0xA7
        table = crc32c.positions()[distance]
        assert crc32c.crc32c(bytes(data)) == before ^ int(table[old]) ^ int(table[0xA7])


def test_masks_of_arrays_and_of_one_buffer_agree():
    data = [b"a", b"bc", bytes(1000)]
    crcs = np.array([crc32c.crc32c(item) for item in data], dtype=np.uint32)
    assert crc32c.mask(crcs).tolist() == [crc32c.masked_crc32c(item) for item in data]
